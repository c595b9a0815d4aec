"""Relational distillation (RKD): distances of pairs, angles of triplets."""

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from hsakd.losses.library import LIBRARY, mid_level_losses
from hsakd.losses.objective import Step, loss_term

DISTANCE_WEIGHT, ANGLE_WEIGHT = 25.0, 50.0  # w_d and w_a of CRD's code
LEAST_SQUARE = 1e-12  # torchdistill's bound on squared distances, before their root


@loss_term("rkd", is_rotated=False, reads_branches=False, reads_teacher=True, reads_features=True, library=LIBRARY)
def relational(step: Step) -> Tensor:
    """25 Huber(distances over their mean) + 50 Huber(cosines of angles), over all pairs and triplets of the batch's embeddings.

    Park et al. 2019 (arXiv 1904.05068), section 3.2, L_RKD-D and L_RKD-A. Weight 1: CRD's published command. Angles are torchdistill's;
    distances are ours, since torchdistill's wait for the device (a diagonal named by index lists, the positive ones selected for their
    mean); the values are the same.
    """
    student, teacher = step.unrotated_embeddings()
    loss = mid_level_losses().RKDLoss("", "", dist_factor=DISTANCE_WEIGHT, angle_factor=ANGLE_WEIGHT, reduction="mean")
    distances = [pair_distances(embedding) for embedding in (student, teacher)]
    own, taught = (distance / (distance.sum() / (distance > 0).sum()) for distance in distances)
    value: Tensor = DISTANCE_WEIGHT * smooth_l1_loss(own, taught) + ANGLE_WEIGHT * loss.compute_rkd_angle_loss(teacher, student)
    return value


def pair_distances(embeddings: Tensor) -> Tensor:
    """Return the Euclidean distances [B, B] of all pairs of [B, C], 0 from each to itself."""
    squares = embeddings.pow(2).sum(dim=1)
    distances = (squares[:, None] + squares[None] - 2 * (embeddings @ embeddings.t())).clamp(min=LEAST_SQUARE).sqrt()
    return distances.masked_fill(torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device), 0)
