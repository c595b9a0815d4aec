"""A trial that does nothing but report: what is left is the engine's own cost."""

import os

from hsakd.records import EpochMetrics, TrialRecord


def run(config, context, *, report=None, should_stop=None) -> TrialRecord:
    del should_stop
    if os.environ.get("NOOP_IMPORTS_TORCH"):
        import torch

        torch.zeros(1)
    epochs = [
        EpochMetrics(trial_id=config.trial_id, epoch=epoch, learning_rate=0.1, loss=1.0, loss_terms={"task": 1.0})
        for epoch in range(int(os.environ.get("NOOP_REPORTS", "1")))
    ]
    for row in epochs:
        report(row)
    record = TrialRecord.of(config, status="complete", epochs_done=len(epochs), top1_last=50.0, has_weights=False)
    context.store.write_trial(record, epochs)
    return record
