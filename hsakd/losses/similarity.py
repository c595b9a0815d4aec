"""Similarity-preserving distillation (SP)."""

from torch import Tensor
from torch.nn.functional import normalize

from hsakd.losses.objective import Step, loss_term


@loss_term("sp", is_rotated=False, reads_branches=False, reads_teacher=True, reads_features=True)
def similarity_preserving(step: Step) -> Tensor:
    """Squared Frobenius distance of the row-normalized B x B similarity matrices of the last stage's maps, over B^2.

    Tung and Mori 2019 (arXiv 1907.09682), Eq. 4, rows of Euclidean length 1. Weight 3000 and the last stage: CRD's published command.
    torchdistill's SPKDLoss divides rows by their sum of absolute values (1.1.5), which is another loss on another scale, so this one
    is ours.
    """
    student, teacher = (normalize(maps.flatten(1) @ maps.flatten(1).t(), dim=1) for maps in step.unrotated_maps()[-1])
    return (student - teacher).square().mean()
