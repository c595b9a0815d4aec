"""Bad days with real Ray processes: each ends as an undisturbed sweep does, and nothing finished is repeated."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hsakd.store import ResultStore
from sweeps.check_study import differences

ROOT = Path(__file__).parents[2]
ARGUMENTS = ["--preset", "digits", "--gpus", "0", "--pairs", "resnet14-resnet8_half", "--seeds", "1", "--epochs", "2", "--trials", "2"]
ARGUMENTS += ["--methods", "Student", "HSAKD*", "HSAKD-tuned"]


def start(out: Path, *more: str, seconds: float = 0.3, is_group: bool = False, **environment: str) -> "subprocess.Popen[str]":
    """Start the main command with stand-in trials of 2 * `seconds` each."""
    paths = {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
        "STAND_IN_SECONDS": str(seconds),
        "OMP_NUM_THREADS": "1",
        "HSAKD_RUN": "stand_in_trials:run",
    }
    return subprocess.Popen(
        [sys.executable, str(ROOT / "sweeps" / "run_pairs.py"), "--out", str(out), *ARGUMENTS, *more],
        env={**os.environ, **paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=is_group,
    )


def wait_for(found: Callable[[], list[Path]], driver: "subprocess.Popen[str]", seconds: float = 900) -> list[Path]:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if paths := found():
            return paths
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.05)
    driver.terminate()
    raise AssertionError(("nothing happened", driver.communicate(timeout=900)))


def searches(out: Path) -> list[str]:
    return sorted({entry.trial_id for entry in ResultStore(out).read_plan() if entry.purpose == "search"})


def check_complete(out: Path, undisturbed: Path, table_one: Callable[[Path], bytes]) -> None:
    assert table_one(out) == table_one(undisturbed)
    assert len(searches(out)) == len(searches(undisturbed)) == 2
    assert differences(ResultStore(out)) == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    driver = start(out, seconds=0)
    output = driver.communicate(timeout=900)
    assert driver.returncode == 0, output
    return out


def test_a_killed_worker_is_replaced_and_the_sweep_completes(tmp_path: Path, undisturbed: Path, table_one) -> None:
    out, hold = tmp_path / "out", tmp_path / "hold"
    hold.touch()  # the victim is in its trial as long as this file is there
    driver = start(out, STAND_IN_HOLD=str(hold))
    victim = wait_for(lambda: list(out.glob("checkpoints/*/pid.*")), driver)[0]
    os.kill(int(victim.suffix[1:]), signal.SIGKILL)
    hold.unlink()
    output = driver.communicate(timeout=900)
    assert driver.returncode == 0, output
    check_complete(out, undisturbed, table_one)
    record = ResultStore(out).read_trial(victim.parent.name)
    assert record is not None
    assert record.attempts == 2


def test_a_terminated_driver_says_how_to_go_on_and_repeats_nothing(tmp_path: Path, undisturbed: Path, table_one) -> None:
    out = tmp_path / "out"
    driver = start(out)
    wait_for(lambda: list(out.glob("trials/*.parquet")), driver)
    driver.send_signal(signal.SIGTERM)
    output, errors = driver.communicate(timeout=900)
    assert driver.returncode == 130, (output, errors)
    assert "go on with: python" in output
    finished = {path: path.stat().st_mtime_ns for path in out.glob("trials/*.parquet")}
    again = start(out, seconds=0)
    output, errors = again.communicate(timeout=900)
    assert again.returncode == 0, (output, errors)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    check_complete(out, undisturbed, table_one)


@pytest.mark.slow
def test_a_killed_driver_and_a_cut_journal_lose_nothing(tmp_path: Path, undisturbed: Path, table_one) -> None:
    out = tmp_path / "out"
    driver = start(out)
    wait_for(lambda: list(out.glob("trials/*.parquet"))[2:], driver)
    driver.kill()
    driver.communicate(timeout=900)
    with (out / "studies.journal").open("ab") as file:
        file.write(b'{"op_code": 4, "worker')
    finished = {path: path.stat().st_mtime_ns for path in out.glob("trials/*.parquet")}
    again = start(out, seconds=0)
    output = again.communicate(timeout=900)
    assert again.returncode == 0, output
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    check_complete(out, undisturbed, table_one)


@pytest.mark.slow
def test_a_poisoned_trial_is_given_up_recorded_and_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    driver = start(out, "--max-failures", "1", seconds=0, STAND_IN_POISON="resnet14")
    output, errors = driver.communicate(timeout=900)
    assert driver.returncode == 1, (output, errors)
    records = [ResultStore(out).read_trial(trial_id) for trial_id in ResultStore(out).trial_ids()]
    failed = [record for record in records if record is not None and record.status == "failed"]
    assert {record.network for record in failed} == {"resnet14"}
    assert all(record.attempts == 1 or "poisoned" in record.error for record in failed)
    assert all(record.trial_id in errors for record in failed)


def real(out: Path, *more: str) -> "subprocess.Popen[str]":
    """Start the main command with real trainings on digits."""
    line = [sys.executable, str(ROOT / "sweeps" / "run_pairs.py"), "--out", str(out), "--preset", "digits", "--gpus", "0"]
    chosen = ["--pairs", "resnet14-resnet8_half", "--seeds", "1", "--epochs", "3", "--methods", "Student", "HSAKD*"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*line, *chosen, *more], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def table(out: Path, folder: Path) -> bytes:
    """The table as the analysis writes it."""
    line = [sys.executable, str(ROOT / "analysis" / "build.py"), str(out), "--out", str(folder)]
    subprocess.run(line, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=900)
    return (folder / "table1.md").read_bytes()


def workers_of(driver: "subprocess.Popen[str]") -> list[int]:
    """The processes in which trials run, among the driver's descendants."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue

    def is_ours(pid: int) -> bool:
        return pid == driver.pid or (pid in parents and is_ours(parents[pid]))

    return [pid for pid in parents if pid != driver.pid and "ImplicitFunc" in names.get(pid, "") and is_ours(pid)]


