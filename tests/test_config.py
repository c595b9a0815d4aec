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
        (lambda: replace(STUDENT, teacher=None), r"teacher is None; accepted: a trial \(or a peer\) with the terms task\+kl_q"),
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
