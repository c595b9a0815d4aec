"""The live view counts what the schedule knows and shows the best of each reported row."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hsakd.records import ResultStore, TrialRecord
from sweeps.cli import SweepOptions
from sweeps.live import SweepView
from sweeps.schedule import Schedule


def test_the_view_shows_counts_best_accuracy_and_time_left(tmp_path: Path) -> None:
    options = SweepOptions(out=tmp_path / "out", preset="digits", methods=("Student",), pairs=("resnet14-resnet8_half",))
    schedule = Schedule(options, ResultStore(options.out), lambda _: None)
    view = SweepView(schedule, is_terminal=False)
    schedule.forecast_seconds = 90.0 * 60
    console = Console(width=120, file=(tmp_path / "first").open("w"))
    with console.file:
        console.print(view.render())
    assert "time left not known yet" in (tmp_path / "first").read_text()
    for accuracy in (91.25, 90.5):
        config = schedule.next_trial()
        assert config is not None
        record = TrialRecord(
            trial_id=config.trial_id,
            status="complete",
            role="baseline",
            network=config.network,
            dataset="digits",
            seed=config.seed,
            num_epochs=1,
            config_json=config.to_json(),
        )
        schedule.complete(config.trial_id, replace(record, top1_last=accuracy))
    assert view.best() == {("resnet14-resnet8_half", "Student"): 91.25}
    console = Console(width=120, record=True, quiet=False, file=(tmp_path / "screen").open("w"))
    with console.file:
        console.print(view.render())
    shown = (tmp_path / "screen").read_text()
    assert "2 done, 0 running, 0 waiting, 0 failed" in shown
    assert "about 90 min left" in shown
    assert "91.25" in shown
