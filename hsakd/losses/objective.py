"""What a loss term may read (`Step`), and a table of named, weighted terms (`Objective`)."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Self

import torch
from torch import Tensor

from hsakd.config import ObjectiveConfig
from hsakd.registry import Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Everything a loss term may read about one batch: B images in M rotations, N classes, L distilled auxiliary classifiers.

    M is 1 where no term of the objective is rotated. Teacher tensors carry no gradient.
    """

    labels: Tensor  # [B], classes 0..N-1
    student_logits: Tensor  # [B, M, N]
    student_joint_logits: tuple[Tensor, ...] = ()  # L tensors [B, M, M*N]
    teacher_logits: Tensor | None = None  # [B, M, N]
    teacher_joint_logits: tuple[Tensor, ...] = ()  # L tensors [B, M, M*N]
    temperature: float = 3.0
    branch_weights: tuple[float, ...] | None = None  # L weights, None: all 1
    rotations: tuple[int, ...] | None = None  # the quarter turn of each view along M, where fewer are fed than joint labels have

    @property
    def num_rotations(self) -> int:
        """M."""
        return self.student_logits.shape[1]

    @property
    def joint_targets(self) -> Tensor:
        """The labels k = y*M + j of all views, [B, M]; with fewer views fed, only theirs (joint classifiers keep their width)."""
        if self.rotations is None:
            return joint_labels(self.labels, self.num_rotations)
        width = self.student_joint_logits[0].shape[-1] // self.student_logits.shape[-1]
        labels = joint_labels(self.labels, width)
        return torch.stack([labels[:, turn] for turn in self.rotations], dim=1)

    @property
    def weights_of_branches(self) -> tuple[float, ...]:
        """One weight per distilled auxiliary classifier."""
        return (1.0,) * len(self.student_joint_logits) if self.branch_weights is None else self.branch_weights

    def required_teacher_logits(self) -> Tensor:
        """Return the teacher's class logits; the objective guarantees them to terms that declare `reads_teacher`."""
        assert self.teacher_logits is not None
        return self.teacher_logits


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerm:
    """A named part of an objective: the function, and what it reads, so that nothing else is computed.

    `is_rotated`: reads rotated images; `reads_branches`: reads auxiliary classifiers (of the teacher, too, if `reads_teacher`).
    """

    compute: Callable[[Step], Tensor]
    is_rotated: bool
    reads_branches: bool
    reads_teacher: bool


LOSS_TERMS: Registry[LossTerm] = Registry("loss term")


def loss_term(
    name: str, *, is_rotated: bool, reads_branches: bool, reads_teacher: bool
) -> Callable[[Callable[[Step], Tensor]], Callable[[Step], Tensor]]:
    """Return a decorator that registers a function of a `Step` as the term `name`."""

    def file_term(compute: Callable[[Step], Tensor]) -> Callable[[Step], Tensor]:
        LOSS_TERMS.register(name)(
            LossTerm(compute=compute, is_rotated=is_rotated, reads_branches=reads_branches, reads_teacher=reads_teacher)
        )
        return compute

    return file_term


def joint_labels(labels: Tensor, num_rotations: int) -> Tensor:
    """Return the self-supervised augmented labels k = y*M + j, [B, M] (section 3.1 of the paper)."""
    return labels[:, None] * num_rotations + torch.arange(num_rotations, device=labels.device)


def softened_kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || student) of the softened softmaxes, averaged over all leading axes, computed in float32 or wider."""
    width = teacher_logits.shape[-1]
    teacher = (_widened(teacher_logits).reshape(-1, width) / temperature).log_softmax(dim=1)
    student = (_widened(student_logits).reshape(-1, width) / temperature).log_softmax(dim=1)
    return torch.nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy, averaged over all leading axes, computed in float32 or wider."""
    return torch.nn.functional.cross_entropy(_widened(logits).reshape(-1, logits.shape[-1]), labels.reshape(-1))


def _widened(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A weighted sum of loss terms; calling it gives `(total, {name: unweighted value})`."""

    terms: tuple[tuple[str, float], ...]
    temperature: float
    branch_weights: tuple[float, ...] | None

    @classmethod
    def from_config(cls, config: ObjectiveConfig) -> Self:
        """Raises KeyError (listing the known terms) where a name is unknown."""
        for name, _ in config.terms:
            LOSS_TERMS[name]
        return cls(terms=config.terms, temperature=config.temperature, branch_weights=config.branch_weights)

    @property
    def names(self) -> tuple[str, ...]:
        """The terms' names, in the order they are reported."""
        return tuple(name for name, _ in self.terms)

    @property
    def is_rotated(self) -> bool:
        """Whether any term reads rotated images; otherwise a step sees the M = 1 unrotated view only."""
        return any(LOSS_TERMS[name].is_rotated for name in self.names)

    @property
    def reads_branches(self) -> bool:
        """Whether any term reads the trained network's auxiliary classifiers."""
        return any(LOSS_TERMS[name].reads_branches for name in self.names)

    @property
    def reads_teacher(self) -> bool:
        """Whether any term reads a teacher."""
        return any(LOSS_TERMS[name].reads_teacher for name in self.names)

    @property
    def reads_teacher_branches(self) -> bool:
        """Whether any term reads the teacher's auxiliary classifiers."""
        return any(LOSS_TERMS[name].reads_branches and LOSS_TERMS[name].reads_teacher for name in self.names)

    def __call__(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        values = {name: LOSS_TERMS[name].compute(step) for name in self.names}
        weighted = [values[name] if weight == 1 else values[name] * weight for name, weight in self.terms]
        return torch.stack(weighted).sum() if len(weighted) > 1 else weighted[0], values


def discover_terms(package: str, path: list[str]) -> None:
    """Import every module of the package, so that a term is registered by being a file."""
    for module in pkgutil.iter_modules(path):
        import_module(f"{package}.{module.name}")
