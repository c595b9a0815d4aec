"""Whole trials on the embedded digits: roles, idempotence, death and resumption, divergence."""

import errno
import importlib.metadata
import importlib.util
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hsakd.config import DataConfig, NumericsConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.data import load_dataset
from hsakd.records import EpochMetrics
from hsakd.store import ResultStore
from hsakd.training.checkpoint import RESUME_FILE, CheckpointNotWritten
from hsakd.training.evaluate import Accuracy, evaluate_batches
from hsakd.training.predictions import LivePredictions
from hsakd.training.trial import MissingTeacher, RunContext, TrialInterrupted, TrialOutOfMemory, run_trial, teacher_predictions

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

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
    others = [name for name in ("torch", "timm", "torchdistill", "pycocotools") if importlib.util.find_spec(name) is not None]
    assert {name: student.versions.get(name) for name in others} == {name: importlib.metadata.version(name) for name in others}


@pytest.mark.parametrize(
    "numerics",
    [
        NumericsConfig(precision="bfloat16"),
        NumericsConfig(precision="float64"),
        NumericsConfig(channels_last=False),
        NumericsConfig(deterministic=True),
        NumericsConfig(cudnn_benchmark=True),
        pytest.param(NumericsConfig(compile=True), marks=pytest.mark.slow),
    ],
)
def test_every_switch_of_the_arithmetic_trains_and_agrees_with_the_default(finished: Path, numerics: NumericsConfig) -> None:
    config = replace(STUDENT, numerics=numerics, optim=replace(OPTIM, epochs=1, milestones=()))
    record = run_trial(config, context(finished))
    assert (record.status, record.config.numerics) == ("complete", numerics)
    assert torch.are_deterministic_algorithms_enabled() == numerics.deterministic
    assert torch.backends.cudnn.benchmark == numerics.cudnn_benchmark
    losses = [ResultStore(finished).read_epochs(trial_id)[0].loss for trial_id in (config.trial_id, STUDENT.trial_id)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # the first epoch of both
    torch.use_deterministic_algorithms(False)


def test_the_peak_of_memory_is_the_trials_not_the_processs(tmp_path: Path) -> None:
    ballast = np.ones(2**26)  # 512 MiB, freed before the trial
    del ballast
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    record = run_trial(replace(BASELINE, optim=replace(OPTIM, epochs=1, milestones=())), context(tmp_path))
    assert 0 < record.peak_memory_bytes < before - 2**28


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
    path = ResultStore(tmp_path).checkpoint_dir(STUDENT.trial_id) / RESUME_FILE
    state = torch.load(path, weights_only=True)
    assert 0 < state["train_seconds"] < state["total_seconds"] < 900
    torch.save(state | {"total_seconds": 1000.0}, path)
    resumed = run_trial(STUDENT, context(tmp_path, attempt=2))
    assert 1000 < resumed.total_seconds < 1900
    undisturbed = ResultStore(finished).read_trial(STUDENT.trial_id)
    assert undisturbed is not None
    assert resumed.weights_sha256 == undisturbed.weights_sha256
    assert resumed.attempts == 2
    losses = [[row.loss for row in ResultStore(root).read_epochs(STUDENT.trial_id)] for root in (finished, tmp_path)]
    assert losses[0] == losses[1]


def _run_and_die(root: Path) -> None:
    """Die within the first write of a checkpoint after the second epoch."""

    def cut_save(state: object, file: BinaryIO) -> None:
        del state
        file.write(b"a part")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def die_soon(metrics: EpochMetrics) -> None:
        if metrics.epoch == 1:
            torch.save = cut_save

    run_trial(STUDENT, context(root, checkpoint_minutes=0.0), report=die_soon)


def test_a_killed_trial_goes_on_bit_identically(finished: Path, tmp_path: Path) -> None:
    run_trial(JOINT, context(tmp_path))
    process = multiprocessing.get_context("spawn").Process(target=_run_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    epochs: list[int] = []
    folder = ResultStore(tmp_path).checkpoint_dir(STUDENT.trial_id)
    assert list(folder.glob(".resume.pt.*.tmp"))
    resumed = run_trial(STUDENT, context(tmp_path), report=lambda metrics: epochs.append(metrics.epoch))
    assert [path.name for path in folder.iterdir()] == ["weights.safetensors"]
    assert epochs == [0, 1, 2]  # a new driver hears of all of them
    undisturbed = ResultStore(finished).read_trial(STUDENT.trial_id)
    assert undisturbed is not None
    assert resumed.weights_sha256 == undisturbed.weights_sha256


@pytest.mark.parametrize("damage", ["cut", "foreign", "other", "bits of a tensor", "bits of a name", "a bit of the directory"])
def test_a_broken_checkpoint_is_set_aside_and_the_trial_starts_anew(finished: Path, tmp_path: Path, damage: str) -> None:
    calls = iter(range(10_000))
    with pytest.raises(TrialInterrupted):
        run_trial(BASELINE, context(tmp_path), should_stop=lambda: next(calls) >= 7)
    path = ResultStore(tmp_path).checkpoint_dir(BASELINE.trial_id) / RESUME_FILE
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "foreign":
        path.write_bytes(b"not a checkpoint")
    elif damage == "a bit of the directory":  # its place (Zip64): a seek there is an OSError with an errno
        content = path.read_bytes()
        place = content.rindex(b"PK\x06\x06") + 51
        path.write_bytes(content[:place] + bytes([content[place] ^ 128]) + content[place + 1 :])
    elif damage.startswith("bits"):
        content = path.read_bytes()
        with zipfile.ZipFile(path) as archive:  # it stores its parts as they are
            part = max(archive.infolist(), key=lambda part: part.file_size) if damage == "bits of a tensor" else archive.infolist()[0]
            stored = archive.read(part)
        key = stored.index(b"rng_state") if damage == "bits of a name" else part.file_size // 2
        place = content.index(stored) + key
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
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
        with pytest.raises(CheckpointNotWritten, match=r"can't be written .*the previous one is kept") as caught:
            run_trial(BASELINE, context(folder))
        assert caught.value.errno == errno.ENOSPC  # what tells the engine to stop the sweep instead of trying again
        assert [path.name for path in ResultStore(folder).checkpoint_dir(BASELINE.trial_id).iterdir()] == [RESUME_FILE]
        (folder / "ballast").unlink()
        epochs: list[int] = []
        run_trial(BASELINE, context(folder), report=lambda metrics: epochs.append(metrics.epoch))
        assert epochs == [0, 1, 2]
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("x"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"),
    ],
)
def test_out_of_memory_ends_the_attempt_without_a_record(tmp_path: Path, error: Exception) -> None:
    def exhaust(_: EpochMetrics) -> None:
        raise error

    with pytest.raises(TrialOutOfMemory, match=BASELINE.trial_id):
        run_trial(BASELINE, context(tmp_path), report=exhaust)
    assert ResultStore(tmp_path).read_trial(BASELINE.trial_id) is None


def _run_with_little_memory(root: Path, ended: "Queue[str]") -> None:
    run_trial(BASELINE, context(root))  # so that imports and small things are there
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, resource.RLIM_INFINITY))
    wide = replace(BASELINE, network="wrn_16_2", data=DataConfig(dataset="digits", image_size=64), optim=replace(OPTIM, batch_size=512))
    try:
        run_trial(wide, context(root))
    except TrialOutOfMemory as error:
        ended.put(str(error))


