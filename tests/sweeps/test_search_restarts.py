"""Studies whose driver died at a bad moment, or whose trials failed and are tried again by a later command."""

import resource
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from hsakd.config import TrialConfig
from hsakd.records import EpochMetrics, TrialRecord
from hsakd.store import ResultStore
from sweeps.check_study import differences
from sweeps.cli import SweepOptions
from sweeps.run_pairs import check_studies
from sweeps.schedule import Schedule
from sweeps.search import PairSearch, open_storage, repair_journal
from sweeps.worklist import PAPER_SETTING, known_work

PAIR = "resnet14-resnet8_half"


def schedule_of(out: Path, trials: int = 3, *, epochs: int = 2, pairs: tuple[str, ...] = (PAIR,), **changes: object) -> Schedule:
    store = ResultStore(out)
    base = SweepOptions(out=out, preset="digits", pairs=pairs, methods=("HSAKD-tuned",), trials=trials, epochs=epochs)
    options = replace(base, **changes)  # type: ignore[arg-type]

    def finished(config: TrialConfig) -> TrialRecord | None:
        record = store.read_trial(config.trial_id)
        return record if record is not None and record.status != "failed" else None

    return Schedule(options, store, finished)


def end(schedule: Schedule, config: TrialConfig, status: str = "complete") -> None:
    """Report a trial's epochs and its end, as the engine does."""
    value = int(config.trial_id[:4], 16) % 1000 / 10
    epochs = [
        EpochMetrics(trial_id=config.trial_id, epoch=epoch, learning_rate=0.1, loss=1.0, loss_terms={"task": 1.0}, top1_val=value)
        for epoch in range(2)
    ]
    for row in epochs:
        schedule.on_epoch(config.trial_id, row)
    record = TrialRecord.of(config, status=status, epochs_done=2, top1_val=value)
    schedule.store.write_trial(record, epochs)
    schedule.complete(config.trial_id, record)


def started(schedule: Schedule) -> TrialConfig:
    config = schedule.next_trial()
    assert config is not None
    return config


def drain(schedule: Schedule) -> None:
    while (config := schedule.next_trial()) is not None:
        end(schedule, config)


def searched(schedule: Schedule) -> list[TrialConfig]:
    return [TrialConfig.from_json(entry.config_json) for entry in schedule.plan() if entry.purpose == "search" and entry.trial_id]


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("number", [0, 1])
def test_a_trial_that_the_driver_died_in_asking_for_is_asked_for_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, after: int
) -> None:
    """Dead after `after` of the parameters of trial `number`; trial 0 is the paper's setting, without which nothing is confirmed."""
    schedule, suggested = schedule_of(tmp_path), []
    suggest = optuna.Trial._suggest

    def die(trial: optuna.Trial, name: str, distribution: optuna.distributions.BaseDistribution) -> object:
        if trial.number == number and len(suggested) == after:
            raise KeyboardInterrupt
        suggested.extend([name] * (trial.number == number))
        return suggest(trial, name, distribution)

    monkeypatch.setattr(optuna.Trial, "_suggest", die)
    with pytest.raises(KeyboardInterrupt):
        drain(schedule)
    monkeypatch.undo()
    again = schedule_of(tmp_path)
    drain(again)
    assert again.is_complete
    assert len(set(searched(again))) == 3
    search = again.searches[PAIR]
    assert search.setting(0) == PAPER_SETTING
    assert [trial.state for trial in search.study.get_trials()] == [TrialState.COMPLETE] * 3
    assert differences(ResultStore(tmp_path)) == []


def test_a_failed_search_trial_that_a_later_command_completes_counts_in_the_study(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path)
    ended = 0
    while (config := schedule.next_trial()) is not None:
        is_searched = config.role == "student" and config.data.validation_fraction > 0
        ended += is_searched
        end(schedule, config, "failed" if is_searched and ended == 2 else "complete")
    assert not schedule.is_complete
    assert [trial.state.name for trial in schedule.searches[PAIR].study.get_trials()] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert differences(ResultStore(tmp_path)) == []
    for _ in range(2):  # the second time there is nothing to do, and nothing is told twice
        again = schedule_of(tmp_path)
        drain(again)
        assert again.is_complete
        assert len(searched(again)) == 3
        trials = again.searches[PAIR].study.get_trials()
        assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
        assert trials[3].params == trials[1].params
        assert len(trials[3].intermediate_values) == 2
        assert differences(ResultStore(tmp_path)) == []


def test_a_driver_that_dies_between_a_record_and_its_telling_tells_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = schedule_of(tmp_path)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PairSearch, "tell", die)
    with pytest.raises(KeyboardInterrupt):
        drain(schedule)
    monkeypatch.undo()
    assert [trial.state.name for trial in schedule.searches[PAIR].study.get_trials()] == ["RUNNING"]
    again = schedule_of(tmp_path)
    drain(again)
    assert [trial.state.name for trial in again.searches[PAIR].study.get_trials()] == ["COMPLETE"] * 3
    assert differences(ResultStore(tmp_path)) == []


def test_a_line_that_a_full_disk_cuts_is_taken_back(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path)
    journal = ResultStore(tmp_path).journal_path
    whole = journal.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            schedule.searches[PAIR].ask()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.read_bytes() == whole
    drain(schedule)  # the same driver goes on writing
    assert schedule.is_complete
    assert schedule_of(tmp_path).is_complete
    assert differences(ResultStore(tmp_path)) == []


