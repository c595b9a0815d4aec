"""A trial is its configuration: round trips, stable ids, and what is refused."""

import dataclasses
import typing
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from hsakd.config import (
    DataclassConfig,
    DataConfig,
    DetectionConfig,
    FolderConfig,
    NumericsConfig,
    ObjectiveConfig,
    OptimConfig,
    TrialConfig,
)

DATA = DataConfig(dataset="digits", validation_fraction=0.1)
TEACHER = TrialConfig(network="resnet20", data=DATA, objective=ObjectiveConfig(terms=(("task", 1.0), ("ce_q", 1.0))))
STUDENT = TrialConfig(
    network="resnet8",
    data=DATA,
    teacher=TEACHER,
    taps=(1, 3),
    objective=ObjectiveConfig(terms=(("task", 1.0), ("kl_q", 0.3)), branch_weights=(1.0, 0.5)),
)


def test_json_round_trip_is_the_same_trial() -> None:
    assert TrialConfig.from_json(STUDENT.to_json()) == STUDENT


def test_ids_are_pinned_since_results_are_found_by_them() -> None:
    assert (TEACHER.trial_id, STUDENT.trial_id) == ("24d403ae14531569", "b1e934625509a61b")


OWN = TrialConfig(
    network="resnet8",
    data=DataConfig(
        dataset="imagefolder",
        image_size=32,
        folder=FolderConfig(sha256="0", num_classes=2, num_train_images=9, padding=4, has_flip=True),
    ),
)
IMPORTED = TrialConfig(network="resnet18_imagenet", data=DATA, optim=OptimConfig(epochs=0), imported_sha256="0")
DETECTOR = TrialConfig(network="resnet18_imagenet", data=DATA, backbone=IMPORTED, taps=(), detection=DetectionConfig())
OTHER_VALUES: dict[type[DataclassConfig], dict[str, object]] = {  # than those of the trials above
    FolderConfig: {"sha256": "1", "num_classes": 3, "num_train_images": 8, "padding": 3, "has_flip": False},
    DataConfig: {
        **{"dataset": "fashion_mnist", "image_size": 16, "train_subset": 100, "few_shot_ratio": 0.25, "validation_fraction": 0.2},
        **{"split_seed": 1, "folder": replace(OWN.data.folder, sha256="2"), "augmentation": "resized_crop"},  # type: ignore[type-var]
    },
    OptimConfig: {
        **{"epochs": 100, "batch_size": 32, "learning_rate": 0.1, "milestones": (50,), "gamma": 0.2, "momentum": 0.8, "nesterov": False},
        **{"weight_decay": 0.0, "warmup_epochs": 1, "batch_shards": 2},
    },
    ObjectiveConfig: {"terms": (("task", 1.0),), "temperature": 4.0, "branch_weights": (1.0, 1.0)},
    NumericsConfig: {
        **{"precision": "float64", "teacher_predictions": "bank", "bank_dtype": "float32", "channels_last": False, "compile": True},
        **{"tf32": True, "deterministic": True, "initialization": "authors", "cudnn_benchmark": True},
    },
    DetectionConfig: {"shorter_side": 500, "longer_side": 900, "trainable_layers": 2, "sampled_proposals": 256},
    TrialConfig: {
        **{
            "network": "resnet34_imagenet",
            "data": OWN.data,
            "optim": OptimConfig(gamma=0.5),
            "objective": ObjectiveConfig(temperature=5.0),
        },
        **{"numerics": NumericsConfig(tf32=True), "taps": (1, 2), "num_rotations": 3, "seed": 1, "teacher": replace(TEACHER, seed=2)},
        **{"backbone": replace(IMPORTED, seed=3), "imported_sha256": "1", "rotations": (0, 2), "peer": "resnet14", "detection": None},
    },
}


def kinds_of(kind: type[DataclassConfig]) -> set[type[DataclassConfig]]:
    """A configuration's class and those of all that it nests."""
    found, waiting = set[type[DataclassConfig]](), [kind]
    while waiting:
        found.add(waiting[-1])
        hints = typing.get_type_hints(waiting.pop()).values()
        options = {option for hint in hints for option in (hint, *typing.get_args(hint)) if isinstance(option, type)}
        waiting += [option for option in options - found if issubclass(option, DataclassConfig)]
    return found