@pytest.mark.slow
def test_real_trainings_end_in_the_same_table_after_a_killed_worker_and_broken_checkpoints(tmp_path: Path) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    calm = real(undisturbed)
    output = calm.communicate(timeout=900)
    assert calm.returncode == 0, output
    driver = real(out)
    wait_for(lambda: list(out.glob("checkpoints/*/resume.pt")), driver)
    for pid in workers_of(driver):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: list(out.glob("trials/*.parquet")), driver)
    wait_for(lambda: list(out.glob("checkpoints/*/resume.pt")), driver)
    driver.send_signal(signal.SIGINT)
    output = driver.communicate(timeout=900)
    assert driver.returncode == 130, output
    assert "is tried again" in output[0]
    broken = sorted(out.glob("checkpoints/*/resume.pt"))
    for path in broken:
        path.write_bytes(path.read_bytes()[:1000])
    again = real(out)
    output = again.communicate(timeout=900)
    assert again.returncode == 0, output
    assert table(out, tmp_path / "a") == table(undisturbed, tmp_path / "b")
    assert not broken or list((out / "set_aside").iterdir())


@pytest.mark.slow
def test_a_deleted_checkpoint_costs_its_progress_only(tmp_path: Path, undisturbed: Path, table_one) -> None:
    out = tmp_path / "out"
    driver = start(out)
    wait_for(lambda: list(out.glob("checkpoints/*/position.json")), driver)
    driver.send_signal(signal.SIGINT)
    output = driver.communicate(timeout=900)
    assert driver.returncode == 130, output
    for path in out.glob("checkpoints/*/position.json"):
        if not (path.parent / "weights.safetensors").exists():
            path.unlink()
    again = start(out, seconds=0)
    output = again.communicate(timeout=900)
    assert again.returncode == 0, output
    check_complete(out, undisturbed, table_one)