def test_a_lock_that_a_killed_driver_left_on_the_journal_does_not_hold_the_next_one_up(tmp_path: Path) -> None:
    drain(schedule_of(tmp_path))
    journal = ResultStore(tmp_path).journal_path
    lock = journal.with_name(f"{journal.name}.lock")
    lock.symlink_to("/elsewhere/studies.journal")
    assert repair_journal(journal) == 0
    study = optuna.load_study(study_name=PAIR, storage=open_storage(journal))
    study.set_user_attr("written", True)
    assert not lock.is_symlink()


def test_the_papers_setting_is_not_pruned_under_another_number_and_no_repeat_of_a_small_space_is_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "space.toml").write_text('temperature = 3\nkl_q = 1\nkl_p = 1\nplacement = "all"\n')
    schedule = schedule_of(tmp_path / "out", space=tmp_path / "space.toml", pruner="median")
    end(schedule, started(schedule))
    while schedule.next_trial() is not None:
        pass
    [paper] = searched(schedule)  # what is asked for meanwhile is the trial that runs
    assert len(schedule.numbers[paper.trial_id]) == 3
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda _: True)
    row = EpochMetrics(trial_id=paper.trial_id, epoch=0, learning_rate=0.1, loss=1.0, loss_terms={}, top1_val=1.0)
    assert not schedule.on_epoch(paper.trial_id, row)
    record = TrialRecord.of(paper, status="complete", epochs_done=1, top1_val=1.0)
    schedule.store.write_trial(record, [row])
    schedule.complete(paper.trial_id, record)
    assert differences(schedule.store) == []


def test_a_study_is_not_gone_on_with_under_other_options(tmp_path: Path) -> None:
    first = schedule_of(tmp_path)
    end(first, started(first))
    while not first.searches[PAIR].paper_trial_id:  # asked for, and not yet ended
        started(first)
    accepted = "; accepted: the options it was begun with, or another --out"
    with pytest.raises(ValueError, match=f"whose study {PAIR} was begun with other options{accepted}"):
        schedule_of(tmp_path, epochs=5)
    drain(schedule_of(tmp_path, trials=4))  # more trials are the same trainings
    with pytest.raises(ValueError, match=rf"\(.*optim.epochs was 2, is 5; .*\){accepted}"):
        schedule_of(tmp_path, epochs=5)
    other = "resnet14-resnet8"
    with pytest.raises(ValueError, match="other options"):
        schedule_of(tmp_path, epochs=5, pairs=(other, PAIR))
    again = schedule_of(tmp_path, trials=4, pairs=(other, PAIR))  # the study that the refused command created is bound to nothing
    drain(again)
    assert again.is_complete
    assert differences(ResultStore(tmp_path)) == []


@pytest.mark.parametrize("content", [b"", b"junk\n"])
def test_a_journal_that_lost_its_trials_differs_from_the_records(tmp_path: Path, content: bytes) -> None:
    schedule = schedule_of(tmp_path)
    drain(schedule)
    schedule.store.write_plan(schedule.plan())
    assert differences(schedule.store) == []
    lines = schedule.store.journal_path.read_bytes().splitlines(keepends=True)
    schedule.store.journal_path.write_bytes(content)
    assert differences(schedule.store) == [f"{PAIR} is in the plan, but not a study of the journal"]
    schedule.store.journal_path.write_bytes(b"".join(lines[:2]))  # the study and its direction
    assert differences(schedule.store) == [f"{PAIR} lacks trial {config.trial_id}, which is complete" for config in by_id(schedule)]


def by_id(schedule: Schedule) -> list[TrialConfig]:
    return sorted(searched(schedule), key=lambda config: config.trial_id)


def test_a_study_that_nothing_was_asked_of_is_bound_to_no_space(tmp_path: Path) -> None:
    for name, temperature in (("one.toml", "[1, 5]"), ("two.toml", "[1, 6]")):
        (tmp_path / name).write_text(f"temperature = {temperature}\n")
    schedule_of(tmp_path / "out", space=tmp_path / "one.toml")
    schedule = schedule_of(tmp_path / "out", space=tmp_path / "two.toml")
    drain(schedule)
    with pytest.raises(ValueError, match="was begun with the space"):
        schedule_of(tmp_path / "out", space=tmp_path / "one.toml")


def test_a_dry_run_refuses_what_the_command_would_and_leaves_the_journal_alone(tmp_path: Path) -> None:
    options = SweepOptions(out=tmp_path, preset="digits", pairs=("resnet14-resnet8_half",), methods=("HSAKD-tuned",), epochs=1)
    schedule = Schedule(options, ResultStore(tmp_path), lambda _: None)
    search = schedule.searches["resnet14-resnet8_half"]
    schedule._plan_search(search, search.ask())
    journal = ResultStore(tmp_path).journal_path
    before = journal.read_bytes()
    check_studies(options, known_work(options))
    other = replace(options, epochs=2)
    with pytest.raises(ValueError, match="was begun with other options"):
        check_studies(other, known_work(other))
    assert journal.read_bytes() == before