def test_a_machine_without_memory_ends_the_attempt(tmp_path: Path) -> None:
    spawns = multiprocessing.get_context("spawn")
    ended = spawns.Queue()
    process = spawns.Process(target=_run_with_little_memory, args=(tmp_path, ended))
    process.start()
    assert " on cpu: " in ended.get(timeout=900)
    process.join()
    assert process.exitcode == 0


def _cpu_seconds_of_threads() -> dict[str, int]:
    stats = {task.name: (task / "stat").read_text().rpartition(")")[2].split() for task in Path("/proc/self/task").iterdir()}
    return {name: int(fields[11]) + int(fields[12]) for name, fields in stats.items()}  # user and system time, in ticks


def _count_busy_threads(root: Path, counts: "Queue[tuple[int, int]]") -> None:
    run_trial(JOINT, context(root))
    numerics = NumericsConfig(precision="bfloat16", teacher_predictions="bank")
    student = replace(STUDENT, numerics=numerics, optim=replace(OPTIM, epochs=1, milestones=()))
    for num_threads in (1, 2):
        before = _cpu_seconds_of_threads()
        run_trial(replace(student, seed=num_threads), context(root, num_threads=num_threads, bank_dir=root / "banks"))
        spent = [ticks - before.get(name, 0) for name, ticks in _cpu_seconds_of_threads().items()]
        counts.put((torch.get_num_threads(), sum(ticks > 0.02 * sum(spent) for ticks in spent)))


def test_a_trial_uses_exactly_the_threads_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bank and in bfloat16: no writer thread, none of oneDNN's own, whatever the environment says."""
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    spawns = multiprocessing.get_context("spawn")
    counts = spawns.Queue()
    process = spawns.Process(target=_count_busy_threads, args=(tmp_path, counts))
    process.start()
    assert counts.get(timeout=900) == (1, 1)
    assert counts.get(timeout=900) == (2, 2)
    process.join()


