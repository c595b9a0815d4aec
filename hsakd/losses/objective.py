"""What a loss term may read (`Step`), and a table of named, weighted terms (`Objective`)."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from hsakd.config import ObjectiveConfig, OptimConfig
from hsakd.registry import Registry
from hsakd.seeds import seed_of

EXTRAS = {"torchdistill": "comparators"}  # a library that terms may need -> the extra of this package that installs it
AUTHORS_EPOCHS = 240  # the CIFAR-100 schedule that published numbers of epochs (warm-up, pre-training) belong to


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Everything a loss term may read about one batch: B images in M rotations, N classes, L distilled auxiliary classifiers.

    M is 1 where no term of the objective is rotated. Teacher tensors carry no gradient. Maps and embeddings are there where a term
    declares `reads_features`. `epoch` (of `num_epochs`) and `number` (the optimizer step of the whole training) count from 0.
    """

    labels: Tensor  # [B], classes 0..N-1
    student_logits: Tensor  # [B, M, N]
    student_joint_logits: tuple[Tensor, ...] = ()  # L tensors [B, M, M*N]
    teacher_logits: Tensor | None = None  # [B, M, N]
    teacher_joint_logits: tuple[Tensor, ...] = ()  # L tensors [B, M, M*N]
    temperature: float = 3.0
    branch_weights: tuple[float, ...] | None = None  # L weights, None: all 1
    student_maps: tuple[Tensor, ...] = ()  # one per stage, [B, M, C_l, H_l, W_l]
    teacher_maps: tuple[Tensor, ...] = ()
    student_embedding: Tensor | None = None  # [B, M, C], what the linear layer reads
    teacher_embedding: Tensor | None = None
    indices: Tensor | None = None  # [B] positions in the training set, on the CPU
    epoch: int = 0
    num_epochs: int = 1
    number: int = 0
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

    def unrotated_logits(self) -> tuple[Tensor, Tensor]:
        """Return the student's and the teacher's class logits of the unrotated images, [B, N] each, in float32 or wider."""
        return widened(self.student_logits[:, 0]), widened(self.required_teacher_logits()[:, 0])

    def unrotated_maps(self) -> list[tuple[Tensor, Tensor]]:
        """Return (student's, teacher's) maps of every stage for the unrotated images, [B, C_l, H_l, W_l], in float32 or wider."""
        return [(widened(s[:, 0]), widened(t[:, 0])) for s, t in zip(self.student_maps, self.teacher_maps, strict=True)]

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return the student's and the teacher's embeddings of all rotations, [B, M, C] each, in float32 or wider."""
        assert self.student_embedding is not None
        assert self.teacher_embedding is not None
        return widened(self.student_embedding), widened(self.teacher_embedding)

    def unrotated_embeddings(self) -> tuple[Tensor, Tensor]:
        """Return the student's and the teacher's embeddings of the unrotated images, [B, C] each, in float32 or wider."""
        student, teacher = self.embeddings()
        return student[:, 0], teacher[:, 0]

    def authors_epoch(self, *, first: int) -> float:
        """Return the epoch, counted from `first`, on the authors' schedule of 240: a published warm-up keeps its share of any training."""
        return (self.epoch + first) * AUTHORS_EPOCHS / self.num_epochs


@dataclass(frozen=True, kw_only=True, slots=True)
class TermContext:
    """What a term's module is built from: the shapes of student and teacher, the training labels, the trial's seed."""

    student_maps: tuple[tuple[int, int, int], ...]  # (C_l, H_l, W_l) per stage
    teacher_maps: tuple[tuple[int, int, int], ...]
    student_width: int  # of the embedding
    teacher_width: int
    train_labels: Tensor  # [n], on the CPU
    seed: int


