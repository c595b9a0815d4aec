"""Distillation of standardized logits (LS)."""

from torch import Tensor

from hsakd.losses.library import LIBRARY, hooked, mid_level_losses
from hsakd.losses.objective import Step, loss_term


@loss_term("kd_standardized", is_rotated=False, reads_branches=False, reads_teacher=True, library=LIBRARY)
def standardized_kd(step: Step) -> Tensor:
    """T^2 KL(teacher's p || student's p) of logits with mean 0 and standard deviation 1 per image, mean over B.

    Sun et al. 2024 (arXiv 2403.01427), algorithm 1. Weight 9 beside 0.1 task at temperature 2: the authors' command
    (`--logit-stand --base-temp 2 --kd-weight 9`). It stands in KD's place, as there. The loss is torchdistill's.
    """
    student, teacher = step.unrotated_logits()
    loss = mid_level_losses().LogitStdKDLoss("0", "output", "0", "output", temperature=step.temperature, beta=1.0)
    value: Tensor = loss(hooked(student), hooked(teacher)) * step.temperature**2
    return value
