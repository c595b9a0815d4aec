"""Similarity-preserving distillation (SP)."""

from torch import Tensor

from hsakd.losses.library import LIBRARY, hooked, mid_level_losses
from hsakd.losses.objective import Step, loss_term


@loss_term("sp", is_rotated=False, reads_branches=False, reads_teacher=True, reads_features=True, library=LIBRARY)
def similarity_preserving(step: Step) -> Tensor:
    """Squared Frobenius distance of the row-normalized B x B similarity matrices of the last stage's maps, over B^2.

    Tung and Mori 2019 (arXiv 1907.09682), Eq. 4. Weight 3000 and the last stage: CRD's published command. The loss is torchdistill's.
    """
    student, teacher = step.unrotated_maps()[-1]
    value: Tensor = mid_level_losses().SPKDLoss("0", "0", "batchmean")(hooked(student), hooked(teacher))
    return value
