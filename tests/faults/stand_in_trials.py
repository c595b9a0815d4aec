"""A trainable that sleeps instead of training: it writes real records, epochs and weights, and goes on where it was stopped."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from hsakd.config import TrialConfig
from hsakd.files import replacing
from hsakd.records import EpochMetrics, TrialRecord
from hsakd.training.trial import RunContext, TrialInterrupted, TrialOutOfMemory


def accuracy(config: TrialConfig, epoch: int) -> float:
    return int(hashlib.sha256(f"{config.trial_id}{epoch}".encode()).hexdigest()[:6], 16) / 2**24 * 100


def run(
    config: TrialConfig,
    context: RunContext,
    *,
    report: Callable[[EpochMetrics], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrialRecord:
    store, own_id = context.store, config.trial_id
    finished = store.finished(own_id)
    if finished is not None:
        return finished
    folder = store.checkpoint_dir(own_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"pid.{os.getpid()}").touch()
    note_placement(store.root, config)
    if config.network == os.environ.get("STAND_IN_POISON"):
        raise RuntimeError("poisoned")
    position = folder / "position.json"
    done = json.loads(position.read_text()) if position.exists() else 0
    hold = Path(os.environ.get("STAND_IN_HOLD", "no such file"))
    for epoch in range(config.optim.epochs):
        until = time.monotonic() + float(os.environ.get("STAND_IN_SECONDS", "0")) * (epoch >= done)
        while time.monotonic() < until or hold.is_file():
            if should_stop is not None and should_stop():
                raise TrialInterrupted(own_id)
            time.sleep(0.05)
        write_json(position, max(done, epoch + 1))
        if report is not None:
            report(row(config, epoch))
    epochs = [row(config, epoch) for epoch in range(config.optim.epochs)]
    if context.keep_checkpoints != "none":
        store.weights_path(own_id).write_bytes(own_id.encode())
    record = TrialRecord.of(
        config,
        status="complete",
        attempts=context.attempt,
        epochs_done=config.optim.epochs,
        top1_last=accuracy(config, config.optim.epochs),
        top1_val=epochs[-1].top1_val,
        has_weights=context.keep_checkpoints != "none",
    )
    store.write_trial(record, epochs)
    return record


def note_placement(out: Path, config: TrialConfig) -> None:
    """Leave behind where the attempt ran and with what."""
    import ray
    from ray import tune

    resources = tune.get_context().get_trial_resources()
    place = {
        "trial_id": config.trial_id,
        "network": config.network,
        "node": ray.get_runtime_context().get_node_id(),
        "gpu": 0.0 if resources is None else resources.required_resources.get("GPU", 0.0),
        "keys": 0 if resources is None else len(resources.required_resources),
    }
    folder = out / "placements"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{time.time_ns()}-{config.trial_id}.json", place)


def write_json(path: Path, value: object) -> None:
    """Write a file that is whole whenever it is read, a kill or not."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value))


def out_of_memory(config: TrialConfig, context: RunContext, **more: object) -> TrialRecord:
    """Like `run`, but one network never fits beside others, and another not even alone."""
    import ray
    from ray import tune

    resources = tune.get_context().get_trial_resources()
    is_alone = resources is not None and resources.required_resources.get("GPU", 0.0) == 1
    never_fits = config.network == os.environ.get("STAND_IN_TOO_BIG") and config.seed == 0
    if never_fits or (config.network == "resnet14" and not is_alone):
        note_placement(context.store.root, config)
        raise TrialOutOfMemory(f"trial {config.trial_id} on {ray.get_gpu_ids()}: CUDA out of memory")
    return run(config, context, **more)  # type: ignore[arg-type]


def hungry(config: TrialConfig, context: RunContext, **more: object) -> TrialRecord:
    """Like `run`, but the trial with seed 0 takes ever more memory, until somebody ends it."""
    if config.seed != 0:
        return run(config, context, **more)  # type: ignore[arg-type]
    taken = []
    while True:
        taken.append(bytearray(os.urandom(2**20)) * 128)
        time.sleep(0.05)


def row(config: TrialConfig, epoch: int) -> EpochMetrics:
    return EpochMetrics(
        trial_id=config.trial_id, epoch=epoch, learning_rate=0.1, loss=1.0, loss_terms={"task": 1.0}, top1_val=accuracy(config, epoch)
    )
