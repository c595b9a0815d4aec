"""Loss terms, one a file, and the objectives made of them."""

from typing import Literal, Protocol

from torch import Tensor

from hsakd.losses.objective import (
    LOSS_TERMS,
    LossTerm,
    Objective,
    Step,
    cross_entropy,
    joint_labels,
    loss_term,
    softened_kl,
)
from hsakd.registry import discover

__all__ = [
    "LOSS_TERMS",
    "LossTerm",
    "NetworkOutput",
    "Objective",
    "Step",
    "cross_entropy",
    "joint_labels",
    "loss_term",
    "softened_kl",
    "student_loss",
    "teacher_loss",
]

discover(__name__, __path__)


class NetworkOutput(Protocol):
    """What a network returns for R = B*M sample-major rows: class logits [R, N] and L joint logits [R, M*N]."""

    @property
    def logits(self) -> Tensor: ...

    @property
    def joint_logits(self) -> tuple[Tensor, ...]: ...


def student_loss(
    student_output: NetworkOutput, teacher_output: NetworkOutput, labels: Tensor, *, temperature: float = 3.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the published student objective, task + kl_q + kl_p with weights 1 (Eq. 5), and its terms.

    Rows are sample-major (row M*b + j is image b rotated j quarter turns); `labels` are the B class labels.
    """
    objective = Objective(terms=(("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0)), temperature=temperature, branch_weights=None)
    teacher_logits, teacher_joint_logits = _by_image(teacher_output, labels)
    logits, joint_logits = _by_image(student_output, labels)
    return objective(
        Step(
            labels=labels,
            student_logits=logits,
            student_joint_logits=joint_logits,
            teacher_logits=teacher_logits.detach(),
            teacher_joint_logits=tuple(branch.detach() for branch in teacher_joint_logits),
            temperature=temperature,
        )
    )


def teacher_loss(output: NetworkOutput, labels: Tensor, *, regime: Literal["joint", "frozen"]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the published teacher objective, task + ce_q with weights 1 (Eq. 3), and its terms.

    Both regimes have the same value; in "frozen" the task term is a constant, as the authors' backbone gets no gradient.

    Raises:
        ValueError: an unknown `regime`.
    """
    if regime not in ("joint", "frozen"):
        raise ValueError(f"regime is {regime!r}; accepted: joint, frozen")
    logits, joint_logits = _by_image(output, labels)
    objective = Objective(terms=(("task", 1.0), ("ce_q", 1.0)), temperature=1.0, branch_weights=None)
    return objective(
        Step(labels=labels, student_logits=logits.detach() if regime == "frozen" else logits, student_joint_logits=joint_logits)
    )


def _by_image(output: NetworkOutput, labels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Unfold the rows [B*M, ...] into [B, M, ...]."""
    num_images = len(labels)

    def unfold(rows: Tensor) -> Tensor:
        return rows.reshape(num_images, -1, rows.shape[-1])

    return unfold(output.logits), tuple(unfold(branch) for branch in output.joint_logits)
