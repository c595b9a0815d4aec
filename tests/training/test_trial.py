"""Whole trials on the embedded digits: roles, idempotence, death and resumption, divergence."""

import multiprocessing
import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hsakd.config import DataConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.records import EpochMetrics, ResultStore
from hsakd.training.checkpoint import RESUME_FILE, CheckpointNotWritten
from hsakd.training.trial import MissingTeacher, RunContext, TrialInterrupted, TrialOutOfMemory, run_trial

DATA = DataConfig(dataset="digits", train_subset=200, validation_fraction=0.2)
OPTIM = OptimConfig(epochs=3, batch_size=32, milestones=(2,))
BASELINE = TrialConfig(network="resnet8_half", data=DATA, optim=OPTIM, taps=())
JOINT = replace(BASELINE, taps=None, objective=ObjectiveConfig(terms=(("task", 1.0), ("ce_q", 1.0))))
FROZEN = replace(JOINT, backbone=BASELINE)
STUDENT = replace(JOINT, teacher=JOINT, seed=1, objective=ObjectiveConfig(terms=(("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))))
KD = replace(BASELINE, teacher=BASELINE, seed=1, objective=ObjectiveConfig(terms=(("task", 0.1), ("kd", 0.9)), temperature=4.0))


def context(root: Path, **changes: object) -> RunContext:
    return replace(RunContext(store=ResultStore(root)), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every kind of trial has been run."""
    root = tmp_path_factory.mktemp("finished")
    for config in (BASELINE, JOINT, FROZEN, STUDENT, KD):
        run_trial(config, context(root))
    return root


def test_every_kind_of_trial_is_recorded_with_its_provenance(finished: Path) -> None:
    store = ResultStore(finished)
    teacher = store.read_trial(JOINT.trial_id)
    assert teacher is not None
    for config, source in ((BASELINE, "none"), (JOINT, "none"), (FROZEN, "none"), (STUDENT, "live"), (KD, "live")):
        record = store.read_trial(config.trial_id)
        assert record is not None
        assert (record.status, record.epochs_done, record.config) == ("complete", 3, config)
        assert record.predictions_source == source
        assert record.num_train_images == 160
        assert record.top1_best_test is not None
        assert record.top1_last is not None
        assert record.top1_val is not None
        assert 0 <= record.top1_last <= record.top1_best_test <= 100
        assert len(record.branch_top1_joint) == (0 if config.taps == () else 3)
        epochs = store.read_epochs(config.trial_id)
        assert [row.epoch for row in epochs] == [0, 1, 2]
        assert [row.learning_rate for row in epochs] == pytest.approx([0.05, 0.05, 0.005])
        assert list(epochs[0].loss_terms) == [name for name, _ in config.objective.terms]
        assert store.weights_path(config.trial_id).exists()
        assert not (store.checkpoint_dir(config.trial_id) / RESUME_FILE).exists()
    student = store.read_trial(STUDENT.trial_id)
    assert student is not None
    assert student.teacher_weights_sha256 == teacher.weights_sha256 != ""


def test_a_frozen_teacher_keeps_its_backbone_to_the_bit(finished: Path) -> None:
    store = ResultStore(finished)
    backbone, teacher = (load_file(store.weights_path(config.trial_id)) for config in (BASELINE, FROZEN))
    shared = [name for name in backbone if name in teacher]
    assert len(shared) == len(backbone)
    assert all(torch.equal(backbone[name], teacher[name]) for name in shared)
    assert len(teacher) > len(backbone)


@pytest.mark.parametrize("damage", ["cut", "one bit"])
def test_damaged_weights_are_set_aside_and_their_trial_is_unfinished(finished: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    store = ResultStore(tmp_path)
    path = store.weights_path(JOINT.trial_id)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    with pytest.raises(MissingTeacher, match=f"{JOINT.trial_id}.*damaged weights, moved to"):
        run_trial(replace(STUDENT, seed=2), context(tmp_path))
    assert store.finished(JOINT.trial_id) is None
    assert len(list((tmp_path / "set_aside").iterdir())) == 1


def test_a_finished_trial_is_not_run_again(finished: Path) -> None:
    path = ResultStore(finished).trial_path(STUDENT.trial_id)
    before = path.stat().st_mtime_ns

    def refuse(_: EpochMetrics) -> None:
        raise AssertionError("an epoch was trained")

    run_trial(STUDENT, context(finished), report=refuse)
    assert path.stat().st_mtime_ns == before


def test_an_unreadable_record_is_set_aside_and_its_trial_done_again_with_equal_weights(finished: Path, tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    first = run_trial(BASELINE, context(tmp_path))
    store.trial_path(BASELINE.trial_id).write_bytes(b"PAR1 cut")
    second = run_trial(BASELINE, context(tmp_path))
    assert first.weights_sha256 == second.weights_sha256
    assert len(list((tmp_path / "set_aside").iterdir())) == 1
    other = ResultStore(finished).read_trial(BASELINE.trial_id)
    assert other is not None
    assert other.weights_sha256 == first.weights_sha256


def test_a_stopped_trial_goes_on_bit_identically_from_the_middle_of_an_epoch(finished: Path, tmp_path: Path) -> None:
    run_trial(JOINT, context(tmp_path))
    calls = iter(range(10_000))
    with pytest.raises(TrialInterrupted, match="stopped at epoch 1, step 2"):
        run_trial(STUDENT, context(tmp_path), should_stop=lambda: next(calls) >= 7)
    resumed = run_trial(STUDENT, context(tmp_path, attempt=2))
    undisturbed = ResultStore(finished).read_trial(STUDENT.trial_id)
    assert undisturbed is not None
    assert resumed.weights_sha256 == undisturbed.weights_sha256
    assert resumed.attempts == 2
    losses = [[row.loss for row in ResultStore(root).read_epochs(STUDENT.trial_id)] for root in (finished, tmp_path)]
    assert losses[0] == losses[1]


def _run_and_die(root: Path) -> None:
    def die(metrics: EpochMetrics) -> None:
        if metrics.epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    run_trial(STUDENT, context(root, checkpoint_minutes=0.0), report=die)


def test_a_killed_trial_goes_on_bit_identically(finished: Path, tmp_path: Path) -> None:
    run_trial(JOINT, context(tmp_path))
    process = multiprocessing.get_context("spawn").Process(target=_run_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    epochs: list[int] = []
    resumed = run_trial(STUDENT, context(tmp_path), report=lambda metrics: epochs.append(metrics.epoch))
    assert epochs == [0, 1, 2]  # a new driver hears of all of them
    undisturbed = ResultStore(finished).read_trial(STUDENT.trial_id)
    assert undisturbed is not None
    assert resumed.weights_sha256 == undisturbed.weights_sha256


@pytest.mark.parametrize("damage", ["cut", "foreign", "other"])
def test_a_broken_checkpoint_is_set_aside_and_the_trial_starts_anew(finished: Path, tmp_path: Path, damage: str) -> None:
    calls = iter(range(10_000))
    with pytest.raises(TrialInterrupted):
        run_trial(BASELINE, context(tmp_path), should_stop=lambda: next(calls) >= 7)
    path = ResultStore(tmp_path).checkpoint_dir(BASELINE.trial_id) / RESUME_FILE
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "foreign":
        path.write_bytes(b"not a checkpoint")
    else:
        torch.save({"trial_id": "of another"}, path)
    record = run_trial(BASELINE, context(tmp_path))
    undisturbed = ResultStore(finished).read_trial(BASELINE.trial_id)
    assert undisturbed is not None
    assert record.weights_sha256 == undisturbed.weights_sha256
    assert len(list((tmp_path / "set_aside").iterdir())) == 1


def test_a_disk_without_room_for_a_checkpoint_is_one_sentence_and_the_previous_one_stays(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        calls = iter(range(10_000))
        with pytest.raises(TrialInterrupted):
            run_trial(BASELINE, context(folder), should_stop=lambda: next(calls) >= 7)
        (folder / "ballast").write_bytes(bytes(shutil.disk_usage(folder).free - 20_000))
        with pytest.raises(CheckpointNotWritten, match=r"can't be written .*the previous one is kept"):
            run_trial(BASELINE, context(folder))
        (folder / "ballast").unlink()
        epochs: list[int] = []
        run_trial(BASELINE, context(folder), report=lambda metrics: epochs.append(metrics.epoch))
        assert epochs == [1, 2]
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("x")])
def test_out_of_memory_ends_the_attempt_without_a_record(tmp_path: Path, error: Exception) -> None:
    def exhaust(_: EpochMetrics) -> None:
        raise error

    with pytest.raises(TrialOutOfMemory, match=BASELINE.trial_id):
        run_trial(BASELINE, context(tmp_path), report=exhaust)
    assert ResultStore(tmp_path).read_trial(BASELINE.trial_id) is None


def test_a_loss_that_is_not_finite_ends_the_trial_as_diverged_with_its_step(tmp_path: Path) -> None:
    config = replace(BASELINE, optim=replace(OPTIM, learning_rate=1e30))
    record = run_trial(config, context(tmp_path))
    assert record.status == "diverged"
    assert record.diverged_step is not None
    assert record.diverged_step >= 1
    assert record.error == f"loss is not finite at step {record.diverged_step}"
    assert record.top1_last is None
    assert ResultStore(tmp_path).read_trial(config.trial_id) == record


def test_a_student_without_its_teacher_says_which_trial_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingTeacher, match=rf"trial {JOINT.trial_id} \(resnet8_half, teacher\) has no finished weights"):
        run_trial(STUDENT, context(tmp_path))


def test_a_tap_that_the_teacher_lacks_is_refused(finished: Path) -> None:
    config = replace(STUDENT, teacher=replace(JOINT, taps=(1, 2)), taps=(1, 3))
    run_trial(replace(JOINT, taps=(1, 2)), context(finished))
    with pytest.raises(ValueError, match=r"taps is \(1, 3\); accepted: those of the teacher resnet8_half, \(1, 2\)"):
        run_trial(config, context(finished))
