"""How trials are placed, and what refuses to place them; knows no Ray."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hsakd.config import DataConfig
from sweeps.packing import Packing

HEARTBEAT_SECONDS = 2.0  # between two looks of the driver at the cluster, the time limit and its progress
STOP_FILE = "stop"  # while it is in --out, trials checkpoint at their next step and end


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """How trials are placed: `gpus` 0 runs `cpus // cpus_per_trial` trials at once on the CPU, else GPUs are shared as `packing` says.

    `time_limit_seconds` count from `started`, of the monotonic clock.
    `run` is the dotted name of the function that runs a trial (`hsakd.training.trial:run_trial`, or a stand-in in scheduling tests);
    `context` are the keyword arguments of its `RunContext`; `data` is what every node of a cluster must be able to read.
    """

    out: Path
    gpus: int = 0
    packing: Packing = field(default_factory=Packing)
    threads: int = 1
    max_failures: int = 2
    reuses_workers: bool = False
    address: str | None = None
    has_dashboard: bool = False
    requires_gpus: bool = False
    time_limit_seconds: float | None = None
    started: float = field(default_factory=time.monotonic)
    keep_checkpoints: str = "last"
    data: DataConfig | None = None
    run: str = "hsakd.training.trial:run_trial"
    context: dict[str, Any] = field(default_factory=dict)

    @property
    def cpus_per_trial(self) -> int:
        """CPUs of a trial's ranks together: each has its threads and, where images stay in their files, processes that decode them.

        A rank's loaders of train, validation and test images keep their processes, but read in turn.
        """
        workers: int = self.context.get("loader_workers", 0)
        return (self.threads + workers) * self.packing.ranks_per_trial


class Unfit(ValueError):
    """The cluster lacks the GPUs that were asked for, or no node of it can run trials."""
