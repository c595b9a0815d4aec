"""The live view shows what runs, the best of each row and the time left; a log says the same now and then."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from hsakd.config import TrialConfig
from hsakd.records import EpochMetrics, TrialRecord
from hsakd.store import ResultStore
from sweeps.cli import SweepOptions
from sweeps.engine.watch import write_progress
from sweeps.live import SweepView
from sweeps.schedule import Schedule
from sweeps.status import read_progress

PAIR = "resnet14-resnet8_half"


def schedule_of(out: Path, methods: tuple[str, ...] = ("Student",), **changes: int) -> Schedule:
    out.mkdir()
    options = SweepOptions(out=out, preset="digits", methods=methods, pairs=(PAIR,), **changes)  # type: ignore[arg-type]
    return Schedule(options, ResultStore(options.out), lambda _: None)


def started(schedule: Schedule) -> TrialConfig:
    config = schedule.next_trial()
    assert config is not None
    return config


def shown(view: SweepView, path: Path) -> list[str]:
    console = Console(width=120, file=path.open("w"))
    with console.file:
        console.print(view.render())
    return [line.rstrip() for line in path.read_text().splitlines()]


def test_the_view_shows_counts_what_runs_and_the_best_of_each_row(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path / "out", epochs=40)
    view = SweepView(schedule, is_terminal=False)
    for accuracy in (91.25, 90.5):
        config = started(schedule)
        schedule.epochs_done = {config.trial_id: 3}
        head, *lines = shown(view, tmp_path / "screen")
        assert "1 running" in head
        assert re.split(r" {2,}", lines[1].strip()) == ["Student", PAIR, f"seed {config.seed}", "3 of 40 epochs"]
        schedule.complete(config.trial_id, TrialRecord.of(config, status="complete", top1_last=accuracy))
    assert view.best() == {(PAIR, "Student"): (91.25, "test top-1, last epoch")}
    head, *lines = shown(view, tmp_path / "screen")
    assert head.startswith("2 done, 0 running, 0 waiting, 0 failed; ")
    assert [re.split(r" {2,}", line.strip()) for line in lines] == [
        ["best so far"],
        ["Student", PAIR, "91.25 %", "test top-1, last epoch"],
    ]


def test_the_best_of_a_search_is_validation_accuracy(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path / "out", methods=("HSAKD-tuned",), trials=2, seeds=1)
    while (config := schedule.next_trial()) is not None:
        accuracies = {"top1_last": 99.0, "top1_val": 40.0} if config.data.validation_fraction else {"top1_last": 50.0}
        schedule.complete(config.trial_id, TrialRecord.of(config, status="complete", **accuracies))
    best = SweepView(schedule, is_terminal=False).best()
    assert {row for (_, row), value in best.items() if value == (40.0, "validation top-1")} == {"search teacher", "search", "confirm"}
    assert 99.0 not in {value for value, _ in best.values()}


def test_the_time_left_is_told_once_an_epoch_has_been_measured(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path / "out", epochs=40)
    view = SweepView(schedule, is_terminal=False)
    config = started(schedule)
    write_progress(schedule, tmp_path)
    assert view.time_left() == "time left not known yet"
    row = EpochMetrics(trial_id=config.trial_id, epoch=0, learning_rate=0.1, loss=1.0, loss_terms={}, train_seconds=67.5)
    schedule.cost.observe_epochs(config, [row])
    write_progress(schedule, tmp_path)  # two students of 40 epochs on one slot
    assert view.time_left() == "about 90 min left"
    progress = read_progress(ResultStore(tmp_path))
    assert progress is not None
    assert progress.seconds_left == pytest.approx(80 * 67.5)


def test_a_log_says_now_and_then_what_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    schedule = schedule_of(tmp_path / "out", epochs=40, seeds=6)
    views: list[Callable[[], None]] = [SweepView(schedule, is_terminal=on_terminal).look for on_terminal in (False, True)]
    schedule.epochs_done = {started(schedule).trial_id: 3 for _ in range(6)}
    said = {}
    for clock in (1.0, 61.0, 120.0, 362.0):
        for look in views:
            look()
        said[clock] = capsys.readouterr().out
    students = ", ".join(f"Student {PAIR} seed {seed} (3 of 40 epochs)" for seed in range(4))
    line = f"[    61 s  0/6] 6 running: {students}, and 2 more; time left not known yet\n"
    assert said == {1.0: "", 61.0: line, 120.0: "", 362.0: line.replace(" 61", "362")}