def with_other(config: Any, kind: type[DataclassConfig], name: str) -> list[Any]:
    """The configurations that differ in one field `name` of a `kind`, at any depth, as far as they are valid."""
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        others = with_other(value, kind, name) if isinstance(value, DataclassConfig) else []
        if isinstance(config, kind) and field.name == name:
            others.append(OTHER_VALUES[kind][name])
        for other in others:
            with suppress(ValueError):
                found.append(replace(config, **{field.name: other}))
    return found


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, field.name) for kind in sorted(kinds_of(TrialConfig), key=str) for field in dataclasses.fields(kind)]
)
def test_every_field_that_changes_numbers_changes_the_id(kind: type[DataclassConfig], name: str) -> None:
    num_tried = 0
    for trial in (STUDENT, TEACHER, OWN, IMPORTED, DETECTOR):
        others = [other for other in with_other(trial, kind, name) if other != trial]
        assert len({trial.trial_id, *(other.trial_id for other in others)}) == 1 + len(others)
        num_tried += len(others)
    assert num_tried


def test_roles_and_regimes_follow_from_the_fields() -> None:
    baseline = TrialConfig(network="resnet20", data=DATA, taps=())
    frozen = replace(TEACHER, backbone=baseline)
    assert [trial.role for trial in (baseline, TEACHER, frozen, STUDENT)] == ["baseline", "teacher", "teacher", "student"]
    assert [trial.teacher_regime for trial in (baseline, TEACHER, frozen, STUDENT)] == ["", "joint", "frozen", "joint"]
    assert replace(STUDENT, teacher=baseline).teacher_regime == "plain"
    assert frozen.requirements() == (baseline,)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: OptimConfig(epochs=-1), "epochs is -1; accepted: 0 or more"),
        (lambda: TrialConfig(network="resnet8", data=DATA, optim=OptimConfig(epochs=0)), "epochs is 0; accepted: 1 or more"),
        (lambda: DataConfig(dataset="digits", validation_fraction=1.0), "validation_fraction is 1.0; accepted: 0 or more, below 1"),
        (lambda: ObjectiveConfig(temperature=0.0), "temperature is 0.0; accepted: above 0"),
        (lambda: ObjectiveConfig(terms=()), r"terms is \[\]; accepted: one or more"),
        (lambda: TrialConfig(network="resnet8", data=DATA, taps=(2, 1)), r"taps is \(2, 1\); accepted: rising"),
        (lambda: NumericsConfig(precision="int8"), "precision is 'int8'; accepted: float32"),  # type: ignore[arg-type]
        (lambda: NumericsConfig(cudnn_benchmark=True, deterministic=True), "cudnn_benchmark is True; accepted: False with deterministic"),
        (lambda: TrialConfig.from_json('{"network": "a", "colour": 1}'), "unknown field 'colour'; known: "),
        (lambda: replace(TEACHER, seed=2**32), "seed is 4294967296; accepted: 0 or more, below 4294967296"),
        (lambda: replace(DATA, split_seed=-1), "split_seed is -1; accepted: 0 or more, below 4294967296"),
        (lambda: TrialConfig.from_json("[]"), r"expected a table, got \[\]"),
    ],
)
def test_a_bad_value_is_one_sentence_naming_field_value_and_accepted(make: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("table", "field", "value", "sentence"),
    [
        ("optim", "epochs", 1.5, "epochs is 1.5; accepted: a whole number"),
        ("optim", "epochs", True, "epochs is True; accepted: a whole number"),
        ("optim", "milestones", "abc", "milestones is 'abc'; accepted: a list"),
        ("optim", "milestones", ["a"], "milestones is 'a'; accepted: a whole number"),
        ("optim", "weight_decay", "x", "weight_decay is 'x'; accepted: a finite number"),
        ("optim", "gamma", None, "gamma is None; accepted: a finite number"),
        ("optim", "momentum", float("inf"), "momentum is inf; accepted: a finite number"),
        ("optim", "nesterov", 1, "nesterov is 1; accepted: true or false"),
        ("objective", "terms", [["task"]], r"terms is \['task'\]; accepted: 2 values"),
        ("data", "dataset", 7, "dataset is 7; accepted: a text"),
        ("", "num_rotations", 2.5, "num_rotations is 2.5; accepted: a whole number"),
        ("", "network", 5, "network is 5; accepted: a text"),
        ("", "seed", float("inf"), "seed is inf; accepted: a whole number"),
        ("", "teacher", "resnet20", "teacher is 'resnet20'; accepted: a table, TrialConfig"),
    ],
)
def test_a_value_of_another_kind_is_one_sentence(table: str, field: str, value: object, sentence: str) -> None:
    values = STUDENT.to_dict()
    (values[table] if table else values)[field] = value
    with pytest.raises(ValueError, match=f"^{sentence}"):
        TrialConfig.from_dict(values)


def test_a_whole_number_may_stand_for_a_number_and_stays_what_it_was() -> None:
    config = replace(STUDENT, objective=replace(STUDENT.objective, temperature=4))
    assert TrialConfig.from_json(config.to_json()).trial_id == config.trial_id
