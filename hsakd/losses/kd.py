"""Conventional knowledge distillation."""

from torch import Tensor

from hsakd.losses.objective import Step, loss_term, softened_kl


@loss_term("kd", is_rotated=False, reads_branches=False, reads_teacher=True)
def kd(step: Step) -> Tensor:
    """T^2 KL(teacher's p || student's p) on unrotated images, mean over B (Hinton et al. 2015, arXiv 1503.02531)."""
    return softened_kl(step.required_teacher_logits()[:, 0], step.student_logits[:, 0], step.temperature)
