"""`run_trial`: a configuration in, a record out. It needs no Ray and can be called again at any time."""

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from hsakd.config import NumericsConfig, TrialConfig
from hsakd.data.streams import TrainingData, open_dataset
from hsakd.devices import parameter_dtype
from hsakd.files import is_passing
from hsakd.losses.objective import Objective
from hsakd.models import HierarchicalNet, count_multi_adds, count_parameters, create_network
from hsakd.models.checkpoints import load_weights, save_weights, weights_sha256
from hsakd.records import EpochMetrics, TrialRecord, predictions_columns
from hsakd.store import ResultStore
from hsakd.training.bank import open_predictions
from hsakd.training.checkpoint import RESUME_FILE, CheckpointCorrupt
from hsakd.training.loop import FitResult, LoopHooks, TrialInterrupted, fit
from hsakd.training.mutual import attach_peer
from hsakd.training.predictions import TeacherPredictions
from hsakd.training.team import SOLO, Team

__all__ = ["MissingTeacher", "RunContext", "TrialInterrupted", "TrialOutOfMemory", "run_trial"]

T = TypeVar("T")
Report = Callable[[EpochMetrics], None]
PEER_WEIGHTS_FILE = "peer.safetensors"


class MissingTeacher(ValueError):
    """A trial's teacher or backbone has no finished weights in the result folder, or had damaged ones, now set aside."""


