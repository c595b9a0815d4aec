"""The schedule without Ray: order, requirements, search phases, failures."""

from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from hsakd.config import TrialConfig
from hsakd.records import TrialRecord
from hsakd.store import ResultStore
from sweeps.check_study import differences
from sweeps.cli import SweepOptions
from sweeps.schedule import Schedule
from sweeps.search import repair_journal
from sweeps.worklist import PAPER_SETTING

PAIR = "resnet14-resnet8_half"


def options(out: Path, **changes: object) -> SweepOptions:
    return replace(SweepOptions(out=out, preset="digits", pairs=(PAIR,), trials=3), **changes)  # type: ignore[arg-type]


def schedule_of(out: Path, **changes: object) -> Schedule:
    store = ResultStore(out)
    return Schedule(options(out, **changes), store, lambda config: store.read_trial(config.trial_id))


def record(config: TrialConfig, accuracy: float = 50.0, status: str = "complete") -> TrialRecord:
    return TrialRecord(
        trial_id=config.trial_id,
        status=status,
        role=config.role,
        network=config.network,
        dataset=config.data.dataset,
        seed=config.seed,
        num_epochs=config.optim.epochs,
        top1_val=accuracy if status == "complete" else None,
        config_json=config.to_json(),
    )


def run_all(schedule: Schedule, store: ResultStore, stop_after: int | None = None) -> list[TrialConfig]:
    """Run everything one at a time, on paper."""
    ran: list[TrialConfig] = []
    while len(ran) != stop_after and (config := schedule.next_trial()) is not None:
        assert all(needed.trial_id in schedule.done for needed in config.requirements())
        ran.append(config)
        row = record(config, accuracy=40 + config.objective.temperature)
        store.write_trial(row, [])
        schedule.complete(config.trial_id, row)
    return ran


def test_every_trial_runs_once_and_after_its_requirements(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path)
    ran = run_all(schedule, ResultStore(tmp_path))
    assert len({config.trial_id for config in ran}) == len(ran)
    assert schedule.is_complete
    assert {entry.purpose for entry in schedule.plan()} == {"backbone", "teacher", "report", "search", "confirm"}
    assert all(entry.trial_id for entry in schedule.plan())


def test_a_second_command_has_nothing_to_do(tmp_path: Path) -> None:
    run_all(schedule_of(tmp_path), ResultStore(tmp_path))
    again = schedule_of(tmp_path)
    assert again.is_complete
    assert again.next_trial() is None


def test_the_first_candidate_is_the_papers_setting_and_the_study_agrees_with_the_records(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path)
    run_all(schedule, ResultStore(tmp_path))
    search = schedule.searches[PAIR]
    assert search.setting(0) == PAPER_SETTING
    assert [trial.state for trial in search.study.get_trials()] == [TrialState.COMPLETE] * 3
    assert differences(ResultStore(tmp_path)) == []


def test_searches_and_confirmations_never_see_the_whole_train_set(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path)
    run_all(schedule, ResultStore(tmp_path))
    for entry in schedule.plan():
        config = TrialConfig.from_json(entry.config_json)
        held_out = entry.purpose in ("search", "confirm") or entry.method == "search"
        assert (config.data.validation_fraction > 0) == held_out
        assert config.teacher is None or config.teacher.data == config.data


def test_a_driver_that_dies_at_any_time_leaves_nothing_to_repeat(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    ran = []
    for _ in range(60):
        schedule = schedule_of(tmp_path)
        ran += run_all(schedule, store, stop_after=1)
        if schedule.next_trial() is None:
            break
    assert schedule_of(tmp_path).is_complete
    assert len({config.trial_id for config in ran}) == len(ran)
    assert len(schedule_of(tmp_path).searches[PAIR].study.get_trials()) == 3
    assert differences(store) == []


def test_a_failed_teacher_blocks_only_its_students(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path, methods=("Student", "HSAKD*"))
    while (config := schedule.next_trial()) is not None:
        schedule.complete(config.trial_id, record(config, status="failed" if config.role == "teacher" else "complete"))
    assert schedule.is_stuck
    assert not schedule.is_complete
    assert len(schedule.done) == 3


def test_a_cut_last_line_of_the_journal_is_dropped(tmp_path: Path) -> None:
    journal = tmp_path / "studies.journal"
    journal.write_bytes(b'{"a": 1}\n{"b"')
    assert repair_journal(journal) == 4
    assert journal.read_bytes() == b'{"a": 1}\n'
    assert repair_journal(journal) == 0


@pytest.mark.parametrize("damaged", [b'{"b\n', b"\x00\x00\x00\n", b'{"b": 1}\xff\n'])
def test_a_damaged_last_line_of_the_journal_is_dropped_before_anything_is_appended(tmp_path: Path, damaged: bytes) -> None:
    journal = tmp_path / "studies.journal"
    journal.write_bytes(b'{"a": 1}\n' + damaged)
    assert repair_journal(journal) == len(damaged)
    assert journal.read_bytes() == b'{"a": 1}\n'


def test_a_student_whose_teacher_lost_its_weights_waits_for_it(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    lost: set[str] = set()
    schedule = Schedule(
        options(tmp_path, methods=("HSAKD*",), seeds=1), store, lambda c: None if c.trial_id in lost else store.read_trial(c.trial_id)
    )
    teacher = schedule.next_trial()
    assert teacher is not None
    store.write_trial(record(teacher), [])
    schedule.complete(teacher.trial_id, record(teacher))
    student = schedule.next_trial()
    assert student is not None
    lost.add(teacher.trial_id)
    schedule.complete(student.trial_id, record(student, status="failed"))
    assert schedule.next_trial() == teacher
    lost.clear()
    schedule.complete(teacher.trial_id, record(teacher))
    assert schedule.next_trial() == student
    lost.add(teacher.trial_id)
    schedule.complete(student.trial_id, record(student, status="failed"))
    assert schedule.failed == {student.trial_id}
