"""How every command ends: after Ctrl-C, and with options that can't be used."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hsakd.banks import BankOptions
from hsakd.command_line import parse
from hsakd.config import DataConfig, OptimConfig, TrialConfig
from hsakd.export import ExportOptions
from sweeps.cli import AblationOptions, DetectionOptions, SweepOptions, TransferOptions
from sweeps.run_trial import TrialOptions
from sweeps.status import StatusOptions

ROOT = Path(__file__).parents[1]
SWEEPS = ("run_pairs", "run_ablation", "run_transfer", "run_detection", "run_trial", "status", "check_study", "pruning_report")
COMMANDS = ("analysis/build.py", "analysis/compact.py", "hsakd/export.py", "hsakd/banks.py", *(f"sweeps/{name}.py" for name in SWEEPS))
HELPED = (SweepOptions, AblationOptions, TransferOptions, DetectionOptions, TrialOptions, StatusOptions, ExportOptions, BankOptions)


@pytest.mark.parametrize("path", COMMANDS)
def test_an_interrupt_is_one_line_and_status_130(path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("argparse.ArgumentParser.parse_args", interrupt)
    monkeypatch.setattr("tyro.cli", interrupt)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / path), run_name="__main__")
    assert (end.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_a_trial_that_is_interrupted_shows_no_traceback(tmp_path: Path) -> None:
    data, optim = DataConfig(dataset="digits", train_subset=100), OptimConfig(epochs=10_000, milestones=())
    trial = tmp_path / "trial.json"
    trial.write_text(TrialConfig(network="resnet8_half", data=data, optim=optim, taps=()).to_json())
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "sweeps" / "run_trial.py"), str(trial), "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it, and so do their children
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("epoch "):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=900)
    assert (process.returncode, errors) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("options", "arguments", "sentence"),
    [
        (ExportOptions, "x --format tflite", "--format is tflite; accepted: safetensors, torch-export, onnx"),
        (ExportOptions, "", "Missing from"),
        (ExportOptions, "x --runs", "Missing value for argument '--runs'"),
        (BankOptions, "foo", "command is foo; accepted: inspect, warm, delete"),
        (BankOptions, "", "Missing from"),
        (BankOptions, "warm --threads few", "--threads is few; accepted: a whole number"),
    ],
)
def test_options_of_the_models_commands_are_refused_in_one_sentence(
    options: type[Any], arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(options, arguments.split())
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert told.startswith(f"error: {sentence}")
    assert told.count("\n") == 1


@pytest.mark.parametrize(("module", "arguments"), [("export", ("x", "--magic")), ("banks", ("inspect", "--magic"))])
def test_the_models_commands_draw_no_boxes(module: str, arguments: tuple[str, ...]) -> None:
    result = subprocess.run([sys.executable, "-m", f"hsakd.{module}", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert (result.returncode, result.stderr) == (2, "error: Unrecognized options: --magic (see --help)\n")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_refusal_is_as_plain_on_a_terminal(encoding: str) -> None:
    terminal, end = os.openpty()
    line = [sys.executable, str(ROOT / "sweeps" / "run_pairs.py"), "--out", "new", "--preset", "huge"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "TERM": "xterm"}
    result = subprocess.run(line, env=environment, stdout=end, stderr=subprocess.PIPE, text=True, timeout=900)
    os.close(end)
    os.close(terminal)
    assert (result.returncode, result.stderr) == (2, "error: --preset is huge; accepted: paper, imagenet, fashion, digits\n")


def help_of(options: type[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a command's help without its boxes and line ends."""
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        parse(options, ["--help"])
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("options", HELPED, ids=lambda options: options.__name__)
def test_no_help_says_none_of_a_default(options: type[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told = help_of(options, capsys, monkeypatch)
    assert "(default: None)" not in told
    assert "(default: )" not in told


def test_help_says_which_options_are_the_presets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told = help_of(SweepOptions, capsys, monkeypatch)
    for name in ("seeds", "trials", "top-k", "epochs", "pairs", "train-images", "batch-size", "image-size"):
        assert "default: the preset's" in told.partition(f" --{name} ")[2].partition(" --")[0], name


@pytest.mark.parametrize("options", [TransferOptions, DetectionOptions])
def test_help_of_the_transfers_speaks_of_no_preset(
    options: type[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = help_of(options, capsys, monkeypatch)
    assert "preset" not in told
    assert "default: all of the folder's" in told.partition(" --pairs ")[2].partition(" --")[0]
    assert options is DetectionOptions or "(required)" in told.partition(" --dataset ")[2].partition(" --")[0]


@pytest.mark.parametrize("line", ["-m hsakd.losses", "-m hsakd.models", "tests/benchmarks/overhead.py", "tests/benchmarks/scheduling.py"])
def test_lists_and_benchmarks_know_their_arguments(line: str) -> None:
    for argument, status in (("--help", 0), ("--bogus", 2)):
        command = [sys.executable, *line.split(), argument]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert result.returncode == status
        assert (result.stdout if status == 0 else result.stderr).startswith("usage: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--study loss-terms,few-shot", "--study is loss-terms,few-shot; accepted, separated by blanks: loss-terms, aux-placement, "),
        ("--study temperature --temperatures 1,2", "--temperatures is 1, 2; accepted: numbers, separated by blanks"),
        (
            "--study temperature --pairs vgg8-vgg8,vgg8-vgg8",
            "--pairs is vgg8-vgg8,vgg8-vgg8; accepted, separated by blanks: TEACHER-STUDENT ",
        ),
        ("--study temperature --teacher none", "--teacher is none; accepted: joint, frozen"),
    ],
)
def test_lists_with_commas_are_told_of_blanks(arguments: str, sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        parse(AblationOptions, ["--out", str(tmp_path / "out"), *arguments.split()])
    told = capsys.readouterr().err
    assert told.startswith(f"error: {sentence}")
    assert told.count("\n") == 1
