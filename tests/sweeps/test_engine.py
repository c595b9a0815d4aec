"""Parts of the engine that need no cluster: its temporary folder, what it reserves for a trial, what it says of a node."""

import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.engine import LONGEST_ROOT, EngineOptions, check_gpus, resources_of, temporary_folder
from sweeps.fitness import TOKEN_FILE, Expected, node_problem, present_versions
from sweeps.packing import Packing


def test_a_killed_drivers_temporary_folder_is_deleted_and_a_living_ones_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (short / f"hsakd-{ended.pid}-abc").mkdir()
    (short / f"hsakd-{os.getpid()}-abc").mkdir()
    (short / "hsakd-banks").mkdir()
    own = temporary_folder()
    assert own.parent == short
    assert sorted(path.name for path in short.iterdir()) == sorted([own.name, f"hsakd-{os.getpid()}-abc", "hsakd-banks"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 40)))
    fallback = temporary_folder()
    assert len(str(fallback.parent)) <= LONGEST_ROOT
    fallback.rmdir()


def test_what_is_reserved_for_a_trial_keeps_it_off_unfit_nodes() -> None:
    free = resources_of({"resources": {"CPU": 1, "GPU": 0.25}, "avoided": []})
    assert free.required_resources == {"CPU": 1, "GPU": 0.25}
    bound = resources_of({"resources": {"CPU": 1, "GPU": 0.25}, "avoided": ["a", "b"]})
    assert bound != free


def test_more_threads_than_cores_are_said_before_they_start(tmp_path: Path) -> None:
    said: list[str] = []
    cores = len(os.sched_getaffinity(0))
    options = EngineOptions(out=tmp_path, gpus=2, packing=Packing(trials_per_gpu=cores), threads=3)
    check_gpus(options, Namespace(num_present=2.0), said.append)  # type: ignore[arg-type]
    assert said == [f"{2 * cores} trials of 3 CPU threads share {cores} CPU cores; fewer --trials-per-gpu may be faster"]
    check_gpus(replace(options, address="auto"), Namespace(num_present=2.0), said.append)  # type: ignore[arg-type]
    assert len(said) == 1


def test_a_node_with_another_version_or_folder_is_not_fit(tmp_path: Path) -> None:
    (tmp_path / TOKEN_FILE).write_text("words")
    versions = present_versions()
    assert node_problem(Expected(out=tmp_path, token="words", versions=tuple(versions.items()))) == ""
    other = {**versions, "torch": "1.0.0"}
    problem = node_problem(Expected(out=tmp_path, token="words", versions=tuple(other.items())))
    assert problem == f"torch is {versions['torch']}; the driver has 1.0.0"
    assert "is not the driver's folder" in node_problem(Expected(out=tmp_path, token="other", versions=tuple(versions.items())))
    assert "is not the driver's folder" in node_problem(Expected(out=tmp_path / "no", token="words", versions=tuple(versions.items())))
