"""Probabilistic knowledge transfer (PKT)."""

from torch import Tensor

from hsakd.losses.library import LIBRARY, hooked, mid_level_losses
from hsakd.losses.objective import Step, loss_term


@loss_term("pkt", is_rotated=False, reads_branches=False, reads_teacher=True, reads_features=True, library=LIBRARY)
def probabilistic(step: Step) -> Tensor:
    """KL of the conditional probabilities that the cosine kernel gives to pairs of the batch's embeddings, mean over B^2.

    Passalis and Tefas 2018 (arXiv 1803.10837), section 3. Weight 30000: CRD's published command. The loss is torchdistill's.
    """
    student, teacher = step.unrotated_embeddings()
    value: Tensor = mid_level_losses().PKTLoss("0", "output", "0", "output")(hooked(student), hooked(teacher))
    return value
