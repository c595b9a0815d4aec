"""The options of the arithmetic reach every trial that is trained, and at their defaults rename none."""

from pathlib import Path

import pytest

from hsakd.command_line import parse
from hsakd.config import NumericsConfig, TrialConfig
from sweeps.cli import SweepOptions
from sweeps.worklist import known_work

ARGUMENTS = ("--preset", "digits")


def trials_of(out: Path, *arguments: str) -> list[TrialConfig]:
    lines = known_work(parse(SweepOptions, ["--out", str(out / "out"), *ARGUMENTS, *arguments]))
    return [trial for _, config in lines for trial in (config, *config.requirements())]


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (("--initialization", "authors"), "initialization", "authors"),
        (("--precision", "bfloat16"), "precision", "bfloat16"),
        (("--channels-last", "no"), "channels_last", False),
        (("--channels-last", "yes"), "channels_last", True),
        (("--compile",), "compile", True),
        (("--tf32", "--gpus", "1"), "tf32", True),
        (("--deterministic",), "deterministic", True),
        (("--cudnn-benchmark", "--gpus", "1"), "cudnn_benchmark", True),
    ],
)
def test_an_option_reaches_every_trial_and_its_requirements(tmp_path: Path, arguments: tuple[str, ...], field: str, value: object) -> None:
    chosen, default = trials_of(tmp_path, *arguments), trials_of(tmp_path)
    assert {getattr(trial.numerics, field) for trial in chosen} == {value}
    assert {trial.numerics for trial in default} == {NumericsConfig()}
    assert {trial.trial_id for trial in default}.isdisjoint(trial.trial_id for trial in chosen)


def test_the_defaults_said_aloud_rename_nothing(tmp_path: Path) -> None:
    stated = ("--initialization", "he", "--precision", "float32", "--channels-last", "auto", "--no-compile", "--no-tf32")
    default = [trial.trial_id for trial in trials_of(tmp_path)]
    assert [
        trial.trial_id for trial in trials_of(tmp_path, *stated, "--no-deterministic", "--no-cudnn-benchmark", "--bank-dtype", "float16")
    ] == default


def test_how_banks_store_is_the_students_matter(tmp_path: Path) -> None:
    trials = trials_of(tmp_path, "--predictions", "bank", "--bank-dtype", "float32")
    assert {(trial.role, trial.numerics.bank_dtype) for trial in trials if trial.teacher is not None} == {("student", "float32")}
    assert {trial.numerics for trial in trials if trial.teacher is None} == {NumericsConfig()}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--tf32",), "--tf32 is given; accepted: with --gpus 1 or more; a CPU has no TF32"),
        (("--cudnn-benchmark",), "--cudnn-benchmark is given; accepted: with --gpus 1 or more, without --deterministic"),
        (("--cudnn-benchmark", "--deterministic", "--gpus", "1"), "--cudnn-benchmark is given; accepted: with --gpus 1 or more, without"),
        (("--bank-dtype", "float32"), "--bank-dtype is float32; accepted: float32 with --predictions bank only"),
    ],
)
def test_what_would_change_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        trials_of(tmp_path, *arguments)
    assert sentence in " ".join(capsys.readouterr().err.split())
