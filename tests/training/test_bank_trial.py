"""Whole student trials from a bank: repeated, interrupted and resumed bit for bit; the record says who answered."""

import errno
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from hsakd.banks import BankOptions
from hsakd.banks import main as banks_main
from hsakd.config import DataConfig, NumericsConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.export import ExportOptions
from hsakd.export import main as export_main
from hsakd.records import EpochMetrics, TrialRecord
from hsakd.store import ResultStore
from hsakd.training.trial import RunContext, TrialInterrupted, run_trial
from sweeps.run_trial import find_config

DATA = DataConfig(dataset="digits", train_subset=64)
OPTIM = OptimConfig(epochs=2, batch_size=16, milestones=())
TEACHER = TrialConfig(network="resnet8_half", data=DATA, optim=OPTIM, objective=ObjectiveConfig(terms=(("task", 1.0), ("ce_q", 1.0))))
STUDENT = replace(
    TEACHER,
    teacher=TEACHER,
    seed=1,
    objective=ObjectiveConfig(terms=(("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))),
    numerics=NumericsConfig(teacher_predictions="bank"),
)


def run(root: Path, banks: Path, config: TrialConfig = STUDENT, *, stop_at: int | None = None, budget: int = 10**9) -> TrialRecord:
    context = RunContext(store=ResultStore(root), bank_dir=banks, bank_budget_bytes=budget)
    run_trial(TEACHER, context)
    calls = iter(range(1000))
    return run_trial(config, context, should_stop=None if stop_at is None else lambda: next(calls) >= stop_at)


def epochs_of(root: Path) -> list[EpochMetrics]:
    return ResultStore(root).read_epochs(STUDENT.trial_id)


def test_a_bank_run_is_repeated_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    cold = run(tmp_path / "a", tmp_path / "banks")
    warm = run(tmp_path / "b", tmp_path / "banks")
    assert cold.weights_sha256 == warm.weights_sha256
    assert (warm.predictions_source, warm.bank_misses, warm.predictions_fallback) == ("bank", 0, "")
    assert cold.bank_misses > 0
    with pytest.raises(TrialInterrupted):
        run(tmp_path / "c", tmp_path / "others", stop_at=3)
    resumed = run(tmp_path / "c", tmp_path / "others")
    assert resumed.weights_sha256 == cold.weights_sha256
    served = [[(row.bank_hits, row.bank_misses) for row in epochs_of(tmp_path / name)] for name in "ac"]
    assert served[0] == served[1]  # of the whole first epoch, both attempts
    assert served[0][0] == (0, 64)
    assert (resumed.bank_hits, resumed.bank_misses) == (cold.bank_hits, cold.bank_misses)


def _run_and_die(root: Path, banks: Path) -> None:
    def die(metrics: EpochMetrics) -> None:
        del metrics
        os.kill(os.getpid(), signal.SIGKILL)

    run_trial(STUDENT, RunContext(store=ResultStore(root), bank_dir=banks, bank_budget_bytes=10**9), report=die)


def test_a_trial_that_is_killed_while_it_fills_the_bank_goes_on_bit_for_bit(tmp_path: Path) -> None:
    undisturbed = run(tmp_path / "a", tmp_path / "banks")
    run_trial(TEACHER, RunContext(store=ResultStore(tmp_path / "b")))
    process = multiprocessing.get_context("spawn").Process(target=_run_and_die, args=(tmp_path / "b", tmp_path / "others"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    resumed = run(tmp_path / "b", tmp_path / "others")
    assert resumed.weights_sha256 == undisturbed.weights_sha256
    assert resumed.bank_misses == undisturbed.bank_misses


def test_a_trial_whose_bank_does_not_fit_runs_live_and_says_so(tmp_path: Path) -> None:
    record = run(tmp_path, tmp_path / "banks", budget=10)
    assert (record.status, record.predictions_source) == ("complete", "live")
    assert "the budget is" in record.predictions_fallback
    assert (record.bank_hits, record.bank_misses) == (0, 0)  # there was no bank to ask


def test_a_fallback_of_an_earlier_attempt_is_not_forgotten(tmp_path: Path) -> None:
    with pytest.raises(TrialInterrupted):
        run(tmp_path, tmp_path / "banks", stop_at=3, budget=10)
    record = run(tmp_path, tmp_path / "banks")
    assert record.predictions_source == "bank"
    first, second = epochs_of(tmp_path)
    assert record.predictions_fallback == first.predictions_fallback
    assert "the budget is" in first.predictions_fallback
    assert first.bank_misses == 16  # the last of four batches
    assert (second.predictions_source, second.predictions_fallback) == ("bank", "")


def test_channels_last_is_honoured_and_agrees(tmp_path: Path) -> None:
    numerics = replace(STUDENT.numerics, channels_last=False)
    other = run(tmp_path, tmp_path / "banks", replace(STUDENT, numerics=numerics, optim=replace(OPTIM, epochs=1)))
    plain = run(tmp_path, tmp_path / "banks", replace(STUDENT, optim=replace(OPTIM, epochs=1)))
    losses = [ResultStore(tmp_path).read_epochs(record.trial_id)[0].loss for record in (other, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_warmed_bank_leaves_no_misses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ResultStore(tmp_path)
    run_trial(TEACHER, RunContext(store=store))
    assert banks_main(BankOptions(command="warm", bank_dir=tmp_path / "banks", out=tmp_path, teacher=TEACHER.trial_id)) == 0
    assert "576 of 576 predictions were missing; all are stored, for students on CPUs\n" in capsys.readouterr().out
    assert run(tmp_path, tmp_path / "banks").bank_misses == 0
    warm = BankOptions(command="warm", bank_dir=tmp_path / "banks", out=tmp_path, teacher=TEACHER.trial_id)
    assert banks_main(replace(warm, precision="bfloat16", bank_dtype="float32")) == 0
    numerics = NumericsConfig(teacher_predictions="bank", precision="bfloat16", bank_dtype="float32")
    assert run(tmp_path, tmp_path / "banks", replace(STUDENT, numerics=numerics)).bank_misses == 0
    capsys.readouterr()
    for changes, sentence in (
        ({"num_views": 10}, "--num-views is 10; accepted: 1 to 9"),
        ({"num_views": 0}, "--num-views is 0; accepted: 1 to 9"),
        ({"bank_budget": 1e-6}, "the bank needs 0.000608 GB, the budget is 1e-06 GB"),
    ):
        assert banks_main(replace(warm, **changes)) == 2
        assert sentence in capsys.readouterr().err


def test_a_bank_is_warmed_on_the_device_that_students_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("hsakd.banks.usable_device", lambda name: pytest.fail(name))
    with pytest.raises(pytest.fail.Exception, match="cuda"):
        banks_main(BankOptions(command="warm", bank_dir=tmp_path / "banks", out=tmp_path, teacher="a"))


def test_commands_that_only_read_a_trial_leave_a_broken_record_where_it_is(tmp_path: Path) -> None:
    path = ResultStore(tmp_path).trial_path("broken")
    path.parent.mkdir()
    path.write_bytes(b"PAR1")
    assert banks_main(BankOptions(command="warm", bank_dir=tmp_path / "banks", out=tmp_path, teacher="broken")) == 2
    assert export_main(ExportOptions(trial="broken", runs=tmp_path)) == 2
    with pytest.raises(ValueError, match="trial is 'broken'; accepted: a trial id of"):
        find_config("broken", ResultStore(tmp_path))
    assert path.read_bytes() == b"PAR1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["trials"]


def test_a_bank_that_could_not_be_written_to_the_disk_is_not_called_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    run_trial(TEACHER, RunContext(store=ResultStore(tmp_path)))
    monkeypatch.setattr(os, "fdatasync", fail)  # what a dying disk says at last
    assert banks_main(BankOptions(command="warm", bank_dir=tmp_path / "banks", out=tmp_path, teacher=TEACHER.trial_id, num_views=1)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"error: --bank-dir is {tmp_path / 'banks'}; bank filling stopped: Input/output error\n"


def test_the_bank_of_kds_teacher_is_warmed_with_what_kd_asks(tmp_path: Path) -> None:
    teacher = replace(TEACHER, taps=(), objective=ObjectiveConfig())
    context = RunContext(store=ResultStore(tmp_path), bank_dir=tmp_path / "banks", bank_budget_bytes=10**9)
    run_trial(teacher, context)
    assert banks_main(BankOptions(command="warm", bank_dir=tmp_path / "banks", out=tmp_path, teacher=teacher.trial_id)) == 0
    objective = ObjectiveConfig(terms=(("task", 0.1), ("kd", 0.9)), temperature=4.0)
    record = run_trial(replace(STUDENT, teacher=teacher, taps=(), objective=objective), context)
    assert (record.predictions_source, record.bank_misses) == ("bank", 0)
