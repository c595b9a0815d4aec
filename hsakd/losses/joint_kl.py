"""Hierarchical distillation of the self-supervised augmented distributions."""

import torch
from torch import Tensor

from hsakd.losses.objective import Step, loss_term, softened_kl


@loss_term("kl_q", is_rotated=True, reads_branches=True, reads_teacher=True)
def kl_q(step: Step) -> Tensor:
    """T^2 KL(teacher's q_l || student's q_l), mean over B*M rows, summed over l (Eq. 4, first term)."""
    values = [
        weight * softened_kl(teacher, student, step.temperature)
        for weight, teacher, student in zip(step.weights_of_branches, step.teacher_joint_logits, step.student_joint_logits, strict=True)
    ]
    return torch.stack(values).sum()
