"""Bad days of a cluster, on several logical nodes of real Ray: nodes that die, join late or don't fit, and too little memory."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hsakd.store import ResultStore
from sweeps.check_study import differences
from sweeps.fitness import TOKEN_FILE

TUNED = ("--pairs", "resnet14-resnet8_half", "--seeds", "2", "--epochs", "3", "--trials", "3")
PLAIN = ("--pairs", "resnet14-resnet8_half", "--seeds", "3", "--epochs", "3", "--methods", "Student", "KD", "HSAKD*")
pytestmark = pytest.mark.slow


def placements(out: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(out.glob("placements/*.json"))]


def wait_until(happened: Callable[[], object], seconds: float = 900) -> None:
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.1)


def end(driver, seconds: float = 900) -> str:
    output, errors = driver.communicate(timeout=seconds)
    assert driver.returncode == 0, output + errors
    return output + errors


def test_a_killed_node_and_one_that_joins_late(nodes, table_one, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    os.environ["STAND_IN_HOLD"] = str(hold)  # for the nodes' workers: no trial ends while this file is there
    first = nodes.add(gpus=2)
    undisturbed = tmp_path / "undisturbed"
    end(nodes.start(undisturbed, *TUNED, "--gpus", "4"))
    out = tmp_path / "out"
    hold.touch()
    driver = nodes.start(out, *TUNED, "--gpus", "4", "--max-failures", "5")  # a slow machine may lose a trial's new attempt, too
    wait_until(lambda: placements(out))
    late = nodes.add(gpus=2)
    wait_until(lambda: len({place["node"] for place in placements(out)}) == 2)
    nodes.kill(first)
    hold.unlink()
    output = end(driver)
    assert "the cluster has 2 of 4 GPUs; more are used as nodes join" in output
    assert "the cluster has 4 GPUs now" in output
    assert table_one(out) == table_one(undisturbed)
    assert differences(ResultStore(out)) == []
    assert late is not None


def test_a_node_of_cpus_that_joins_late_gets_work(nodes, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    os.environ["STAND_IN_HOLD"] = str(hold)
    out = tmp_path / "out"
    driver = nodes.start(out, *PLAIN, "--gpus", "0")
    wait_until((out / TOKEN_FILE).exists)
    nodes.add(gpus=0, cpus=1)  # the first joins after the driver, as workers of a cluster that has just been started do
    wait_until(lambda: placements(out))
    nodes.add(gpus=0, cpus=1)
    wait_until(lambda: len({place["node"] for place in placements(out)}) == 2)
    hold.unlink()
    assert "the cluster has 2 CPUs now" in end(driver)


def test_out_of_memory_is_tried_again_alone_and_a_second_one_is_recorded(nodes, tmp_path: Path) -> None:
    nodes.add(gpus=1)
    out = tmp_path / "out"
    driver = nodes.start(out, *PLAIN, "--gpus", "1", "--trials-per-gpu", "3", run="stand_in_trials:out_of_memory")
    output = end(driver)
    assert "again alone, resnet14 gets 0.5 GPU each from now on" in output
    attempts: dict[str, list[float]] = {}
    for place in placements(out):
        if place["network"] == "resnet14":
            attempts.setdefault(str(place["trial_id"]), []).append(float(str(place["gpu"])))
    assert attempts
    assert all(shares[-1] == 1.0 and len(shares) == 2 for shares in attempts.values())
    store = ResultStore(out)
    records = [store.read_trial(trial_id) for trial_id in store.trial_ids()]
    assert all(record is not None and record.status == "complete" for record in records)


def test_a_trial_without_memory_even_alone_is_recorded_and_the_sweep_ends_with_status_1(nodes, tmp_path: Path) -> None:
    os.environ["STAND_IN_TOO_BIG"] = "resnet8_half"  # for the node's workers; seed 0 never fits, seed 1 does
    nodes.add(gpus=1)
    out = tmp_path / "out"
    arguments = ("--pairs", "resnet14-resnet8_half", "--seeds", "2", "--methods", "Student", "--gpus", "1", "--trials-per-gpu", "2")
    driver = nodes.start(out, *arguments, run="stand_in_trials:out_of_memory")
    output, errors = driver.communicate(timeout=900)
    assert driver.returncode == 1, output + errors
    assert "TrialOutOfMemory" in errors
    store = ResultStore(out)
    records = {record.seed: record for record in map(store.read_trial, store.trial_ids()) if record is not None}
    assert (records[0].status, records[0].attempts) == ("out_of_memory", 2)
    assert records[1].status == "complete"
    shares = [place["gpu"] for place in placements(out) if place["trial_id"] == records[0].trial_id]
    assert shares == [0.5, 1.0]


def test_only_weights_that_others_need_are_kept_and_nothing_is_trained_again(nodes, tmp_path: Path) -> None:
    nodes.add(gpus=1)
    out = tmp_path / "out"
    driver = nodes.start(out, *PLAIN, "--gpus", "2", "--keep-checkpoints", "teachers")
    end(driver)
    kept = {path.parent.name for path in out.glob("checkpoints/*/weights.safetensors")}
    store = ResultStore(out)
    records = {trial_id: store.read_trial(trial_id) for trial_id in store.trial_ids()}
    needed = {record.teacher_trial_id for record in records.values() if record is not None and record.teacher_trial_id}
    assert needed <= kept
    assert all(record is not None and record.has_weights == (trial_id in kept) for trial_id, record in records.items())
    assert any(record is not None and not record.has_weights for record in records.values())
    again = nodes.start(out, *PLAIN, "--gpus", "2", "--keep-checkpoints", "teachers")
    assert "complete" in end(again)


def test_a_node_that_does_not_see_the_result_folder_gets_no_trials(nodes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    nodes.add(gpus=1)
    blind = subprocess.Popen(
        [
            *("unshare", "--mount", "bash", "-c"),
            f"mount -t tmpfs none {out} && exec {Path(sys.executable).parent}/ray start --block "
            f"--address {nodes.cluster.address} --num-cpus 4 --num-gpus 1 --object-store-memory {80 * 2**20}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        try:
            wait_until(lambda: len(nodes.names()) == 3 or blind.poll() is not None)
            if blind.poll() is not None:
                pytest.skip("a folder can't be hidden from a process here (no right to mount)")
            output = end(nodes.start(out, *PLAIN, "--gpus", "2"))
        finally:
            blind.terminate()
            blind.wait(900)
    finally:
        nodes.forget()
    assert "is not used: --out" in output
    assert "is not the driver's folder here" in output
    assert len({place["node"] for place in placements(out)}) == 1


def test_a_time_limit_starts_nothing_that_cannot_reach_a_checkpoint(nodes, tmp_path: Path) -> None:
    os.environ["STAND_IN_SECONDS"] = "4"  # three trials of three epochs, one after the other, are longer than the limit on any machine
    arguments = ("--pairs", "resnet14-resnet8_half", "--seeds", "3", "--epochs", "3", "--methods", "Student", "--gpus", "1")
    nodes.add(gpus=1)
    out = tmp_path / "out"
    driver = nodes.start(out, *arguments, "--time-limit", "0:00:35")
    output, errors = driver.communicate(timeout=900)
    assert driver.returncode == 130, output + errors
    assert "no time left for a trial to reach a checkpoint" in output or "the time limit is reached" in output
    assert "go on with: python" in output
    store = ResultStore(out)
    assert all((store.read_trial(trial_id) is not None) for trial_id in store.trial_ids())
    end(nodes.start(out, *arguments))


def test_a_group_interrupt_of_a_driver_leaves_the_cluster_and_goes_on(nodes, tmp_path: Path) -> None:
    nodes.add(gpus=2)
    out = tmp_path / "out"
    driver = nodes.start(out, *TUNED, "--gpus", "2")
    wait_until(lambda: list(out.glob("trials/*.parquet")))
    driver.send_signal(signal.SIGINT)
    output, errors = driver.communicate(timeout=900)
    assert driver.returncode == 130, output + errors
    assert "go on with: python" in output
    assert not list(out.glob(".tune-*"))
    written = {path: path.stat().st_mtime_ns for path in out.glob("trials/*.parquet")}
    end(nodes.start(out, *TUNED, "--gpus", "2"))
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert differences(ResultStore(out)) == []
