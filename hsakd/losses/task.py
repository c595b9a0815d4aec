"""The task loss."""

from torch import Tensor

from hsakd.losses.objective import Step, cross_entropy, loss_term


@loss_term("task", is_rotated=False, reads_branches=False, reads_teacher=False)
def task(step: Step) -> Tensor:
    """Cross-entropy of p on unrotated images, mean over B (first term of Eqs. 3 and 5; temperature 1)."""
    return cross_entropy(step.student_logits[:, 0], step.labels)
