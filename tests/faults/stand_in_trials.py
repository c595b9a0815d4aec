"""A trainable that sleeps instead of training: it writes real records, epochs and weights, and goes on where it was stopped."""

import hashlib
import json
import os
import time
from collections.abc import Callable

from hsakd.config import TrialConfig
from hsakd.records import EpochMetrics, TrialRecord
from hsakd.training.trial import RunContext, TrialInterrupted


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
    finished = store.read_trial(own_id)
    if finished is not None and finished.status == "complete":
        return finished
    folder = store.checkpoint_dir(own_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"pid.{os.getpid()}").touch()
    if config.network == os.environ.get("STAND_IN_POISON"):
        raise RuntimeError("poisoned")
    position = folder / "position.json"
    done = json.loads(position.read_text()) if position.exists() else 0
    for epoch in range(done, config.optim.epochs):
        until = time.monotonic() + float(os.environ.get("STAND_IN_SECONDS", "0"))
        while time.monotonic() < until:
            if should_stop is not None and should_stop():
                raise TrialInterrupted(own_id)
            time.sleep(0.05)
        position.write_text(json.dumps(epoch + 1))
        if report is not None:
            report(row(config, epoch))
    epochs = [row(config, epoch) for epoch in range(config.optim.epochs)]
    store.weights_path(own_id).write_bytes(own_id.encode())
    record = TrialRecord(
        trial_id=own_id,
        status="complete",
        role=config.role,
        network=config.network,
        dataset=config.data.dataset,
        seed=config.seed,
        num_epochs=config.optim.epochs,
        epochs_done=config.optim.epochs,
        top1_last=accuracy(config, config.optim.epochs),
        top1_val=epochs[-1].top1_val,
        config_json=config.to_json(),
    )
    store.write_trial(record, epochs)
    return record


def row(config: TrialConfig, epoch: int) -> EpochMetrics:
    return EpochMetrics(
        trial_id=config.trial_id, epoch=epoch, learning_rate=0.1, loss=1.0, loss_terms={"task": 1.0}, top1_val=accuracy(config, epoch)
    )
