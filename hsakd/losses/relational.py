"""Relational distillation (RKD): distances of pairs, angles of triplets."""

from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from hsakd.losses.library import LIBRARY, mid_level_losses
from hsakd.losses.objective import Step, loss_term

DISTANCE_WEIGHT, ANGLE_WEIGHT = 25.0, 50.0  # w_d and w_a of CRD's code


@loss_term("rkd", is_rotated=False, reads_branches=False, reads_teacher=True, reads_features=True, library=LIBRARY)
def relational(step: Step) -> Tensor:
    """25 Huber(distances over their mean) + 50 Huber(cosines of angles), over all pairs and triplets of the batch's embeddings.

    Park et al. 2019 (arXiv 1904.05068), section 3.2, L_RKD-D and L_RKD-A. Weight 1: CRD's published command. Angles and distances are
    torchdistill's; the mean distance is a sum over a count, since its selection of the positive ones waits for the device (the value is
    the same).
    """
    student, teacher = step.unrotated_embeddings()
    loss = mid_level_losses().RKDLoss("", "", dist_factor=DISTANCE_WEIGHT, angle_factor=ANGLE_WEIGHT, reduction="mean")
    distances = [loss.pdist(embedding) for embedding in (student, teacher)]
    relative = [distance / (distance.sum() / (distance > 0).sum()) for distance in distances]
    value: Tensor = DISTANCE_WEIGHT * smooth_l1_loss(*relative) + ANGLE_WEIGHT * loss.compute_rkd_angle_loss(teacher, student)
    return value