class TermModule(nn.Module):
    """A term with parameters or memory: `forward` is its value; `pretrain` is its value in the pre-training, where it declares one."""

    def forward(self, step: Step) -> Tensor:
        raise NotImplementedError

    def pretrain(self, step: Step) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretraining:
    """A stage before the training proper: `epochs` of the authors' 240 (in proportion for others), `milestones` within it.

    `trains_student`: the student's backbone is trained, too (otherwise it stays as it is); `is_all`: the term has no part in the
    training proper.
    """

    epochs: int
    milestones: tuple[int, ...] = ()
    trains_student: bool
    is_all: bool

    def schedule(self, optim: OptimConfig) -> OptimConfig:
        """Return the optimizer's settings in this stage of a training with `optim`."""
        share = optim.epochs / AUTHORS_EPOCHS
        milestones = tuple(round(milestone * share) for milestone in self.milestones)
        return replace(optim, epochs=max(1, round(self.epochs * share)), milestones=milestones, warmup_epochs=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerm:
    """A named part of an objective: the function, and what it reads, so that nothing else is computed.

    `is_rotated`: reads rotated images; `reads_branches`: reads auxiliary classifiers (of the teacher, too, if `reads_teacher`);
    `reads_features`: reads maps or embeddings of student and teacher. A term with parameters or memory has `build` instead of
    `compute`. `library` is what it needs beyond this package's dependencies.
    """

    compute: Callable[[Step], Tensor] | None = None
    build: Callable[[TermContext], TermModule] | None = None
    is_rotated: bool
    reads_branches: bool
    reads_teacher: bool
    reads_features: bool = False
    library: str = ""
    pretraining: Pretraining | None = None


LOSS_TERMS: Registry[LossTerm] = Registry("loss term")
T = TypeVar("T", bound=TermModule)


def loss_term(
    name: str, *, is_rotated: bool, reads_branches: bool, reads_teacher: bool, reads_features: bool = False, library: str = ""
) -> Callable[[Callable[[Step], Tensor]], Callable[[Step], Tensor]]:
    """Return a decorator that registers a function of a `Step` as the term `name`."""

    def file_term(compute: Callable[[Step], Tensor]) -> Callable[[Step], Tensor]:
        LOSS_TERMS.register(name)(
            LossTerm(
                compute=compute,
                is_rotated=is_rotated,
                reads_branches=reads_branches,
                reads_teacher=reads_teacher,
                reads_features=reads_features,
                library=library,
            )
        )
        return compute

    return file_term


def feature_module(
    name: str, *, is_rotated: bool = False, library: str = "", pretraining: Pretraining | None = None
) -> Callable[[type[T]], type[T]]:
    """Return a decorator that registers a `TermModule`, made from a `TermContext`, as the term `name`; it reads features of both."""

    def file_term(module: type[T]) -> type[T]:
        LOSS_TERMS.register(name)(
            LossTerm(
                build=module,
                is_rotated=is_rotated,
                reads_branches=False,
                reads_teacher=True,
                reads_features=True,
                library=library,
                pretraining=pretraining,
            )
        )
        return module

    return file_term


def joint_labels(labels: Tensor, num_rotations: int) -> Tensor:
    """Return the self-supervised augmented labels k = y*M + j, [B, M] (section 3.1 of the paper)."""
    return labels[:, None] * num_rotations + torch.arange(num_rotations, device=labels.device)


def softened_kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || student) of the softened softmaxes of logits [..., K], a scalar: mean over all leading axes.

    Computed in float32 or wider.
    """
    width = teacher_logits.shape[-1]
    teacher = (widened(teacher_logits).reshape(-1, width) / temperature).log_softmax(dim=1)
    student = (widened(student_logits).reshape(-1, width) / temperature).log_softmax(dim=1)
    return kl_of_softened(teacher, student, temperature)


def kl_of_softened(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || student) of logarithms of softened distributions [rows, K], a scalar: mean over the rows."""
    return torch.nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of logits [..., K] with labels [...], a scalar: mean over all axes of the labels; in float32 or wider."""
    return torch.nn.functional.cross_entropy(widened(logits).reshape(-1, logits.shape[-1]), labels.reshape(-1))


def widened(values: Tensor) -> Tensor:
    """Return `values` in float32, or as they are in float64."""
    return values if values.dtype == torch.float64 else values.float()


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A weighted sum of loss terms; calling it gives `(total, {name: unweighted value})`.

    `modules` are the parameters and memories of the terms that have some (`with_modules`); with `is_pretraining`, the terms' values are
    those of the stage before the training proper. A stage of an objective that is rotated is so, too (`is_part_of_rotated`): all stages
    ask one teacher.
    """

    terms: tuple[tuple[str, float], ...]
    temperature: float
    branch_weights: tuple[float, ...] | None
    modules: nn.ModuleDict = field(default_factory=nn.ModuleDict, compare=False)
    is_pretraining: bool = False
    is_part_of_rotated: bool = False

    @classmethod
    def from_config(cls, config: ObjectiveConfig) -> Self:
        """Raises KeyError (listing the known terms) where a name is unknown, ValueError where a term's library is not installed."""
        for name, _ in config.terms:
            library = LOSS_TERMS[name].library
            if library and find_spec(library) is None:
                raise ValueError(f"the loss term {name} needs {library}: pip install '.[{EXTRAS[library]}]'")
        return cls(terms=config.terms, temperature=config.temperature, branch_weights=config.branch_weights)

    def with_modules(self, context: Callable[[], TermContext]) -> Self:
        """Return the objective with its terms' modules, initialized from (term, seed) only; `context` is asked if a term reads maps."""
        if not self.feature_terms:
            return self
        facts = context()
        names = [name for name in self.names if LOSS_TERMS[name].build is not None]
        return replace(self, modules=nn.ModuleDict({name: build_module(name, facts) for name in names}))

    def training_proper(self) -> Self:
        """Return the objective without the terms that are for the pre-training only."""
        kept = tuple(item for item in self.terms if not is_for_pretraining_only(item[0]))
        return self if kept == self.terms else replace(self, terms=kept, is_part_of_rotated=self.is_rotated)

    def pretraining(self) -> tuple[Pretraining, Self] | None:
        """Return the stage before the training proper and its objective; None where no term declares one.

        Raises:
            ValueError: more than one term declares one.
        """
        staged = [(name, weight) for name, weight in self.terms if LOSS_TERMS[name].pretraining is not None]
        if not staged:
            return None
        if len(staged) > 1:
            raise ValueError(f"terms is {self.names}; accepted: at most one that is pre-trained")
        stage = LOSS_TERMS[staged[0][0]].pretraining
        assert stage is not None
        return stage, replace(self, terms=tuple(staged), is_pretraining=True, is_part_of_rotated=self.is_rotated)

    @property
    def names(self) -> tuple[str, ...]:
        """The terms' names, in the order they are reported."""
        return tuple(name for name, _ in self.terms)

    @property
    def is_rotated(self) -> bool:
        """Whether any term reads rotated images; otherwise a step sees the M = 1 unrotated view only."""
        return self.is_part_of_rotated or any(LOSS_TERMS[name].is_rotated for name in self.names)

    @property
    def reads_student(self) -> bool:
        """Whether any term reads the trained network; a pre-training may train a term's own parameters on the teacher alone."""
        stages = [LOSS_TERMS[name].pretraining for name in self.names] if self.is_pretraining else []
        return not stages or any(stage is not None and stage.trains_student for stage in stages)

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

    @property
    def feature_terms(self) -> tuple[str, ...]:
        """The terms that read maps or embeddings of student and teacher."""
        return tuple(name for name in self.names if LOSS_TERMS[name].reads_features)

    def __call__(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        values = {name: self._value(name, step) for name in self.names}
        weighted = [values[name] if weight == 1 else values[name] * weight for name, weight in self.terms]
        return torch.stack(weighted).sum() if len(weighted) > 1 else weighted[0], values

    def _value(self, name: str, step: Step) -> Tensor:
        compute = LOSS_TERMS[name].compute
        if compute is not None:
            return compute(step)
        module = self.modules[name]
        assert isinstance(module, TermModule)
        return module.pretrain(step) if self.is_pretraining else module(step)


def is_for_pretraining_only(name: str) -> bool:
    """Return whether a term has no part in the training proper."""
    stage = LOSS_TERMS[name].pretraining
    return stage is not None and stage.is_all


def build_module(name: str, context: TermContext) -> TermModule:
    """Return the module of a term on the CPU, initial weights from (name, seed) only; the global generator is left as it is."""
    build = LOSS_TERMS[name].build
    assert build is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(name, context.seed))
        return build(context)
