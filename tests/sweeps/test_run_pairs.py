"""The main command as users run it, with real Ray: completion, repetition, faults, and what it says of bad input."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hsakd.store import ResultStore
from sweeps.engine.cluster import check_address
from sweeps.engine.options import Unfit
from sweeps.packing import num_cores

SMALL = ("--pairs", "resnet14-resnet8_half", "--trials", "2")
ROOT = Path(__file__).parents[2]


def test_the_command_completes_though_nobody_reads_it_and_running_it_again_trains_nothing(command) -> None:
    with command.start(*SMALL) as process:
        assert process.stdout.readline()
        process.stdout.close()  # as `| head -1` does
        assert process.stderr.read() == ""
    assert process.returncode == 0
    store = ResultStore(command.out)
    written = {trial_id: store.trial_path(trial_id).stat().st_mtime_ns for trial_id in store.trial_ids()}
    planned = {entry.trial_id for entry in store.read_plan()}
    assert planned == set(written) - {""}
    status, output, errors = command.run(*SMALL)
    assert status == 0, output + errors
    assert "complete: " in output
    assert {trial_id: store.trial_path(trial_id).stat().st_mtime_ns for trial_id in store.trial_ids()} == written


@pytest.mark.slow
def test_sigterm_stops_tidily_and_the_same_command_goes_on_to_the_same_results(command, tmp_path: Path) -> None:
    status, output = command.run_and_signal(signal.SIGTERM, "complete", *SMALL, epoch_seconds=0.3)
    assert status == 130, output
    assert "go on with: python" in output
    assert not (command.out / "stop").exists()
    status, output, errors = command.run(*SMALL)
    assert status == 0, output + errors
    undisturbed = type(command)(tmp_path / "undisturbed")
    assert undisturbed.run(*SMALL)[0] == 0
    assert command.results() == undisturbed.results()


@pytest.mark.slow
def test_sigkill_of_the_driver_loses_nothing_that_was_finished(command) -> None:
    status, _ = command.run_and_signal(signal.SIGKILL, "complete", *SMALL, epoch_seconds=0.3)
    assert status == -signal.SIGKILL
    store = ResultStore(command.out)
    before = {trial_id: store.trial_path(trial_id).stat().st_mtime_ns for trial_id in store.trial_ids()}
    assert before
    status, output, errors = command.run(*SMALL)
    assert status == 0, output + errors
    assert all(store.trial_path(trial_id).stat().st_mtime_ns == time for trial_id, time in before.items())


def test_a_poisoned_trial_is_recorded_as_failed_and_the_sweep_ends_with_status_1(command) -> None:
    status, output, errors = command.run(*SMALL, "--methods", "Student", "KD", "--max-failures", "1", run="trainables:poisoned")
    assert status == 1, output + errors
    assert "RuntimeError: poisoned on purpose" in errors
    store = ResultStore(command.out)
    records = [record for record in map(store.read_trial, store.trial_ids()) if record is not None]
    failed = [record for record in records if record.status == "failed"]
    assert len(failed) == 2
    assert all(record.attempts == 2 and "poisoned on purpose" in record.error for record in failed)
    assert sum(record.status == "complete" for record in records) == 3


def refused(*arguments: str) -> str:
    """Run the command, expect status 2 and one sentence, and return it."""
    line = [sys.executable, str(ROOT / "sweeps" / "run_pairs.py"), *arguments]
    result = subprocess.run(line, capture_output=True, text=True, check=False, timeout=900, cwd="/", env={**os.environ})
    assert result.returncode == 2, result.stdout + result.stderr
    return result.stderr


def test_bad_input_is_refused_with_status_2_and_writes_nothing(tmp_path: Path) -> None:
    out = str(tmp_path / "new")
    assert "--pairs is a-b; accepted" in refused("--out", out, "--pairs", "a-b")
    assert "--epochs is 0; accepted: 1 or more" in refused("--out", out, "--epochs", "0")
    assert "gpus" in refused("--out", out, "--gpus", "1.5")
    assert "preset" in refused("--out", out, "--preset", "papr")
    assert not Path(out).exists()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("mine")
    assert "accepted: a new folder or one of a sweep" in refused("--out", str(tmp_path / "foreign"))
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["thesis.tex"]


def test_gpus_are_refused_where_the_cluster_has_none(tmp_path: Path) -> None:
    sentence = refused("--out", str(tmp_path / "new"), "--preset", "digits", "--gpus", "16")
    assert f"--gpus is 16, but the cluster has no GPU ({num_cores()} CPUs); use --gpus 0" in sentence


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "127.0.0.1:99999"])
def test_an_address_where_nothing_answers_is_refused_at_once(address: str) -> None:
    with pytest.raises(Unfit, match=f"--address is {re.escape(address)}, where nothing answers"):
        check_address(address)


def test_an_address_where_nothing_answers_is_one_sentence(tmp_path: Path) -> None:
    sentence = refused("--out", str(tmp_path / "new"), "--preset", "digits", "--address", "127.0.0.1:1")
    assert "accepted: the HOST:PORT of a Ray cluster's head" in sentence


def test_missing_data_are_named_with_where_and_how(tmp_path: Path) -> None:
    sentence = refused("--out", str(tmp_path / "new"), "--preset", "paper", "--data-dir", str(tmp_path))
    assert f"cifar100: torchvision's files are not in {tmp_path}; pass --download" in sentence


def test_a_second_driver_is_refused(command) -> None:
    process = command.start(*SMALL, epoch_seconds=0.5)
    assert process.stdout is not None
    process.stdout.readline()
    status, _, errors = command.run(*SMALL)
    assert status == 2
    assert f"another driver (process {process.pid} on {socket.gethostname()}) is at work" in errors
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=900)


@pytest.mark.parametrize("preset", ["paper", "digits"])
def test_a_dry_run_lists_the_work_and_starts_nothing(tmp_path: Path, preset: str) -> None:
    line = [sys.executable, str(ROOT / "sweeps" / "run_pairs.py"), "--out", str(tmp_path / "new"), "--preset", preset, "--dry-run"]
    result = subprocess.run(line, capture_output=True, text=True, check=False, timeout=900)
    assert result.returncode == 0, result.stderr
    assert "multiply-adds left" in result.stdout
    assert not (tmp_path / "new").exists()
