"""`run_trial.py`: one trial without Ray, from an id or a file, and what it says of bad input."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from hsakd.config import DataConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.models import create_network
from hsakd.models.checkpoints import save_weights
from hsakd.store import ResultStore
from hsakd.training.trial import RunContext, run_trial

ROOT = Path(__file__).parents[2]
OPTIM = OptimConfig(epochs=1, batch_size=32, milestones=())
BASELINE = TrialConfig(network="resnet8_half", data=DataConfig(dataset="digits", train_subset=64), optim=OPTIM, taps=())
KD = replace(BASELINE, teacher=BASELINE, seed=1, objective=ObjectiveConfig(terms=(("task", 0.1), ("kd", 0.9))))


def command(*arguments: object) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, str(ROOT / "sweeps" / "run_trial.py"), *map(str, arguments)]
    return subprocess.run(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=900, check=False)


def test_a_table_entry_is_reproduced_elsewhere_with_the_teacher_that_it_needs(tmp_path: Path) -> None:
    there, here = ResultStore(tmp_path / "there"), ResultStore(tmp_path / "here")
    expected = [run_trial(config, RunContext(store=there)) for config in (BASELINE, KD)]
    result = command(KD.trial_id, "--runs", there.root, "--out", here.root)
    assert result.returncode == 0, result.stderr
    for record in expected:
        again = here.read_trial(record.trial_id)
        assert again is not None
        assert again.weights_sha256 == record.weights_sha256
    (tmp_path / "kd.json").write_text(KD.to_json())
    result = command(tmp_path / "kd.json", "--out", here.root)
    assert result.stdout.count("already in") == 2
    assert "epoch" not in result.stdout.replace("test epoch", "")


def test_a_student_of_an_imported_teacher_is_reproduced_elsewhere(tmp_path: Path) -> None:
    there, here = ResultStore(tmp_path / "there"), tmp_path / "here"
    sha256 = "0" * 64
    there.imported_path(sha256).parent.mkdir(parents=True)
    save_weights(create_network("resnet8_half", num_classes=10, taps=()), there.imported_path(sha256), layout="ours")
    teacher = replace(BASELINE, optim=OptimConfig(epochs=0, milestones=()), imported_sha256=sha256)
    expected = [run_trial(config, RunContext(store=there)).weights_sha256 for config in (teacher, replace(KD, teacher=teacher))]
    result = command(replace(KD, teacher=teacher).trial_id, "--runs", there.root, "--out", here)
    assert result.returncode == 0, result.stderr
    records = [ResultStore(here).read_trial(config.trial_id) for config in (teacher, replace(KD, teacher=teacher))]
    assert [record.weights_sha256 for record in records if record is not None] == expected


def test_a_reader_that_has_gone_ends_the_command_quietly(tmp_path: Path) -> None:
    (tmp_path / "trial.json").write_text(BASELINE.to_json())
    reading, writing = os.pipe()
    os.close(reading)
    line = [sys.executable, str(ROOT / "sweeps" / "run_trial.py"), str(tmp_path / "trial.json"), "--out", str(tmp_path / "out")]
    ended = subprocess.run(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=writing, stderr=subprocess.PIPE, timeout=900)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_data_set_is_fetched_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nothing answers
    (tmp_path / "trial.json").write_text(replace(BASELINE, data=DataConfig(dataset="cifar100")).to_json())
    result = command(tmp_path / "trial.json", "--out", tmp_path / "out", "--data-dir", tmp_path / "data", "--download")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert f"cifar100: it can't be fetched into {tmp_path / 'data'}" in result.stderr


def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("no JSON")
    (tmp_path / "trial.json").write_text(BASELINE.to_json())
    (tmp_path / "cifar.json").write_text(replace(BASELINE, data=DataConfig(dataset="cifar100")).to_json())
    out = tmp_path / "out"
    for arguments, sentence in (
        (("nothing", "--out", out), f"trial is 'nothing'; accepted: a trial id of {out}, or a JSON file"),
        ((tmp_path / "text.json", "--out", out), "accepted: a JSON file of a trial's configuration (not JSON"),
        ((tmp_path / "trial.json", "--out", out, "--device", "abacus"), "--device is abacus; accepted"),
        ((tmp_path / "trial.json", "--out", out, "--threads", "0"), "--threads is 0; accepted: 1 or more"),
        ((tmp_path / "trial.json", "--out", tmp_path / "text.json"), "text.json; accepted: a folder"),
        ((tmp_path / "cifar.json", "--out", out / "deep", "--data-dir", tmp_path), "cifar100: torchvision's files are not in"),
    ):
        result = command(*arguments)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
        assert sentence in result.stderr
    assert not out.exists()


def test_a_folder_in_which_a_driver_is_at_work_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "trial.json").write_text(BASELINE.to_json())
    resume = ResultStore(tmp_path / "out").checkpoint_dir(BASELINE.trial_id) / "resume.pt"
    resume.parent.mkdir(parents=True)
    resume.write_bytes(b"of a live worker")
    with FileLock(tmp_path / "out" / "driver.lock"):
        result = command(tmp_path / "trial.json", "--out", tmp_path / "out")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "in which another driver is at work; accepted: another folder" in result.stderr
    assert resume.read_bytes() == b"of a live worker"
