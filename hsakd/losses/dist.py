"""Distillation from a stronger teacher (DIST): correlation instead of divergence."""

from torch import Tensor

from hsakd.losses.library import LIBRARY, hooked, mid_level_losses
from hsakd.losses.objective import Step, loss_term


@loss_term("dist", is_rotated=False, reads_branches=False, reads_teacher=True, library=LIBRARY)
def dist(step: Step) -> Tensor:
    """T^2 (1 - Pearson correlation of the class probabilities, per image) + the same per class over the batch.

    Huang et al. 2022 (arXiv 2205.10536), L_inter and L_intra. Weight 2 (beta = gamma = 2) at temperature 4: the paper's for CIFAR-100. It
    stands in KD's place, as there. The loss is torchdistill's.
    """
    student, teacher = step.unrotated_logits()
    loss = mid_level_losses().DISTLoss("0", "output", "0", "output", beta=1.0, gamma=1.0, tau=step.temperature)
    value: Tensor = loss(hooked(student), hooked(teacher))
    return value