@pytest.mark.slow
def test_a_full_disk_stops_the_sweep_tidily_and_it_goes_on_when_there_is_room(tmp_path: Path, undisturbed: Path, table_one) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=220k", "none", str(out)], capture_output=True, check=False).returncode:
        pytest.skip("a small disk can't be mounted here")
    try:
        driver = start(out, seconds=0)
        output, errors = driver.communicate(timeout=900)
        assert driver.returncode == 3, output + errors
        assert "No space left on device" in output + errors
        assert "Traceback" not in output + errors
        subprocess.run(["mount", "-o", "remount,size=50m", str(out)], check=True, capture_output=True)
        again = start(out, seconds=0)
        output, errors = again.communicate(timeout=900)
        assert again.returncode == 0, output + errors
        check_complete(out, undisturbed, table_one)
    finally:
        subprocess.run(["umount", str(out)], check=False, capture_output=True)


@pytest.mark.parametrize("methods", [("Student",), ("Student", "HSAKD-tuned")])  # a search's journal is written before the plan
def test_a_disk_that_is_full_from_the_start_is_one_sentence_and_status_3(tmp_path: Path, methods: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(out)], capture_output=True, check=False).returncode:
        pytest.skip("a small disk can't be mounted here")
    try:
        (out / "trials").mkdir()
        (out / "other").write_bytes(bytes(16 * 1024))
        driver = start(out, "--methods", *methods)
        output, errors = driver.communicate(timeout=900)
        assert (driver.returncode, errors) == (3, "")
        assert "--out can't be written (No space left on device): nothing was started; make room" in output
        assert "go on with: python" in output
    finally:
        subprocess.run(["umount", str(out)], check=False, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])  # as a terminal does, and `timeout`, `srun`, systemd
def test_a_signal_to_the_whole_group_stops_tidily_and_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    out, temporary = tmp_path / "out", Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    driver = start(out, TMPDIR=str(temporary), is_group=True)
    wait_for(lambda: list(out.glob("trials/*.parquet")), driver)
    tree = workers_of(driver)
    os.killpg(driver.pid, number)
    output, errors = driver.communicate(timeout=900)
    assert driver.returncode == 130, output + errors
    assert "go on with: python" in output
    assert [path for path in temporary.iterdir() if path.name.startswith("hsakd-")] == []
    shutil.rmtree(temporary)
    limit = time.monotonic() + 900
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in tree):
        assert time.monotonic() < limit, tree
        time.sleep(0.1)
    assert sorted(path.name for path in out.iterdir() if path.name.startswith((".", "stop", "progress"))) == []


def memory() -> tuple[int, int]:
    """The machine's memory in bytes: all of it, and what is in use."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (1024 * int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    return total, total - available


@pytest.mark.slow
def test_a_trial_that_ray_kills_for_want_of_host_memory_is_tried_again_alone_and_then_recorded_and_no_other_is(tmp_path: Path) -> None:
    total, used = memory()
    if total - used < 10 * 2**30:
        pytest.skip("too little memory is free for a trial that takes much")
    out = tmp_path / "out"
    few = ("--methods", "Student", "--seeds", "2")
    limit = {"RAY_memory_usage_threshold": f"{(used + 4 * 2**30) / total:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    hold = tmp_path / "hold"
    hold.touch()  # the hungry one's neighbour runs when memory ends
    driver = start(out, *few, seconds=0, HSAKD_RUN="stand_in_trials:hungry", STAND_IN_HOLD=str(hold), **limit)
    wait_for(lambda: list(out.glob("errors/*.txt")), driver)
    hold.unlink()
    output, errors = driver.communicate(timeout=900)
    assert driver.returncode == 1, output + errors
    assert "in <module>" not in errors
    assert "running low on memory" in output
    assert output.count("again alone") == 2
    store = ResultStore(out)
    records = [record for trial_id in store.trial_ids() if (record := store.read_trial(trial_id)) is not None]
    assert {record.seed: (record.status, record.attempts) for record in records} == {0: ("out_of_memory", 2), 1: ("complete", 2)}
    shutil.rmtree(out / "trials")
    again = start(out, *few, seconds=0)
    output, errors = again.communicate(timeout=900)
    assert again.returncode == 0, output + errors
