"""Status from outside: what the folder says of a sweep that runs, stopped or failed."""

import json
import os
from dataclasses import replace
from pathlib import Path

from hsakd.config import TrialConfig
from hsakd.records import TrialRecord
from hsakd.store import ResultStore
from sweeps.ablations import ablation_work
from sweeps.cli import AblationOptions, SweepOptions
from sweeps.schedule import Schedule
from sweeps.status import SILENT_SECONDS, describe, describe_driver
from sweeps.wording import row_of

PAIR = "resnet14-resnet8_half"


def sweep(out: Path) -> tuple[Schedule, ResultStore]:
    store = ResultStore(out)
    options = SweepOptions(out=out, preset="digits", pairs=(PAIR,), methods=("Student", "KD", "HSAKD-tuned"))
    return Schedule(options, store, lambda config: store.finished(config.trial_id)), store


def end(schedule: Schedule, config: TrialConfig, **changes: object) -> TrialRecord:
    record = TrialRecord.of(
        config,
        status="complete",
        epochs_done=config.optim.epochs,
        top1_last=91.25,
        total_seconds=1800.0,
        device="cpu",
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:30:00+00:00",
    )
    record = replace(record, **changes)  # type: ignore[arg-type]
    schedule.store.write_trial(record, [])
    schedule.store.weights_path(config.trial_id).parent.mkdir(parents=True, exist_ok=True)
    schedule.store.weights_path(config.trial_id).touch()
    schedule.complete(config.trial_id, record)
    schedule.store.write_plan(schedule.plan())
    return record


def row(text: str, name: str) -> list[str]:
    return next(line for line in text.splitlines() if line.split()[1:2] == [name]).split()[2:]


def started(schedule: Schedule) -> TrialConfig:
    config = schedule.next_trial()
    assert config is not None
    return config


def write_progress(out: Path, trial_id: str, age: float = 0.0) -> None:
    path = out / "progress.json"
    values = {"host": "node7", "pid": 1234, "running": {trial_id: 3}, "slots": 4.0, "seconds_left": 7200.0, "basis": "measured on 1 trials"}
    path.write_text(json.dumps(values))
    os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))


def test_a_running_sweep_shows_what_runs_what_it_cost_and_what_is_left(tmp_path: Path) -> None:
    schedule, _ = sweep(tmp_path)
    done, running = started(schedule), started(schedule)
    end(schedule, done)
    write_progress(tmp_path, running.trial_id)
    text, is_complete = describe(ResultStore(tmp_path))
    assert not is_complete
    assert "the driver on node7 runs 1 trial:" in text
    assert describe_driver(ResultStore(tmp_path)) == "another driver (process 1234 on node7)"
    entry = next(entry for entry in schedule.entries if entry.trial_id == running.trial_id)
    shown = next(line for line in text.splitlines() if running.trial_id in line)
    assert shown.split("  ")[1:] == [running.trial_id, row_of(entry), PAIR, running.network, f"3 of {running.optim.epochs}"]
    assert "spent: 0.500 trial hours on cpu in 1 trial\n" in text
    assert "left: about 2.00 h (basis: measured on 1 trials, 4 slots)" in text
    totals = next(line for line in text.splitlines() if line.startswith("all trials")).split()[2:]
    assert (totals[0], totals[1], totals[3]) == ("1", "1", "0")


def test_a_driver_that_is_not_heard_of_runs_nothing(tmp_path: Path) -> None:
    schedule, _ = sweep(tmp_path)
    done, running = started(schedule), started(schedule)
    end(schedule, done)
    write_progress(tmp_path, running.trial_id, age=SILENT_SECONDS + 60)
    text, _ = describe(ResultStore(tmp_path))
    assert "the driver on node7 was last heard of 4 min ago" in text
    assert describe_driver(ResultStore(tmp_path)) == "another driver"
    totals = next(line for line in text.splitlines() if line.startswith("all trials")).split()[2:]
    assert totals[1] == "0"
    assert "measured on 1 trial," in text
    assert "trainings of searches not known yet" in text


def test_the_last_errors_are_shown_with_their_trial_ids_and_the_sweep_is_incomplete(tmp_path: Path) -> None:
    schedule, _ = sweep(tmp_path)
    config = started(schedule)
    end(schedule, config, status="failed", error="1: RuntimeError: \x1b[2Jboom\ntrace", top1_last=None)
    text, is_complete = describe(ResultStore(tmp_path))
    assert not is_complete
    assert f"failed: {config.trial_id} {config.network}: 1: RuntimeError: \\x1b[2Jboom" in text
    assert next(line for line in text.splitlines() if line.startswith("all trials")).split()[-1] != "0"
    write_progress(tmp_path, config.trial_id)  # a later command tries it again
    text, _ = describe(ResultStore(tmp_path))
    assert next(line for line in text.splitlines() if line.startswith("all trials")).split()[-1] == "0"


def test_a_finished_sweep_is_complete_and_shows_the_best_of_each_row(tmp_path: Path) -> None:
    schedule, _ = sweep(tmp_path)
    while (config := schedule.next_trial()) is not None:
        end(schedule, config, top1_last=80.0 + config.seed, top1_val=70.0 if config.data.validation_fraction else None)
    text, is_complete = describe(ResultStore(tmp_path))
    assert is_complete
    assert row(text, "Student")[:6] == ["2", "0", "0", "0", "81.00", "test"]
    assert "left:" not in text
    assert "no driver is at work" in text


def test_a_searchs_rows_show_validation_accuracy_and_its_teacher_is_a_row_of_its_own(tmp_path: Path) -> None:
    schedule, _ = sweep(tmp_path)
    while (config := schedule.next_trial()) is not None:
        of_search = config.data.validation_fraction > 0
        end(schedule, config, top1_last=99.0 if of_search else 50.0, top1_val=(40.0 if config.teacher else 60.0) if of_search else None)
    text, _ = describe(ResultStore(tmp_path))
    assert "99.00" not in text
    lines = [line for line in text.splitlines() if PAIR in line]
    for name, value in (("search teacher", "60.00"), ("search", "40.00"), ("confirm", "40.00")):
        assert [line.endswith(f"{value}  validation top-1") for line in lines if f"  {name}  " in line] == [True]
    total = next(line for line in text.splitlines() if line.startswith("all trials")).split()[2]
    assert total == str(len(schedule.done))  # a search's trial that is confirmed is one trial


def test_an_ablations_rows_name_their_study_and_stay_in_their_column(tmp_path: Path) -> None:
    options = AblationOptions(out=tmp_path, preset="digits", pairs=(PAIR,), study=("loss-terms",), seeds=1)
    schedule = Schedule(options, ResultStore(tmp_path), lambda _: None, lines=ablation_work(options))
    schedule.store.write_plan(schedule.plan())
    head, *lines = describe(ResultStore(tmp_path))[0].splitlines()
    rows = [line for line in lines if line.startswith((PAIR, "all trials"))]
    assert any("  loss-terms: task+kl_q+kl_p+ce_q  " in line for line in rows)
    end_of_counts = head.index("failed") + len("failed")
    assert {len(line) for line in rows} == {end_of_counts}
