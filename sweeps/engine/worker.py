"""What runs in a trial's own process."""

import importlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune

from hsakd.config import TrialConfig
from hsakd.files import FULL_DISK
from hsakd.records import EpochMetrics, TrialRecord
from hsakd.store import ResultStore
from sweeps.attempts import note_error, read_errors
from sweeps.engine.options import STOP_FILE
from sweeps.fitness import Expected, node_problem

EPOCH_JSON = "epoch_json"
STOP_CHECK_SECONDS = 0.5


def run_unit(unit: dict[str, Any]) -> dict[str, Any]:
    """Run one trial in a Ray worker; its record goes to disk, its epochs and how the attempt ended to the driver.

    An exception's text is left in `<out>/errors/` before Ray sees it, since the driver writes the record of a trial that failed for good.
    Only what a retry may cure is raised; an attempt that ended for want of memory, disk or a fit node says so and returns.
    """
    out = Path(unit["out"])
    stop_path = out / STOP_FILE
    if stop_path.exists():
        return {"outcome": "interrupted"}
    expected: Expected | None = unit["expected"]
    node = ray.get_runtime_context().get_node_id()
    if expected is not None and (problem := node_problem(expected)):
        return {"outcome": "unfit", "node": node, "problem": problem}
    module, _, name = unit["run"].partition(":")
    run: Callable[..., TrialRecord] = getattr(importlib.import_module(module), name)
    from hsakd.data import DataMissing
    from hsakd.training.trial import RunContext, TrialInterrupted, TrialOutOfMemory

    config, store = TrialConfig.from_json(unit["config_json"]), ResultStore(out)
    attempt = 1 + len(read_errors(store, config.trial_id))
    context = RunContext(store=store, attempt=attempt, **unit["context"])
    checked = [0.0]

    def should_stop() -> bool:
        if time.monotonic() - checked[0] < STOP_CHECK_SECONDS:
            return False
        checked[0] = time.monotonic()
        return stop_path.exists()

    def report(metrics: EpochMetrics) -> None:
        tune.report({"epoch": metrics.epoch, EPOCH_JSON: json.dumps(asdict(metrics))})  # as text: Tune flattens tables on their way

    try:
        run(config, context, report=report, should_stop=should_stop)
    except TrialInterrupted:
        return {"outcome": "interrupted"}
    except TrialOutOfMemory as error:
        note_error(store, config.trial_id, attempt, error)
        return {"outcome": "out_of_memory"}
    except Exception as error:
        if isinstance(error, DataMissing) and expected is not None and config.data.dataset == expected.dataset:
            return {"outcome": "unfit", "node": node, "problem": str(error)}
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            return {"outcome": "storage", "problem": error.strerror}
        note_error(store, config.trial_id, attempt, error)
        raise
    return {"outcome": "complete"}
