"""Decoupled distillation (DKD): the target class, and the classes beside it."""

import torch
from torch import Tensor

from hsakd.losses.objective import Step, kl_of_softened, loss_term, softened_kl

WARM_UP_EPOCHS = 20  # of 240, the authors' DKD.WARMUP: the terms grow linearly


@loss_term("tckd", is_rotated=False, reads_branches=False, reads_teacher=True)
def target_class(step: Step) -> Tensor:
    """T^2 KL of the binary distributions (target class, all others), mean over B, with the authors' warm-up.

    Zhao et al. 2022 (arXiv 2203.08679), Eq. 7, alpha = 1 (weight 1). torchdistill has no DKD.
    """
    binary = []  # the student's, the teacher's
    for logits in step.unrotated_logits():
        log_p = (logits / step.temperature).log_softmax(dim=1)
        target = log_p.gather(1, step.labels[:, None])
        binary.append(torch.cat([target, _without_target(log_p, step.labels).logsumexp(dim=1, keepdim=True)], dim=1))
    return kl_of_softened(binary[1], binary[0], step.temperature) * _warm_up(step)


@loss_term("nckd", is_rotated=False, reads_branches=False, reads_teacher=True)
def nontarget_classes(step: Step) -> Tensor:
    """T^2 KL of the distributions among the classes other than the target, mean over B, with the authors' warm-up.

    Zhao et al. 2022, Eq. 7, beta = 8 (weight 8): the default of the authors' code, theirs for resnet32x4 (they take 2 for resnet56).
    """
    student, teacher = (_without_target(logits, step.labels) for logits in step.unrotated_logits())
    return softened_kl(teacher, student, step.temperature) * _warm_up(step)


def _without_target(values: Tensor, labels: Tensor) -> Tensor:
    """Return [B, N-1]: the columns other than each row's label."""
    columns = torch.arange(values.shape[1] - 1, device=values.device).expand(len(values), -1)
    return values.gather(1, columns + (columns >= labels[:, None]))


def _warm_up(step: Step) -> float:
    return min(step.authors_epoch(first=1) / WARM_UP_EPOCHS, 1.0)