class TrialOutOfMemory(RuntimeError):
    """The device's memory did not suffice; nothing was recorded, the trial's checkpoint stays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContext:
    """Where and with what a trial runs; nothing here changes its numbers.

    `bank_dir` and `bank_budget_bytes` are for teacher predictions (None: the defaults of `hsakd.training.bank`). `keep_checkpoints`
    "all" keeps resume files of finished trials, "last" their final weights only, "none" neither (for trials that nobody's teacher is).
    `git_commit` None asks git (a node that got the code through Ray has no checkout). `num_ranks` processes share the trial's batches, on
    a device each; `loader_workers` processes of each decode images that stay in their files. `branch_accuracies`, over all rotations, are
    measured after the last epoch, or after every one.
    """

    store: ResultStore
    data_dir: Path | None = None
    download: bool = False
    device: str = "cpu"
    num_threads: int = 1
    checkpoint_minutes: float = 10.0
    bank_dir: Path | None = None
    bank_budget_bytes: int | None = None
    attempt: int = 1
    keep_checkpoints: Literal["all", "last", "none"] = "last"
    git_commit: str | None = None
    num_ranks: int = 1
    loader_workers: int = 0
    branch_accuracies: Literal["last", "every"] = "last"


def run_trial(
    config: TrialConfig,
    context: RunContext,
    *,
    report: Report | None = None,
    should_stop: Callable[[], bool] | None = None,
    team: Team = SOLO,
) -> TrialRecord:
    """Train, evaluate and record one trial, or return its record if it is already finished.

    An unfinished trial goes on from its checkpoint; a corrupted checkpoint is set aside and the trial starts anew. The weights are
    written before the epochs, the epochs before the row: a row that exists is complete. A loss, or a logit of a test image, that is not
    finite is a record with status "diverged". With `num_ranks` above 1 the work is done by that many processes, which end with this call;
    each of them calls this with its `team`, and only the leader writes.

    Raises:
        KeyError, ValueError: an unknown name, missing data, or a value that doesn't fit.
        MissingTeacher: a required trial has not finished.
        TrialInterrupted: `should_stop` returned True; the checkpoint is written.
        TrialOutOfMemory: the device's memory did not suffice.
    """
    store = context.store
    done = store.finished(config.trial_id)
    if done is not None and (done.has_weights or done.status != "complete" or context.keep_checkpoints == "none"):
        return done
    if context.num_ranks > 1 and team.size == 1 and config.detection is None:
        from hsakd.training.ranks import run_ranks

        return run_ranks(config, context, report=report, should_stop=should_stop)
    torch.set_num_threads(context.num_threads)
    set_numerics(config.numerics)
    forget_peak_memory(torch.device(context.device))
    hooks = LoopHooks(
        checkpoint_dir=store.checkpoint_dir(config.trial_id),
        checkpoint_seconds=60 * context.checkpoint_minutes,
        on_epoch=report,
        should_stop=should_stop,
        branch_accuracies=context.branch_accuracies,
        attempt=context.attempt,
    )
    if config.detection is not None:
        from hsakd.training.detection import run_detection  # torchvision's detectors are for those who need them

        return run_detection(config, context, hooks)
    objective = Objective.from_config(config.objective)
    if config.teacher is None and config.peer is None and objective.reads_teacher:
        raise ValueError(f"teacher is None; accepted: a trial (or a peer) with the terms {'+'.join(objective.names)}")
    device = torch.device(context.device)
    with naming_lack_of_memory(config, context):
        dataset = open_dataset(
            config.data,
            context.data_dir,
            download=context.download,
            num_workers=context.loader_workers,
            is_digested_elsewhere=not team.is_leader,
        )
        network = _initialized_network(config, dataset, store).to(device)
        predictions = teacher_predictions(config, dataset, context, device)
        fit_result = _fit_from_checkpoint(config, network, dataset, predictions, device, context, hooks, team)
    peer, network.peer = network.peer, None  # what is saved, counted and distilled from is one network
    is_complete, keeps_weights = fit_result.accuracy is not None, context.keep_checkpoints != "none"
    if is_complete and keeps_weights and team.is_leader:
        folder = store.checkpoint_dir(config.trial_id)
        folder.mkdir(parents=True, exist_ok=True)  # imported weights have left no checkpoint
        if peer is not None:
            save_weights(peer, folder / PEER_WEIGHTS_FILE, layout="ours", notes=dataset.notes)
        save_weights(network, store.weights_path(config.trial_id), layout="ours", notes=dataset.notes)
    served = predictions_columns(fit_result.epochs)
    if predictions is not None:  # which may have served less than an epoch, or have stopped filling after the last
        served |= {"predictions_source": predictions.source, "predictions_fallback": predictions.fallback or served["predictions_fallback"]}
    record = TrialRecord.of(
        config,
        status="complete" if is_complete else "diverged",
        attempts=context.attempt,
        num_train_images=len(dataset.train_labels),
        parameters=count_parameters(network).backbone,
        multi_adds=count_multi_adds(network, dataset.image_size).backbone,
        weights_sha256=weights_sha256(network) if is_complete else "",
        has_weights=is_complete and keeps_weights,
        peer_network=config.peer or "",
        num_ranks=team.size,
        **_fit_columns(fit_result),
        **served,
        **provenance(config, context, hooks.started, fit_result.earlier_seconds),
    )
    if team.is_leader:
        finish_trial(record, fit_result.epochs, context)
    return record


def _fit_columns(result: FitResult) -> dict[str, Any]:
    """Return the columns of a record that say how far a training came and how well it did, at its last and its selected epochs."""
    epochs, accuracy, peer_accuracy = result.epochs, result.accuracy, result.peer_accuracy
    best_test = max(epochs, key=lambda row: (row.top1_test or 0.0, -row.epoch), default=None)
    with_val = [row for row in epochs if row.top1_val is not None]
    best_val = max(with_val, key=lambda row: (row.top1_val or 0.0, -row.epoch), default=None)
    return {
        "error": result.error,
        "diverged_step": result.diverged_step,
        "epochs_done": len(epochs),
        "train_seconds": sum(row.train_seconds for row in epochs),
        "top1_last": accuracy.top1 if accuracy is not None else None,
        "top5_last": accuracy.top5 if accuracy is not None else None,
        "top1_best_test": best_test.top1_test if best_test is not None else accuracy.top1 if accuracy is not None else None,
        "best_test_epoch": best_test.epoch if best_test is not None else None,
        "top1_val_last": with_val[-1].top1_val if with_val else None,
        "top1_val": best_val.top1_val if best_val is not None else None,
        "best_val_epoch": best_val.epoch if best_val is not None else None,
        "top1_at_best_val": best_val.top1_test if best_val is not None else None,
        "peer_top1_last": peer_accuracy.top1 if peer_accuracy is not None else None,
        "peer_top1_best_test": max((row.top1_test_peer for row in epochs if row.top1_test_peer is not None), default=None),
        "branch_top1_joint": accuracy.branch_top1_joint if accuracy is not None else [],
        "branch_top1_class": accuracy.branch_top1_class if accuracy is not None else [],
    }


def provenance(config: TrialConfig, context: RunContext, started: float, earlier_seconds: float) -> dict[str, Any]:
    """Return the columns of a record that say where, when, on which weights and versions.

    This attempt `started` then, on the monotonic clock; earlier ones took `earlier_seconds`, as far as their last checkpoints tell.
    """
    device, seconds, now = torch.device(context.device), time.monotonic() - started, datetime.now(UTC)
    return {
        "total_seconds": earlier_seconds + seconds,
        "peak_memory_bytes": _peak_memory_bytes(device),
        "teacher_weights_sha256": context.store.weights_digest(config.teacher),
        "backbone_weights_sha256": context.store.weights_digest(config.backbone),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "num_threads": context.num_threads,
        "versions": installed_versions(),
        "git_commit": git_commit() if context.git_commit is None else context.git_commit,
        "started_at": (now - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
        "finished_at": now.isoformat(timespec="seconds"),
    }


def finish_trial(record: TrialRecord, epochs: list[EpochMetrics], context: RunContext) -> None:
    """Write a trial's record, then delete what `keep_checkpoints` gives up."""
    folder = context.store.checkpoint_dir(record.trial_id)
    context.store.write_trial(record, epochs)
    if context.keep_checkpoints != "all":
        (folder / RESUME_FILE).unlink(missing_ok=True)
    if context.keep_checkpoints == "none":
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def naming_lack_of_memory(config: TrialConfig, context: RunContext) -> Iterator[None]:
    """Turn a device's lack of memory into TrialOutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TrialOutOfMemory(f"trial {config.trial_id} on {context.device}: {error}") from error


def _fit_from_checkpoint(
    config: TrialConfig,
    network: HierarchicalNet,
    dataset: TrainingData,
    predictions: TeacherPredictions | None,
    device: torch.device,
    context: RunContext,
    hooks: LoopHooks,
    team: Team,
) -> FitResult:
    try:
        return from_checkpoint(
            config,
            context,
            lambda: fit(config, network, dataset, predictions=predictions, device=device, hooks=hooks, team=team),
            is_leader=team.is_leader,
        )
    finally:
        if predictions is not None:
            predictions.flush()
            predictions.close()


def from_checkpoint(config: TrialConfig, context: RunContext, train: Callable[[], T], *, is_leader: bool = True) -> T:
    """Train; a broken checkpoint is set aside (by the leader of a team) and costs its progress, no more."""
    try:
        return train()
    except CheckpointCorrupt:
        if is_leader:
            context.store.set_aside(context.store.checkpoint_dir(config.trial_id) / RESUME_FILE)
        return train()


def _initialized_network(config: TrialConfig, dataset: TrainingData, store: ResultStore) -> HierarchicalNet:
    network = create_network(
        config.network,
        num_classes=dataset.num_classes,
        num_rotations=config.num_rotations,
        taps=config.taps,
        seed=config.seed,
        initialization=config.numerics.initialization,
    ).to(parameter_dtype(config.numerics))  # before any weights come in, which would be rounded
    if config.imported_sha256 is not None:
        load_weights(network, store.imported_path(config.imported_sha256))
    if config.backbone is not None:
        is_probe = config.role == "probe"
        _load_required_weights(network, store, config.backbone, with_head=not is_probe)
        network.freeze_backbone(trains_head=is_probe)
    if config.peer is not None:
        attach_peer(network, config)
    return network


def teacher_predictions(config: TrialConfig, dataset: TrainingData, context: RunContext, device: torch.device) -> TeacherPredictions | None:
    """Return what a student's objective asks its teacher through; None where it asks no teacher.

    Raises:
        ValueError: the student has a tap that its teacher lacks.
        MissingTeacher: the teacher has no finished weights.
    """
    objective = Objective.from_config(config.objective)
    if config.teacher is None or not objective.reads_teacher:
        return None
    teacher = create_network(
        config.teacher.network, num_classes=dataset.num_classes, num_rotations=config.num_rotations, taps=config.teacher.taps
    ).to(parameter_dtype(config.numerics))
    _load_required_weights(teacher, context.store, config.teacher)
    taps = config.taps if config.taps is not None else teacher.taps
    branches = taps if objective.reads_teacher_branches else ()
    if not set(branches) <= set(teacher.taps):
        raise ValueError(f"taps is {branches}; accepted: those of the teacher {config.teacher.network}, {teacher.taps}")
    return open_predictions(
        teacher.to(device),
        branches=branches,
        num_rotations=config.num_rotations if objective.is_rotated else 1,
        dataset=dataset,
        numerics=config.numerics,
        weights_sha256=context.store.weights_digest(config.teacher),
        bank_dir=context.bank_dir,
        budget_bytes=context.bank_budget_bytes,
        feature_terms=objective.feature_terms,
    )


def _load_required_weights(network: HierarchicalNet, store: ResultStore, requirement: TrialConfig, *, with_head: bool = True) -> None:
    load_weights(network, store.weights_path(checked_requirement(store, requirement).trial_id), with_head=with_head)


def checked_requirement(store: ResultStore, requirement: TrialConfig) -> TrialRecord:
    """Return the record of a finished trial whose weights are there; a file that can't be read, or isn't what it recorded, is set aside.

    Raises:
        MissingTeacher: there are no such weights.
        OSError: the file system fails at the moment; the file may be whole, and stays where it is.
    """
    path = store.weights_path(requirement.trial_id)
    subject = f"trial {requirement.trial_id} ({requirement.network}, {requirement.role})"
    record = store.finished(requirement.trial_id)
    if record is None or not path.exists():
        raise MissingTeacher(f"{subject} has no finished weights in {store.root}")
    try:
        is_intact = weights_sha256(load_file(path)) == record.weights_sha256
    except (SafetensorError, OSError) as error:
        if is_passing(error):
            raise
        is_intact = False
    if not is_intact:
        raise MissingTeacher(f"{subject} had damaged weights, moved to {store.set_aside(path)}")
    return record


def set_numerics(numerics: NumericsConfig) -> None:
    """Set what PyTorch keeps for the whole process: TF32, cuDNN's choice of algorithms, deterministic kernels."""
    if numerics.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may not be deterministic, and PyTorch refuses it
    torch.backends.cuda.matmul.allow_tf32 = numerics.tf32
    torch.backends.cudnn.allow_tf32 = numerics.tf32
    torch.backends.cudnn.benchmark = numerics.cudnn_benchmark
    torch.use_deterministic_algorithms(numerics.deterministic)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a device or, as a plain RuntimeError of PyTorch's allocator, the host has no memory left."""
    words = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def forget_peak_memory(device: torch.device) -> None:
    """Let the peak of memory begin anew: a process may run one trial after the other. On a CPU where it can't, it stays the process's."""
    if device.type == "cuda":
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak of the resident set, VmHWM


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if found is not None:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def installed_versions() -> dict[str, str]:
    packages = ("torch", "numpy", "torchvision", "timm", "torchdistill", "pycocotools", "hsakd-sweeper")
    found = {
        name: next(iter(importlib.metadata.distributions(name=name)), None) for name in packages
    }  # a node may have got ours through Ray
    return {"python": platform.python_version(), **{name: entry.version for name, entry in found.items() if entry is not None}}


def git_commit() -> str:
    """Return the commit of the source tree, with "+" where tracked files differ; empty outside a checkout."""
    folder = Path(__file__).parent
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+" if commit and git("status", "--porcelain", "--untracked-files=no") else "")
    except OSError:
        return ""
