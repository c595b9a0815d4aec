"""The commands as a user types them: bad input, plans, status."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hsakd.records import PlanEntry, TrialRecord
from hsakd.store import ResultStore, write_rows
from sweeps.cli import SweepOptions
from sweeps.run_pairs import earlier_plan
from sweeps.worklist import known_work

ROOT = Path(__file__).parents[2]


def command(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(ROOT / "sweeps" / name), *arguments], env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--pairs", "wrn_40_2-nothing"), "nothing"),
        (("--methods", "Magic"), "Magic"),
        (("--methods", "Student,KD"), "--methods is Student,KD; accepted, separated by blanks: Student, KD, HSAKD, "),
        (("--dataset", "mnist"), "mnist"),
        (("--preset", "huge"), "huge"),
        (("--gpus", "-1"), "--gpus is -1; accepted: 0 (CPU) or more"),
        (("--gpus", "1.5"), "--gpus is 1.5; accepted: a whole number"),
        (("--bank-budget", "much"), "--bank-budget is much; accepted: a number"),
        (("--checkpoint-minutes", "-1"), "--checkpoint-minutes is -1.0"),
        (("--methods", "KD", "KD"), "--methods is KD KD; accepted: each one once"),
        (("--magic",), "Unrecognized options: --magic"),
        (("--data-dir", "/nowhere"), "cifar100: torchvision's files are not in /nowhere"),
        (("--epochs", "0"), "--epochs is 0"),
        (("--address", "ray://host:1"), "ray job submit"),
        (("--address", "somewhere"), "HOST:PORT"),
        (("--gpu-fraction", "resnet20=2"), "--gpu-fraction is resnet20=2"),
        (("--time-limit", "soon"), "--time-limit is soon"),
        (("--time-limit", "0:00:00"), "--time-limit is 0:00:00; accepted: a time above 0"),
        (("--time-limit", "00:99:99"), "--time-limit is 00:99:99"),
        (("--methods",), "--methods is given without a row"),
        (("--trials", "1000000000"), "--trials is 1000000000; accepted: 1 to 100000"),
        (("--search-budget", "1e9x"), "--search-budget is 1e9x; accepted: at most 100000"),
        (("--data-dir", "x" * 300, "--dataset", "imagefolder"), "can't be used (File name too long)"),
        (("--teachers-from", "/nowhere"), "--teachers-from"),
    ],
)
def test_bad_input_is_refused_with_status_2_and_without_a_traceback(arguments: tuple[str, ...], named: str, tmp_path: Path) -> None:
    result = command("run_pairs.py", "--out", str(tmp_path / "out"), *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert named in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    result = command("run_pairs.py", "--out", str(tmp_path))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_a_dry_run_prints_the_papers_plan_and_writes_nothing(tmp_path: Path) -> None:
    result = command("run_pairs.py", "--preset", "paper", "--gpus", "16", "--out", str(tmp_path / "out"), "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "wrn_40_2-wrn_16_2" in result.stdout
    assert not (tmp_path / "out").exists()


def test_a_reader_that_has_gone_is_no_traceback(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command_line = [sys.executable, str(ROOT / "sweeps" / "run_pairs.py"), "--preset", "paper", "--out", str(tmp_path / "out"), "--dry-run"]
    ended = subprocess.run(command_line, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=writing, stderr=subprocess.PIPE, timeout=900)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.parametrize("name", ["status.py", "check_study.py"])
def test_a_folder_without_a_sweep_is_refused_by_the_readers(name: str, tmp_path: Path) -> None:
    result = command(name, str(tmp_path))
    assert result.returncode == 2
    assert "accepted" in result.stderr


def test_help_and_plans_import_neither_torch_nor_ray() -> None:
    modules = "run_pairs, status, check_study, pruning_report, run_trial"
    code = f"import sys; from sweeps import {modules}; assert not {{'torch', 'ray', 'sklearn'}} & set(sys.modules), 'imported'"
    result = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_new_preset_is_accepted_by_the_parser(tmp_path: Path) -> None:
    code = (
        "from sweeps.presets import PRESETS; PRESETS['mine'] = PRESETS['digits']; from sweeps.cli import SweepOptions; "
        f"from hsakd.command_line import parse; print(parse(SweepOptions, ['--preset', 'mine', '--out', {str(tmp_path / 'out')!r}]).preset)"
    )
    result = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.stdout == "mine\n", result.stderr


def test_a_dry_run_says_hours_makespan_disk_and_their_basis(tmp_path: Path) -> None:
    plan = ("--preset", "paper", "--gpus", "16", "--out", str(tmp_path / "out"), "--dry-run", "--predictions", "bank")
    result = command("run_pairs.py", *plan)
    assert "345 trainings left, searches included" in result.stdout
    assert "GPU-hours" in result.stdout
    assert "h on 16 GPUs (basis: an assumed" in result.stdout
    assert "GB of weights" in result.stdout
    assert "the budget is half of the disk that is free there" in result.stdout


@pytest.mark.parametrize("name", ["run_pairs.py", "check_study.py", "pruning_report.py"])
def test_a_journal_that_is_none_is_named_in_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "studies.journal").write_text("not a journal\n{}\n")
    arguments = ("--out", str(tmp_path), "--preset", "digits") if name == "run_pairs.py" else (str(tmp_path),)
    result = command(name, *arguments)
    assert result.returncode == 2
    assert f"{tmp_path}/studies.journal can't be read" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "studies.journal").read_text() == "not a journal\n{}\n"


def test_status_names_a_damaged_plan_and_a_sweep_sets_it_aside(tmp_path: Path) -> None:
    (tmp_path / "plan.parquet").write_bytes(b"PAR1 cut")
    result = command("status.py", str(tmp_path))
    assert result.returncode == 2
    assert "plan.parquet is not a readable Parquet file" in result.stderr
    assert "Traceback" not in result.stderr
    assert earlier_plan(ResultStore(tmp_path)) == []
    assert [path.name for path in (tmp_path / "set_aside").iterdir()] == [f"{tmp_path.name}-plan.parquet.0"]


def test_a_watch_ends_quietly_with_an_interrupt(tmp_path: Path) -> None:
    ResultStore(tmp_path).write_plan([PlanEntry(trial_id="a", purpose="report", method="KD", teacher="t", student="s", seed=0)])
    assert "--every is 0.0; accepted" in command("status.py", str(tmp_path), "--watch", "--every", "0").stderr
    line = [sys.executable, str(ROOT / "sweeps" / "status.py"), str(tmp_path), "--watch", "--every", "0.2"]
    watch = subprocess.Popen(
        line,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it, and so do their children
    )
    assert watch.stdout is not None
    seen = 0
    while seen < 2:
        seen += watch.stdout.readline().startswith("all trials")
    watch.send_signal(signal.SIGINT)
    _, errors = watch.communicate(timeout=900)
    assert (watch.returncode, errors) == (1, "")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_folder_of_newer_code_is_refused_and_stays_as_it_is(tmp_path: Path, more: tuple[str, ...]) -> None:
    _, config = known_work(SweepOptions(out=tmp_path, preset="digits"))[0]
    path = ResultStore(tmp_path).trial_path(config.trial_id)
    write_rows(path, [replace(TrialRecord.of(config, status="complete"), schema_version=2)], TrialRecord)
    result = command("run_pairs.py", "--out", str(tmp_path), "--preset", "digits", *more)
    assert (result.returncode, result.stderr) == (2, f"error: {path.name} has schema_version 2; accepted: 1\n")
    assert path.exists()


@pytest.mark.parametrize("is_there", [False, True])
def test_a_refused_command_leaves_folders_as_they_were(tmp_path: Path, is_there: bool) -> None:
    out = tmp_path / "new" / "sweep"
    if is_there:
        out.mkdir(parents=True)
    small = ("--preset", "paper", "--data-dir", "/nowhere")
    result = command("run_pairs.py", "--out", str(out), *small)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "/nowhere" in result.stderr
    assert list(tmp_path.rglob("*")) == ([out.parent, out] if is_there else [])


@pytest.mark.parametrize(
    ("name", "more", "rows"),
    [
        ("run_pairs.py", ("--methods", "KD", "HSSAKD (online)"), {"backbone", "KD", "HSSAKD (online)"}),
        ("run_ablation.py", ("--study", "loss-terms", "few-shot"), {"Teacher*", "loss-terms: task+kl_q+kl_p+ce_q", "few-shot: KD 25%"}),
    ],
)
def test_a_dry_runs_columns_stay_below_their_heads_and_name_the_study(name: str, more: tuple[str, ...], rows: set[str]) -> None:
    pair = "resnet34_imagenet-resnet18_imagenet"
    result = command(name, "--preset", "digits", "--pairs", pair, "--seeds", "1", "--out", "new", "--dry-run", *more)
    assert result.returncode == 0, result.stderr
    head, *lines = [line for line in result.stdout.splitlines() if line.endswith(("state", "to do"))]
    assert head.split() == ["trial", "pair", "row", "seed", "multiply-adds", "hours", "state"]
    for line in lines:
        assert line[head.index("pair") : head.index("row")].strip() == pair
        assert line[head.index("state") :] == "to do"
        assert all(line[head.index(column) + len(column)] == " " for column in ("seed", "multiply-adds", "hours"))
    assert rows <= {line[head.index("row") :].partition("  ")[0] for line in lines}
