"""What pruning saved and would have done: replayed on known curves, where a slow starter wins in the end."""

from pathlib import Path

import optuna
import pytest

from hsakd.config import TrialConfig
from hsakd.records import EpochMetrics, PruningRow, TrialRecord
from hsakd.store import ResultStore, read_rows
from sweeps.check_study import differences
from sweeps.cli import SweepOptions
from sweeps.pruning_report import describe, main, rows_of
from sweeps.schedule import Schedule
from sweeps.search import open_storage

PAIR = "resnet14-resnet8_half"


def epochs_of(config: TrialConfig, values: list[float]) -> list[EpochMetrics]:
    return [
        EpochMetrics(
            trial_id=config.trial_id, epoch=epoch, learning_rate=0.1, loss=1.0, loss_terms={"task": 1.0}, top1_val=value, train_seconds=10.0
        )
        for epoch, value in enumerate(values)
    ]


def search(out: Path, curves: list[list[float]], pruner: str = "none") -> ResultStore:
    """Run a search one trial at a time; each trial follows its curve unless the study's pruner stops it."""
    store = ResultStore(out)
    options = SweepOptions(
        out=out,
        preset="digits",
        pairs=(PAIR,),
        methods=("HSAKD-tuned",),
        trials=len(curves),
        epochs=len(curves[0]),
        pruner=pruner,  # type: ignore[arg-type]
    )
    schedule, left = Schedule(options, store, lambda config: store.read_trial(config.trial_id)), list(curves)
    while (config := schedule.next_trial()) is not None:
        values = left.pop(0) if config.role == "student" and left else [50.0] * len(curves[0])
        epochs, status = epochs_of(config, values), "complete"
        for number, row in enumerate(epochs):
            if config.role == "student" and schedule.on_epoch(config.trial_id, row) and number + 1 < len(epochs):
                epochs, status = epochs[: number + 1], "pruned"
                break
        record = TrialRecord.of(config, status=status, epochs_done=len(epochs), top1_val=max(row.top1_val or 0 for row in epochs))
        store.write_trial(record, epochs)
        schedule.complete(config.trial_id, record)
    assert schedule.is_complete
    return store


STEADY = [[40.0 + number, 50.0 + number, 60.0 + number, 61.0 + number, 62.0 + number, 63.0 + number] for number in range(5)]
SLOW_WINNER = [1.0, 2.0, 3.0, 4.0, 5.0, 99.0]


def study_of(store: ResultStore) -> optuna.Study:
    return optuna.load_study(study_name=PAIR, storage=open_storage(store.journal_path))


def test_a_pruner_that_would_have_killed_the_best_is_told_apart_from_one_that_would_not(tmp_path: Path) -> None:
    store = search(tmp_path, [*STEADY, SLOW_WINNER])
    as_run, median, hyperband = rows_of(store, study_of(store))
    assert (as_run.num_pruned, as_run.epochs_saved, as_run.best_top1_val) == (0, 0, 99.0)
    assert median.kills_best
    assert median.top1_val_left == 67.0
    assert median.num_pruned == 1
    assert median.epochs_saved == 6 - 3  # warm-up is a third of the epochs: stopped after the third
    assert median.seconds_saved == pytest.approx(30.0)
    assert hyperband.pruner == "hyperband"
    assert "would have killed the best trial, 32.00 points lost" in describe(median)


def test_what_a_pruner_saved_is_counted_and_pruned_trials_keep_their_intermediate_values(tmp_path: Path) -> None:
    store = search(tmp_path, [*STEADY, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], pruner="median")
    as_run = rows_of(store, study_of(store))[0]
    assert as_run.num_pruned == 1
    assert as_run.epochs_saved == 3
    pruned = study_of(store).get_trials(states=(optuna.trial.TrialState.PRUNED,))
    assert [trial.intermediate_values for trial in pruned] == [{0: 1.0, 1: 2.0, 2: 3.0}]
    assert differences(store) == []


def test_the_papers_setting_is_never_pruned(tmp_path: Path) -> None:
    store = search(tmp_path, [[0.0] * 6, *STEADY[1:]], pruner="median")
    assert study_of(store).get_trials()[0].state == optuna.trial.TrialState.COMPLETE
    assert rows_of(store, study_of(store))[1].num_pruned == 0


def test_the_command_writes_rows_that_read_back(tmp_path: Path, monkeypatch, capsys) -> None:
    store = search(tmp_path, [*STEADY, SLOW_WINNER])
    monkeypatch.setattr("sys.argv", ["pruning_report.py", str(tmp_path)])
    assert main() == 0
    assert read_rows(tmp_path / "pruning.parquet", PruningRow) == rows_of(store, study_of(store))
    assert "as run: pruned 0 of 6 trials" in capsys.readouterr().out
    damaged = store.epochs_path(study_of(store).get_trials()[0].user_attrs["trial_id"])
    damaged.write_bytes(b"cut")
    assert main() == 0
    differences(store)
    assert damaged.exists()  # a driver may be at work here, and sets aside itself
