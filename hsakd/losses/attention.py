"""Attention transfer (AT)."""

from torch import Tensor

from hsakd.losses.library import LIBRARY, hooked, hooked_pairs, mid_level_losses
from hsakd.losses.maps import pooled_to_smaller
from hsakd.losses.objective import Step, loss_term


@loss_term("at", is_rotated=False, reads_branches=False, reads_teacher=True, reads_features=True, library=LIBRARY)
def attention_transfer(step: Step) -> Tensor:
    """Mean squared difference of the normalized attention maps (mean over channels of the squares), summed over all stages.

    Zagoruyko and Komodakis 2017 (arXiv 1612.03928), Eq. 2 as their code has it: a mean of squares, where the paper has a norm.
    Weight 1000: CRD's published command. The loss is torchdistill's; maps of different sizes are pooled as CRD does.
    """
    student, teacher = zip(*(pooled_to_smaller(*pair) for pair in step.unrotated_maps()), strict=True)
    value: Tensor = mid_level_losses().ATLoss(hooked_pairs(len(student)), mode="code")(hooked(*student), hooked(*teacher))
    return value
