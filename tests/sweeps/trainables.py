"""Stand-ins for `run_trial` in scheduling tests: they train nothing, but leave real records, epochs and weights behind."""

import os
import time
from collections.abc import Callable

from hsakd.config import TrialConfig
from hsakd.records import EpochMetrics, TrialRecord
from hsakd.training.trial import RunContext, TrialInterrupted

NUM_EPOCHS = 3


def quick(
    config: TrialConfig,
    context: RunContext,
    *,
    report: Callable[[EpochMetrics], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrialRecord:
    """Report epochs whose accuracy follows from the configuration, then write the record."""
    store = context.store
    done = store.read_trial(config.trial_id)
    if done is not None and done.status == "complete":
        return done
    accuracy = 50 + int(config.trial_id[:4], 16) % 400 / 10
    epochs = []
    for epoch in range(NUM_EPOCHS):
        if should_stop is not None and should_stop():
            raise TrialInterrupted(config.trial_id)
        time.sleep(float(os.environ.get("HSAKD_TEST_EPOCH_SECONDS", "0")))
        value = accuracy if config.data.validation_fraction else None
        epochs.append(
            EpochMetrics(
                trial_id=config.trial_id,
                epoch=epoch,
                learning_rate=0.1,
                loss=1.0,
                loss_terms={"task": 1.0},
                top1_test=accuracy,
                top1_val=value,
                train_seconds=0.25,
            )
        )
        if report is not None:
            report(epochs[-1])
    weights = store.weights_path(config.trial_id)
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(b"weights")
    record = TrialRecord(
        trial_id=config.trial_id,
        status="complete",
        attempts=context.attempt,
        role=config.role,
        network=config.network,
        dataset=config.data.dataset,
        seed=config.seed,
        num_epochs=NUM_EPOCHS,
        epochs_done=NUM_EPOCHS,
        top1_last=accuracy,
        top1_val=accuracy if config.data.validation_fraction else None,
        config_json=config.to_json(),
    )
    store.write_trial(record, epochs)
    return record


def poisoned(
    config: TrialConfig,
    context: RunContext,
    *,
    report: Callable[[EpochMetrics], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrialRecord:
    """Like `quick`, but KD students always crash."""
    if config.teacher is not None and config.teacher_regime == "plain":
        raise RuntimeError("poisoned on purpose")
    return quick(config, context, report=report, should_stop=should_stop)
