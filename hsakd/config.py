"""A trial is its configuration: frozen dataclasses, and the hash that names a trial.

Every field here can change the numbers of a training; nothing else is here (no path, no GPU count, no worker count). The device is not a
field either: the same trial on another GPU is the same trial, and the record says where it ran.
"""

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar, cast

C = TypeVar("C", bound="DataclassConfig")
DETECTION_DATASET = "voc0712"
DETECTOR_BACKBONES = ("resnet18_imagenet", "resnet34_imagenet", "resnet50_imagenet")  # those that torchvision has, too
STREAMED_DATASETS = ("imagenet", "imagefolder")  # image files that need not fit into memory
NUM_SEEDS = 2**32  # scikit-learn's splits take no more


class UnknownField(ValueError):
    """A configuration has a field that this version does not know."""


class DataclassConfig:
    """What all configurations share: a JSON form that reads back to an equal object."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready values (tuples become lists)."""
        return cast(dict[str, Any], _plain(self))

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        """Return the configuration that `to_dict` wrote.

        Raises:
            ValueError: a field is unknown (UnknownField), missing or of another kind.
        """
        hints = _hints_of(cast(Any, cls))
        if unknown := sorted(values.keys() - hints.keys()):
            raise UnknownField(f"{cls.__name__}: unknown field {unknown[0]!r}; known: {', '.join(sorted(hints))}")
        try:
            return cls(**{name: _restore(name, hints[name], value) for name, value in values.items()})
        except TypeError as error:
            raise ValueError(f"{cls.__name__}: {error}") from error


@functools.cache
def _fields_of(kind: Any) -> tuple[tuple[str, Any], ...]:
    """Return the names and defaults of a configuration's fields; plans of ten thousand trials ask often."""
    return tuple(
        (item.name, item.default if item.default_factory is dataclasses.MISSING else item.default_factory())
        for item in dataclasses.fields(kind)
    )


_hints_of = functools.cache(typing.get_type_hints)


