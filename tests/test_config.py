"""A trial is its configuration: round trips, stable ids, and what is refused."""

from dataclasses import replace

import pytest

from hsakd.config import DataConfig, NumericsConfig, ObjectiveConfig, OptimConfig, TrialConfig

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


@pytest.mark.parametrize(
    "other",
    [
        replace(STUDENT, seed=1),
        replace(STUDENT, rotations=(0, 2)),
        replace(STUDENT, taps=(1, 2)),
        replace(STUDENT, teacher=replace(TEACHER, seed=1)),
        replace(STUDENT, numerics=NumericsConfig(teacher_predictions="bank")),
        replace(STUDENT, data=replace(DATA, split_seed=1)),
    ],
)
def test_every_field_that_changes_numbers_changes_the_id(other: TrialConfig) -> None:
    assert other.trial_id != STUDENT.trial_id


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
        (lambda: TrialConfig.from_json("[]"), r"expected a table, got \[\]"),
    ],
)
def test_a_bad_value_is_one_sentence_naming_field_value_and_accepted(make: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()  # type: ignore[operator]
