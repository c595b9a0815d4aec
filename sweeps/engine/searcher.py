"""Ray's views of the schedule: what to start, with which resources, and what to prune."""

import json
import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from hsakd.config import TrialConfig
from hsakd.records import EpochMetrics
from sweeps.engine.ends import Ends
from sweeps.engine.nodes import Nodes
from sweeps.engine.options import EngineOptions
from sweeps.engine.worker import EPOCH_JSON
from sweeps.schedule import Schedule

START_SECONDS = 20.0  # a fresh process, its imports and the data set, before the first step
PLAN_SECONDS = 5.0


class ScheduleSearcher(Searcher):
    """Ray's view of the schedule: hands out its trials, tells it their ends."""

    def __init__(self, schedule: Schedule, options: EngineOptions, nodes: Nodes, say: Callable[[str], None]) -> None:
        super().__init__(metric="epoch", mode="max")
        self.schedule, self.options, self.nodes, self.say = schedule, options, nodes, say
        self.packing = options.packing
        self.ends = Ends(schedule, options, nodes, say)
        self.trial_ids: dict[str, str] = {}
        self.shares: dict[str, float] = {}
        self.held: TrialConfig | None = None
        self.plan_written = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles its searcher into an experiment state that nobody restores."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        schedule = self.schedule
        try:
            if self.held is not None and (schedule.is_stopping or not self._is_welcome(self.held)):
                self._put_held_back()
            if self.held is not None and not self.shares:
                self.nodes.refresh()  # Ray waits for this method while nothing runs, and calls no `Watch`
            config = self.held if self.held is not None else schedule.next_trial(self._is_welcome)
            if config is None:
                return self._nothing_to_start()
            share = self._share(config)
            is_other_alone = not self.packing.host_alone.isdisjoint(self.shares)
            if is_other_alone or sum(self.shares.values()) + share > self._capacity() + 1e-9:
                self.held = config
                return None
            self.held = None
            self.trial_ids[trial_id] = config.trial_id
            self.shares[config.trial_id] = share
            self.ends.begin(config.trial_id)
            self._write_plan()
        except OSError as error:
            return self.ends.stop_for_storage(error)
        return {
            "config_json": config.to_json(),
            "out": str(self.options.out),
            "run": self.options.run,
            "context": {**self.options.context, "keep_checkpoints": self.ends.kept(config)},
            "resources": {"CPU": self.options.cpus_per_trial, **({"GPU": self._needs(config)} if self.options.gpus else {})},
            "avoided": list(self.nodes.avoided),
            "expected": self.nodes.expected,
        }

    def _nothing_to_start(self) -> Any:
        """Return FINISHED if nothing will ever start any more, else None: ask again."""
        schedule = self.schedule
        if schedule.running:
            return None
        if not schedule.is_stopping and not schedule.is_stuck and self.seconds_left() is not None:
            self.say("no time left for a trial to reach a checkpoint")
            schedule.is_stopping = True
        return Searcher.FINISHED if schedule.is_stopping or schedule.is_stuck else None

    def _put_held_back(self) -> None:
        """Take back a trial that waits for a place."""
        if self.held is not None:
            self.schedule.put_back(self.held.trial_id)
            self.held = None

    def _needs(self, config: TrialConfig) -> float:
        """Return the GPUs, or the CPUs, that Ray reserves for a trial."""
        return self.packing.share(config.network, config.trial_id) if self.options.gpus else float(self.options.cpus_per_trial)

    def _share(self, config: TrialConfig) -> float:
        """Return how much of the capacity a trial takes: what it needs or, if no other may run beside it, all."""
        return max(self._needs(config), self._capacity() if config.trial_id in self.packing.host_alone else 0.0)

    def _capacity(self) -> float:
        """Return the GPUs (CPUs) that may be reserved now; in a cluster those of one more place, so that an autoscaler sees a need."""
        present = self.nodes.num_present
        if not self.options.gpus:
            return present
        return min(float(self.options.gpus), present + (self.packing.ranks_per_trial if self.options.address is not None else 0))

    def seconds_left(self) -> float | None:
        """Return the seconds to the time limit, None without one."""
        limit = self.options.time_limit_seconds
        return None if limit is None else self.options.started + limit - time.monotonic()

    def _is_welcome(self, config: TrialConfig) -> bool:
        """Whether a trial that starts now can reach a checkpoint, its first epoch or the interval, before the time limit."""
        left = self.seconds_left()
        if left is None:
            return True
        epoch_seconds = self.schedule.cost.seconds(config) / max(1, config.optim.epochs)
        interval = 60 * float(self.options.context.get("checkpoint_minutes", 10.0))
        return left >= START_SECONDS + min(epoch_seconds, interval)

    def _write_plan(self) -> None:
        """Write the plan, at most every few seconds: it is long, and a new command rebuilds it."""
        if time.monotonic() - self.plan_written > PLAN_SECONDS:
            self.schedule.store.write_plan(self.schedule.plan())
            self.plan_written = time.monotonic()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Epochs come through `PruningScheduler`."""

    def on_epoch(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Take an epoch as Ray has brought it; return whether to prune."""
        text = result.get(EPOCH_JSON)
        if text is None or trial_id not in self.trial_ids:
            return False
        return self.ends.on_epoch(self.trial_ids[trial_id], EpochMetrics(**json.loads(text)))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        own_id = self.trial_ids.pop(trial_id, None)
        if own_id is None:
            return
        self.shares.pop(own_id, None)
        try:
            self.ends.take(own_id, result or {}, is_error=error)
            self._write_plan()
        except OSError as failure:
            self.schedule.put_back(own_id)
            self.ends.stop_for_storage(failure)
        self.ends.forget(own_id)

    def take_lack_of_host_memory(self, reason: str) -> None:
        """Tell the schedule that Ray killed workers since their node ran low on memory; what waits for a place was not among them."""
        self._put_held_back()
        self.ends.take_lack_of_host_memory(reason, list(self.trial_ids.values()))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the truth is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a new command starts from the result folder."""


def resources_of(unit: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Return what Ray reserves for a trial: `resources` of its unit, on any node but the `avoided` ones."""
    avoided = unit["avoided"]
    where: dict[str, Any] = {"bundle_label_selector": [{"ray.io/node-id": f"!in({','.join(avoided)})"}]} if avoided else {}
    return tune.PlacementGroupFactory([unit["resources"]], **where)


class PruningScheduler(FIFOScheduler):
    """Passes each epoch to the trial's study and stops what its pruner would stop."""

    def __init__(self, searcher: ScheduleSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        del tune_controller
        return str(FIFOScheduler.STOP if self.searcher.on_epoch(trial.trial_id, result) else FIFOScheduler.CONTINUE)