def _plain(value: Any) -> Any:
    """Turn configurations into tables and tuples into lists, as JSON has them."""
    if isinstance(value, DataclassConfig):
        return {name: _plain(getattr(value, name)) for name, _ in _fields_of(cast(Any, type(value)))}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _restore(name: str, hint: Any, value: Any) -> Any:
    """Turn the JSON value of field `name` into what the annotation `hint` asks for; raises ValueError where it is of another kind."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if hint in KINDS:
        is_kind, accepted = KINDS[hint]
        _require(is_kind(value), name, value, accepted)
        return value
    if isinstance(hint, type) and issubclass(hint, DataclassConfig):
        _require(isinstance(value, dict), name, value, f"a table, {hint.__name__}")
        return hint.from_dict(value)
    if typing.get_origin(hint) is tuple:
        _require(isinstance(value, list), name, value, "a list")
        item_hints = typing.get_args(hint)
        if len(item_hints) == 2 and item_hints[1] is Ellipsis:
            return tuple(_restore(name, item_hints[0], item) for item in value)
        _require(len(value) == len(item_hints), name, value, f"{len(item_hints)} values")
        return tuple(_restore(name, item_hint, item) for item_hint, item in zip(item_hints, value, strict=True))
    return value


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {  # numbers stay as they are, 1 or 1.0: a trial's id is of the text
    bool: (lambda value: type(value) is bool, "true or false"),
    int: (lambda value: type(value) is int, "a whole number"),
    float: (_is_number, "a finite number"),
    str: (lambda value: type(value) is str, "a text"),
}


def _require(condition: bool, name: str, value: object, accepted: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value!r}; accepted: {accepted}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderConfig(DataclassConfig):
    """What a user's image folder held when the trial was planned, so that other images are another trial; and how they are augmented.

    `sha256` is the digest of all images and their paths; random crops of images padded by `padding` zero pixels, mirrored with `has_flip`.
    """

    sha256: str
    num_classes: int
    num_train_images: int
    padding: int
    has_flip: bool

    def __post_init__(self) -> None:
        _require(self.num_classes >= 2, "num_classes", self.num_classes, "2 or more")
        _require(self.padding >= 0, "padding", self.padding, "0 or more pixels")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(DataclassConfig):
    """Which images a trial sees.

    `train_subset` keeps that many training images, stratified (None: all); `few_shot_ratio` then applies the authors' split rule (Table 5);
    `validation_fraction` of what is left is held out, stratified, for selection (0: none). `image_size` is the side in pixels after
    resizing (None: as stored). `folder` describes the images of data set "imagefolder". `augmentation` "resized_crop" (linear probes)
    takes random crops of the stored images and resizes each to `image_size`, instead of shifting and mirroring resized ones; "imagenet"
    does so with image files of any size, read again in every epoch, and evaluates on the middle of the resized image.
    """

    dataset: str
    image_size: int | None = None
    train_subset: int | None = None
    few_shot_ratio: float = 1.0
    validation_fraction: float = 0.0
    split_seed: int = 0
    folder: FolderConfig | None = None
    augmentation: Literal["shift", "resized_crop", "imagenet"] = "shift"

    def __post_init__(self) -> None:
        _require(
            self.augmentation in ("shift", "resized_crop", "imagenet"), "augmentation", self.augmentation, "shift, resized_crop, imagenet"
        )
        _require(
            self.augmentation != "imagenet" or (self.dataset in STREAMED_DATASETS and self.image_size is not None),
            "augmentation",
            self.augmentation,
            f"imagenet with the data sets {', '.join(STREAMED_DATASETS)} and an image_size",
        )
        _require(
            (self.dataset == "imagefolder") == (self.folder is not None),
            "folder",
            self.folder,
            "the description of an image folder with the data set imagefolder, None with others",
        )
        _require(self.image_size is None or self.image_size >= 8, "image_size", self.image_size, "8 or more pixels")
        _require(self.train_subset is None or self.train_subset > 0, "train_subset", self.train_subset, "a positive number of images")
        _require(0 < self.few_shot_ratio <= 1, "few_shot_ratio", self.few_shot_ratio, "above 0, at most 1")
        _require(0 <= self.validation_fraction < 1, "validation_fraction", self.validation_fraction, "0 or more, below 1")
        _require(0 <= self.split_seed < NUM_SEEDS, "split_seed", self.split_seed, f"0 or more, below {NUM_SEEDS}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig(DataclassConfig):
    """SGD and its step schedule; the defaults are the authors' CIFAR-100 protocol.

    `epochs` 0 is for trials whose weights are imported. The learning rate is multiplied by `gamma` when the 0-based epoch reaches each of
    `milestones`; `batch_size` counts images before rotation. `batch_shards` equal parts of each batch have batch statistics of their own
    (the running ones follow the first part), as in data-parallel training without synchronized BN, however many processes share them.
    """

    epochs: int = 240
    batch_size: int = 64
    learning_rate: float = 0.05
    milestones: tuple[int, ...] = (150, 180, 210)
    gamma: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    warmup_epochs: int = 0
    batch_shards: int = 1

    def __post_init__(self) -> None:
        is_divisor = self.batch_shards >= 1 and self.batch_size % self.batch_shards == 0
        _require(is_divisor, "batch_shards", self.batch_shards, f"a divisor of batch_size, {self.batch_size}")
        _require(self.epochs >= 0, "epochs", self.epochs, "0 or more")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more images")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
        _require(list(self.milestones) == sorted(self.milestones), "milestones", self.milestones, "rising epochs")
        _require(self.warmup_epochs >= 0, "warmup_epochs", self.warmup_epochs, "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig(DataclassConfig):
    """Named, weighted loss terms and what they share.

    `terms` are (name, weight) in the order they are reported; `branch_weights` (None: all 1) has one weight per distilled auxiliary
    classifier, in the order of `TrialConfig.taps`, and multiplies the branch sums of `ce_q` and `kl_q`.
    """

    terms: tuple[tuple[str, float], ...] = (("task", 1.0),)
    temperature: float = 3.0
    branch_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        names = [name for name, _ in self.terms]
        _require(len(names) > 0 and len(set(names)) == len(names), "terms", names, "one or more different names")
        _require(all(weight >= 0 for _, weight in self.terms), "terms", self.terms, "weights of 0 or more")
        _require(self.temperature > 0, "temperature", self.temperature, "above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class NumericsConfig(DataclassConfig):
    """How the arithmetic is done: every switch that may change the last digits.

    `teacher_predictions` "bank" keeps the teacher's answers in `bank_dtype` ("live" asks it anew each step). `channels_last` None takes
    the measured choice of the network's family on CPUs, and is off elsewhere. `cudnn_benchmark` lets cuDNN time its algorithms and take the
    fastest, which may be another in each process. `initialization` "authors" reproduces their initial weights family by family.
    """

    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    teacher_predictions: Literal["live", "bank"] = "live"
    bank_dtype: Literal["float16", "float32"] = "float16"
    channels_last: bool | None = None
    compile: bool = False
    tf32: bool = False
    deterministic: bool = False
    initialization: Literal["he", "authors"] = "he"
    cudnn_benchmark: bool = False

    def __post_init__(self) -> None:
        _require(self.precision in ("float32", "bfloat16", "float64"), "precision", self.precision, "float32, bfloat16, float64")
        _require(self.teacher_predictions in ("live", "bank"), "teacher_predictions", self.teacher_predictions, "live, bank")
        _require(self.bank_dtype in ("float16", "float32"), "bank_dtype", self.bank_dtype, "float16, float32")
        _require(self.initialization in ("he", "authors"), "initialization", self.initialization, "he, authors")
        _require(not (self.cudnn_benchmark and self.deterministic), "cudnn_benchmark", self.cudnn_benchmark, "False with deterministic")


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionConfig(DataclassConfig):
    """Faster R-CNN on a trained backbone; the defaults, with the schedule of `sweeps.detection`, are MMDetection's VOC 07+12 protocol.

    Images are resized to a shorter side of `shorter_side` pixels, or less where the longer one would exceed `longer_side`; training
    mirrors half of them. Of the backbone, BN and all but the last `trainable_layers` of stem and four stages stay as they are. The box
    head is trained on `sampled_proposals` of each image.
    """

    shorter_side: int = 600
    longer_side: int = 1000
    trainable_layers: int = 3
    sampled_proposals: int = 512

    def __post_init__(self) -> None:
        _require(self.shorter_side >= 32, "shorter_side", self.shorter_side, "32 or more pixels")
        _require(self.longer_side >= self.shorter_side, "longer_side", self.longer_side, f"at least shorter_side, {self.shorter_side}")
        _require(0 <= self.trainable_layers <= 5, "trainable_layers", self.trainable_layers, "0 to 5")
        _require(self.sampled_proposals >= 1, "sampled_proposals", self.sampled_proposals, "1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig(DataclassConfig):
    """One training: a baseline, a backbone, a teacher or a student; they differ only in `objective`, `taps`, `teacher` and `backbone`.

    `taps` are the 1-based stages that have an auxiliary classifier c_l (None: all of the network's, (): none). `teacher` is the trial whose
    final weights are distilled; `backbone` is the trial whose final backbone is loaded and frozen (the frozen teacher
    regime; with `taps` () a linear probe, which trains a new linear layer in place of the backbone's).
    `rotations` are the quarter turns that training feeds to rotated terms, of the `num_rotations` that joint labels distinguish (None:
    all of them; always with 0, the unrotated image): an ablation, whose joint classifiers, teacher and bank stay those of all turns.
    `imported_sha256` is the digest of a weights file: such a trial trains for 0 epochs and is evaluated as it is. `peer` is a network that
    is trained together with this one, each the other's teacher (online mutual distillation); the record is about `network`.
    `detection` makes the trial a detector on the backbone of `backbone`; its losses are Faster R-CNN's, not `objective`'s.
    """

    network: str
    data: DataConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    numerics: NumericsConfig = field(default_factory=NumericsConfig)
    taps: tuple[int, ...] | None = None
    num_rotations: int = 4
    seed: int = 0
    teacher: "TrialConfig | None" = None
    backbone: "TrialConfig | None" = None
    imported_sha256: str | None = None
    rotations: tuple[int, ...] | None = None
    peer: str | None = None
    detection: DetectionConfig | None = None

    def __post_init__(self) -> None:
        other = (self.teacher, self.backbone, self.imported_sha256, self.rotations)
        is_alone = all(value is None for value in other)
        _require(
            self.peer is None or is_alone, "peer", self.peer, "None where there is a teacher, a backbone, imported weights or rotations"
        )
        _require(
            self.detection is None
            or (self.backbone is not None and self.taps == () and self.numerics == NumericsConfig() and self.teacher is None),
            "detection",
            self.detection,
            "with a backbone's trial, no taps, no teacher and the default numerics only",
        )
        _require(
            self.detection is None or self.network in DETECTOR_BACKBONES,
            "network",
            self.network,
            f"{', '.join(DETECTOR_BACKBONES)} as a detector's backbone",
        )
        _require(1 <= self.num_rotations <= 4, "num_rotations", self.num_rotations, "1 to 4 quarter turns")
        _require(0 <= self.seed < NUM_SEEDS, "seed", self.seed, f"0 or more, below {NUM_SEEDS}")
        _require(
            self.taps is None or (list(self.taps) == sorted(set(self.taps)) and all(tap >= 1 for tap in self.taps)),
            "taps",
            self.taps,
            "rising stage numbers from 1",
        )
        turns = self.rotations
        _require(
            turns is None or (turns[:1] == (0,) and list(turns) == sorted(set(turns)) and turns[-1] < self.num_rotations),
            "rotations",
            turns,
            f"rising quarter turns from 0 below num_rotations, {self.num_rotations}",
        )
        _require(
            (self.optim.epochs == 0) == (self.imported_sha256 is not None),
            "epochs",
            self.optim.epochs,
            "1 or more, and 0 for imported weights only",
        )

    @property
    def role(self) -> Literal["baseline", "teacher", "student", "probe", "detector"]:
        """What the trial is for.

        `teacher` has labels on rotated images, `student` distils, `baseline` is the plain task, `probe` trains a new linear layer on the
        frozen backbone of a trial, possibly for another data set, `detector` trains a detector on it.
        """
        if self.detection is not None:
            return "detector"
        if self.teacher is not None or self.peer is not None:
            return "student"
        if self.backbone is not None and self.taps == ():
            return "probe"
        return "teacher" if self.backbone is not None or any(name == "ce_q" for name, _ in self.objective.terms) else "baseline"

    @property
    def teacher_regime(self) -> Literal["joint", "frozen", "plain", ""]:
        """How this trial (a teacher) or its teacher (a student) was trained; "plain" is a backbone without auxiliary classifiers."""
        subject = self.teacher if self.teacher is not None else self
        if subject.role == "teacher":
            return "joint" if subject.backbone is None else "frozen"
        return "plain" if self.teacher is not None else ""

    @property
    def trial_id(self) -> str:
        """16 hex digits: the hash of every field that is not at its default, so that a new, neutral field renames nothing."""
        text = json.dumps(_without_defaults(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def requirements(self) -> tuple["TrialConfig", ...]:
        """Return the trials whose final weights this one reads, directly."""
        return tuple(trial for trial in (self.teacher, self.backbone) if trial is not None)

    def to_json(self) -> str:
        """Return the resolved configuration as one line of JSON, every field present."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the configuration that `to_json` wrote; raises ValueError on anything else."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"TrialConfig: expected a table, got {values!r}")
        return cls.from_dict(values)


def _without_defaults(config: Any) -> Any:
    if isinstance(config, DataclassConfig):
        values = ((name, getattr(config, name), default) for name, default in _fields_of(cast(Any, type(config))))
        return {name: _without_defaults(value) for name, value, default in values if value != default}
    if isinstance(config, tuple):
        return [_without_defaults(item) for item in config]
    return config
