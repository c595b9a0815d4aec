"""Cross-entropy of the auxiliary classifiers with the joint label."""

import torch
from torch import Tensor

from hsakd.losses.objective import Step, cross_entropy, loss_term


@loss_term("ce_q", is_rotated=True, reads_branches=True, reads_teacher=False)
def ce_q(step: Step) -> Tensor:
    """Cross-entropy of each q_l with k = y*M + j, mean over B*M rows, summed over l (Eqs. 1 and 2; temperature 1)."""
    labels = step.joint_targets
    values = [
        weight * cross_entropy(logits, labels) for weight, logits in zip(step.weights_of_branches, step.student_joint_logits, strict=True)
    ]
    return torch.stack(values).sum()
