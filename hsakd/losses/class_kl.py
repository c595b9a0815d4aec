"""Distillation of the class distribution under every rotation."""

from torch import Tensor

from hsakd.losses.objective import Step, loss_term, softened_kl


@loss_term("kl_p", is_rotated=True, reads_branches=False, reads_teacher=True)
def kl_p(step: Step) -> Tensor:
    """T^2 KL(teacher's p || student's p), mean over all B*M rows (Eq. 4, second term)."""
    return softened_kl(step.required_teacher_logits(), step.student_logits, step.temperature)