def test_a_loss_that_is_not_finite_ends_the_trial_as_diverged_with_its_step(tmp_path: Path) -> None:
    config = replace(BASELINE, optim=replace(OPTIM, learning_rate=1e30))
    record = run_trial(config, context(tmp_path))
    assert record.status == "diverged"
    assert record.diverged_step is not None
    assert record.diverged_step >= 1
    assert record.error == f"loss is not finite at step {record.diverged_step}"
    assert record.top1_last is None
    assert ResultStore(tmp_path).read_trial(config.trial_id) == record


def test_a_last_update_that_leaves_no_finite_logit_is_a_divergence(tmp_path: Path) -> None:
    config = replace(BASELINE, optim=replace(OPTIM, epochs=1, batch_size=160, milestones=(), learning_rate=1e38))
    record = run_trial(config, context(tmp_path))
    assert (record.status, record.diverged_step, record.error) == ("diverged", 0, "logits are not finite after step 0")
    assert (record.top1_last, record.epochs_done, record.has_weights) == (None, 0, False)


def test_the_branches_are_tested_after_the_last_epoch_or_on_request_after_every_one(finished: Path, tmp_path: Path) -> None:
    record, usual = run_trial(JOINT, context(finished)), ResultStore(finished).read_epochs(JOINT.trial_id)
    assert run_trial(JOINT, context(tmp_path, branch_accuracies="every")).weights_sha256 == record.weights_sha256
    asked = ResultStore(tmp_path).read_epochs(JOINT.trial_id)
    assert [[len(row.branch_top1_joint) for row in rows] for rows in (usual, asked)] == [[0, 0, 3], [3, 3, 3]]
    assert [row.top1_test for row in usual] == [row.top1_test for row in asked]
    for rows in (usual, asked):
        assert (rows[-1].branch_top1_joint, rows[-1].branch_top1_class) == (record.branch_top1_joint, record.branch_top1_class)
        assert rows[-1].top1_test == record.top1_last


def test_a_float64_trial_reads_the_weights_of_others_unrounded(tmp_path: Path) -> None:
    exact, own = NumericsConfig(precision="float64"), context(tmp_path)
    backbone, joint, student = (replace(config, numerics=exact) for config in (BASELINE, JOINT, STUDENT))
    frozen, student = replace(joint, backbone=backbone), replace(student, teacher=joint)
    for config in (backbone, frozen, joint):
        run_trial(config, own)
    files = [load_file(own.store.weights_path(config.trial_id)) for config in (backbone, frozen, joint)]
    for name, tensor in files[0].items():
        assert torch.equal(files[1][name], tensor), name
    live = teacher_predictions(student, load_dataset(DATA), own, torch.device("cpu"))
    assert isinstance(live, LivePredictions)
    asked = live.answer.state_dict()
    for name, tensor in files[2].items():
        assert torch.equal(asked[f"network.{name}"], tensor), name


def test_the_test_images_are_seen_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[bool] = []

    def counted(*values: Any, with_branches: bool, **named: Any) -> Accuracy:
        passes.append(with_branches)
        return evaluate_batches(*values, with_branches=with_branches, **named)

    monkeypatch.setattr("hsakd.training.loop.evaluate_batches", counted)
    run_trial(replace(BASELINE, data=replace(DATA, validation_fraction=0.0)), context(tmp_path))
    assert passes == [False, False, True]


def test_a_student_without_its_teacher_says_which_trial_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingTeacher, match=rf"trial {JOINT.trial_id} \(resnet8_half, teacher\) has no finished weights"):
        run_trial(STUDENT, context(tmp_path))


def test_branch_weights_of_another_number_than_the_taps_are_refused(finished: Path) -> None:
    config = replace(STUDENT, objective=replace(STUDENT.objective, branch_weights=(1.0, 0.5)))
    with pytest.raises(ValueError, match=r"branch_weights is \(1.0, 0.5\); accepted: 3 weights, one for each of the taps \(1, 2, 3\)"):
        run_trial(config, context(finished))


def test_a_tap_that_the_teacher_lacks_is_refused(finished: Path) -> None:
    config = replace(STUDENT, teacher=replace(JOINT, taps=(1, 2)), taps=(1, 3))
    run_trial(replace(JOINT, taps=(1, 2)), context(finished))
    with pytest.raises(ValueError, match=r"taps is \(1, 3\); accepted: those of the teacher resnet8_half, \(1, 2\)"):
        run_trial(config, context(finished))
