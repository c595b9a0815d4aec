"""The only `import ray`: one Tuner per command, whose Searcher and Scheduler are thin views of the schedule.

Ray places, retries and stops trials; what is true is on disk (Parquet, weights, the studies' journal), so its own state is thrown away.
Why it is built like this: never `Tuner.restore` (crashes with persistent studies), never `OptunaSearch` (pruned trials become COMPLETE),
never two Tuners in threads.
"""

import errno
import importlib
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from hsakd.config import DataConfig, TrialConfig
from hsakd.records import EpochMetrics, ResultStore, TrialRecord, predictions_columns, replacing
from sweeps.attempts import LOW_MEMORY, WorkerDied, note_error, ran_out_of_host_memory, ran_out_of_memory, read_errors
from sweeps.fitness import TOKEN_FILE, Expected, data_problem, node_problem, present_versions
from sweeps.packing import Packing, num_cores
from sweeps.schedule import Schedule
from sweeps.teacher_files import doubt

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial that is stopped before its first epoch reports nothing
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1e9")  # its state of all trials, written anew every few seconds, is never read
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

STOP_FILE = "stop"
EPOCH_JSON = "epoch_json"
PROGRESS_FILE = "progress.json"
OBJECT_STORE_BYTES = 100 * 2**20
STOP_CHECK_SECONDS = 0.5
HEARTBEAT_SECONDS = 2.0
NODE_CHECK_SECONDS = 300.0
JOIN_SECONDS = 60.0
ADDRESS_SECONDS = 20.0
RECORD_VISIBLE_SECONDS = 60.0  # a network file system may show a new file only after its attribute cache has expired
RAY_STARTS = 3
START_SECONDS = 20.0  # a fresh process, its imports and the data set, before the first step
PLAN_SECONDS = 5.0
LONGEST_ROOT = 20  # characters: 107 of a socket's path, less hsakd-PID-NAME/session_DATE_TIME_PID/sockets/plasma_store
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """How trials are placed: `gpus` 0 runs `cpus // threads` trials at once on the CPU, else GPUs are shared as `packing` says.

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
    def threads_per_trial(self) -> int:
        """CPU threads of a trial's ranks together."""
        return self.threads * self.packing.ranks_per_trial


class Unfit(ValueError):
    """The cluster lacks the GPUs that were asked for, or no node of it can run trials."""


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


def resources_of(unit: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Return what Ray reserves for a trial: `resources` of its unit, on any node but the `avoided` ones."""
    avoided = unit["avoided"]
    where: dict[str, Any] = {"bundle_label_selector": [{"ray.io/node-id": f"!in({','.join(avoided)})"}]} if avoided else {}
    return tune.PlacementGroupFactory([unit["resources"]], **where)


def check_node(expected: Expected, data: DataConfig | None, data_dir: Path | None) -> str:
    """Return why the node that this runs on can't run trials, or ""."""
    return node_problem(expected) or (data_problem(data, data_dir) if data is not None else "")


def all_nodes() -> list[dict[str, Any]]:
    """Return Ray's list of nodes, dead ones included."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return nodes


class Nodes:
    """The cluster's nodes as they come and go: each is checked before it counts; one that is not fit is avoided, with a sentence."""

    def __init__(self, options: EngineOptions, say: Callable[[str], None]) -> None:
        self.options, self.say = options, say
        self.problems: dict[str, str] = {}  # node -> why it is avoided
        self.checks: dict[str, Any] = {}  # node -> the result of its check, to come
        self.fit: dict[str, dict[str, float]] = {}
        self.expected: Expected | None = None
        if options.address is not None:
            token = secrets.token_hex(16)
            with replacing(options.out / TOKEN_FILE) as temporary:
                temporary.write_text(token)
            dataset = "" if options.data is None else options.data.dataset
            self.expected = Expected(out=options.out, token=token, versions=tuple(present_versions().items()), dataset=dataset)

    def refresh(self) -> None:
        """Look who is there; start the check of newcomers, and take in what checks have found."""
        alive = {node["NodeID"]: node for node in all_nodes() if node["Alive"]}
        self.fit = {name: resources for name, resources in self.fit.items() if name in alive}
        self.checks = {name: check for name, check in self.checks.items() if name in alive}
        for name, node in alive.items():
            if name in self.fit or name in self.problems or name in self.checks or not node["Resources"].get(self.kind):
                continue
            if self.expected is None:
                self.fit[name] = node["Resources"]
                continue
            if (cpus := int(node["Resources"].get("CPU", 0))) < self.options.threads_per_trial:
                self.avoid(name, f"it has {cpus} CPUs, a trial's --threads are {self.options.threads_per_trial}")
                continue
            where = NodeAffinitySchedulingStrategy(name, soft=False)
            task = ray.remote(check_node).options(num_cpus=0, max_retries=0, scheduling_strategy=where)
            self.checks[name] = task.remote(self.expected, self.options.data, self.options.context.get("data_dir"))
        if not self.checks:
            return
        ended, _ = ray.wait(list(self.checks.values()), num_returns=len(self.checks), timeout=0)
        for name in [name for name, check in self.checks.items() if check in ended]:
            try:
                problem = ray.get(self.checks.pop(name))
            except ray.exceptions.RayError as error:
                problem = f"its check failed: {str(error).strip().splitlines()[-1]}"
            if problem:
                self.avoid(name, problem)
            else:
                self.fit[name] = alive[name]["Resources"]

    def wait_for_checks(self) -> None:
        """Return once every node that is there has been checked, in a cluster at least one; raises Unfit where none can run trials.

        A cluster's nodes join one by one, some after the driver, so the first is waited for (with `requires_gpus` all of them).
        """
        started = time.monotonic()
        self.refresh()
        is_said = False
        while (self.checks and time.monotonic() < started + NODE_CHECK_SECONDS) or (
            self._are_expected and time.monotonic() < started + JOIN_SECONDS
        ):
            if not self.checks and not is_said:
                is_said = True
                self.say(f"the cluster has {self.num_present:g} {self.kind}s yet; waiting for more, up to {JOIN_SECONDS:g} s")
            time.sleep(0.1)
            self.refresh()
        if not self.fit and self.problems:
            raise Unfit(f"no node of the cluster can run trials: {next(iter(self.problems.values()))}")
        if not self.fit and not self.options.gpus and self.options.address is not None:
            raise Unfit(f"--address is {self.options.address}, whose nodes have no CPU for trials; accepted: a cluster with workers")

    @property
    def _are_expected(self) -> bool:
        """Whether nodes that a start needs are still to join."""
        wanted = float(self.options.gpus) if self.options.requires_gpus else 1.0
        return self.options.address is not None and not self.problems and self.num_present < wanted

    def avoid(self, name: str, problem: str) -> None:
        """Place no more trials on a node."""
        self.fit.pop(name, None)
        if name not in self.problems:
            address = next((node["NodeManagerAddress"] for node in all_nodes() if node["NodeID"] == name), "?")
            self.say(f"node {address} ({name[:8]}) is not used: {problem}")
        self.problems[name] = problem

    @property
    def kind(self) -> str:
        """The resource that trials share."""
        return "GPU" if self.options.gpus else "CPU"

    @property
    def avoided(self) -> tuple[str, ...]:
        """Nodes that a trial must not be placed on.

        Not those whose check is under way: what is asked for now may wait until they are all that is left. A trial that comes to one
        before its check has ended looks for itself (`run_unit`).
        """
        return tuple(sorted(self.problems))

    @property
    def num_present(self) -> float:
        """GPUs (CPUs where no GPU is asked for) of the nodes that can run trials."""
        return sum(resources.get(self.kind, 0.0) for resources in self.fit.values())

    @property
    def are_all_unfit(self) -> bool:
        """Whether there are nodes, and none that can run trials."""
        return bool(self.problems) and not self.fit and not self.checks


class ScheduleSearcher(Searcher):
    """Ray's view of the schedule: hands out its trials, tells it their ends."""

    def __init__(self, schedule: Schedule, options: EngineOptions, nodes: Nodes, say: Callable[[str], None]) -> None:
        super().__init__(metric="epoch", mode="max")
        self.schedule, self.options, self.nodes, self.say = schedule, options, nodes, say
        self.packing = options.packing
        self.trial_ids: dict[str, str] = {}
        self.shares: dict[str, float] = {}
        self.begun: dict[str, float] = {}
        self.epochs: dict[str, list[EpochMetrics]] = {}
        self.failures: dict[str, int] = {}  # failed attempts that the errors' file tells of
        self.pruned: set[str] = set()
        self.held: TrialConfig | None = None
        self.plan_written = 0.0
        lacking: set[str] = set()
        for trial_id, config in schedule.configs.items():
            errors = [] if trial_id in schedule.done else list(filter(ran_out_of_memory, read_errors(schedule.store, trial_id)))
            if errors and self._set_apart(config, of_host=any(map(ran_out_of_host_memory, errors))):
                lacking.add(config.network)
        for network in lacking:
            self.packing.loosen(network)

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
            self.begun[config.trial_id] = time.time()
            self.epochs[config.trial_id] = []
            self.failures[config.trial_id] = len(read_errors(schedule.store, config.trial_id))
            self._write_plan()
        except OSError as error:
            return self._stop_for_storage(error)
        return {
            "config_json": config.to_json(),
            "out": str(self.options.out),
            "run": self.options.run,
            "context": {**self.options.context, "keep_checkpoints": self._kept(config)},
            "resources": {"CPU": self.options.threads_per_trial, **({"GPU": self._needs(config)} if self.options.gpus else {})},
            "avoided": list(self.nodes.avoided),
            "expected": self.nodes.expected,
        }

    def _nothing_to_start(self) -> Any:
        """Return FINISHED if nothing will ever start any more, else None: ask again."""
        schedule = self.schedule
        if schedule.running:
            return None
        if not schedule.is_stopping and not schedule.is_stuck and self._seconds_left() is not None:
            self.say("no time left for a trial to reach a checkpoint")
            schedule.is_stopping = True
        return Searcher.FINISHED if schedule.is_stopping or schedule.is_stuck else None

    def _put_held_back(self) -> None:
        """Take back a trial that waits for a place."""
        if self.held is not None:
            self.schedule.put_back(self.held.trial_id)
            self.held = None

    def _set_apart(self, config: TrialConfig, *, of_host: bool) -> bool:
        """Run a trial beside no other on its GPU or, `of_host` or on CPUs, beside no other at all; return whether that is new."""
        alone = self.packing.host_alone if of_host or not self.options.gpus else self.packing.alone
        is_new = config.trial_id not in alone
        alone.add(config.trial_id)
        return is_new

    def _needs(self, config: TrialConfig) -> float:
        """Return the GPUs, or the CPUs, that Ray reserves for a trial."""
        return self.packing.share(config.network, config.trial_id) if self.options.gpus else float(self.options.threads_per_trial)

    def _share(self, config: TrialConfig) -> float:
        """Return how much of the capacity a trial takes: what it needs or, if no other may run beside it, all."""
        return max(self._needs(config), self._capacity() if config.trial_id in self.packing.host_alone else 0.0)

    def _capacity(self) -> float:
        """Return the GPUs (CPUs) that may be reserved now; in a cluster one GPU beyond those present, so that an autoscaler sees a need."""
        present = self.nodes.num_present
        if not self.options.gpus:
            return present
        return min(float(self.options.gpus), present + (1 if self.options.address is not None else 0))

    def _kept(self, config: TrialConfig) -> str:
        if self.options.keep_checkpoints != "teachers":
            return self.options.keep_checkpoints
        return "last" if self.schedule.is_needed(config.trial_id) else "none"

    def _seconds_left(self) -> float | None:
        limit = self.options.time_limit_seconds
        return None if limit is None else self.options.started + limit - time.monotonic()

    def _is_welcome(self, config: TrialConfig) -> bool:
        """Whether a trial that starts now can reach a checkpoint, its first epoch or the interval, before the time limit."""
        left = self._seconds_left()
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

    def _stop_for_storage(self, error: OSError) -> None:
        """End the sweep: what can't be written must not be lost."""
        was_stopping, self.schedule.is_stopping = self.schedule.is_stopping, True
        touch_if_possible(self.options.out / STOP_FILE)
        if not was_stopping:
            self.say(f"--out can't be written ({error.strerror}): stopping; make room, then go on")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Epochs come through `PruningScheduler`."""

    def on_epoch(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Note an epoch; return whether to prune."""
        text = result.get(EPOCH_JSON)
        if text is None or trial_id not in self.trial_ids:
            return False
        metrics = EpochMetrics(**json.loads(text))
        own_id = self.trial_ids[trial_id]
        config = self.schedule.configs[own_id]
        self.epochs[own_id] = [row for row in self.epochs[own_id] if row.epoch < metrics.epoch] + [metrics]
        self.schedule.cost.observe_epochs(config, self.epochs[own_id])
        try:
            is_pruned = self.schedule.on_epoch(own_id, metrics) and metrics.epoch + 1 < config.optim.epochs
        except OSError as error:
            self._stop_for_storage(error)
            return False
        if is_pruned:
            self.pruned.add(own_id)
        return is_pruned

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        own_id = self.trial_ids.pop(trial_id, None)
        if own_id is None:
            return
        self.shares.pop(own_id, None)
        try:
            self._take_end(own_id, result or {}, is_error=error)
            self._write_plan()
        except OSError as failure:
            self.schedule.put_back(own_id)
            self._stop_for_storage(failure)
        for what in (self.epochs, self.begun, self.failures):  # of ten thousand trials they would be gigabytes
            what.pop(own_id, None)

    def _take_end(self, own_id: str, result: dict[str, Any], *, is_error: bool) -> None:
        """Tell the schedule how an attempt ended; the record on disk says more than Ray."""
        schedule, outcome = self.schedule, "" if is_error else str(result.get("outcome", ""))
        config = schedule.configs[own_id]
        record = self._visible_record(config, is_certain=outcome == "complete")
        if record is None and own_id in self.pruned:
            record = self._record(config, "pruned", "")
            if self.options.keep_checkpoints != "all":
                shutil.rmtree(schedule.store.checkpoint_dir(own_id), ignore_errors=True)
        if record is None and outcome in ("out_of_memory", "out_of_host_memory"):
            of_host = outcome == "out_of_host_memory"
            if self._set_apart(config, of_host=of_host):
                schedule.put_back(own_id)
                from_now_on = ""
                if self.options.gpus and not of_host:
                    from_now_on = f", {config.network} gets {self.packing.loosen(config.network):.2g} GPU each from now on"
                self.say(f"no memory {describe(config)}; again alone{from_now_on}")
                return
            record = self._failure(config, "out_of_memory")
        if record is None and outcome == "unfit":
            self.nodes.avoid(str(result["node"]), str(result["problem"]))
            schedule.put_back(own_id)
            if self.nodes.are_all_unfit:
                self.say("no node is left that can run trials: stopping")
                schedule.is_stopping = True
            return
        if record is None and outcome == "storage":
            schedule.put_back(own_id)
            self._stop_for_storage(OSError(0, str(result["problem"])))
            return
        if record is None and is_error:
            self.note_crash(own_id)
            record = self._failure(config, "failed")
        if record is None:
            schedule.put_back(own_id)
            self.say(f"stopped  {describe(config)}")
            schedule.is_stopping |= outcome == "interrupted"  # somebody else has put the stop file there
            if not schedule.is_stopping:
                schedule.failed.add(own_id)
            return
        schedule.complete(own_id, record)
        news = record.result or record.error.partition("\n")[0]
        self.say(f"{record.status:8s} {describe(config)}  {news}")
        if (sentence := doubt(record)) is not None:
            self.say(sentence)

    def take_lack_of_host_memory(self, reason: str) -> None:
        """Tell the schedule that Ray killed workers since their node ran low on memory: it doesn't say whose, so all that Ray had are tried
        again, each while no other runs, and their networks share GPUs less."""
        from hsakd.training.trial import TrialOutOfMemory

        self.say(reason.removeprefix("Caught unexpected exception: "))
        self._put_held_back()
        before = set(self.packing.host_alone)
        for own_id in list(self.trial_ids.values()):
            attempt = 1 + len(read_errors(self.schedule.store, own_id))
            note_error(self.schedule.store, own_id, attempt, TrialOutOfMemory(reason))
            self._take_end(own_id, {"outcome": "out_of_host_memory"}, is_error=False)
        for network in {self.schedule.configs[own_id].network for own_id in self.packing.host_alone - before}:
            self.packing.loosen(network)

    def _visible_record(self, config: TrialConfig, *, is_certain: bool) -> TrialRecord | None:
        """Return the record that the worker wrote; one that certainly was written may take a while to be seen here.

        A trial whose weights had been given up and are wanted now has an earlier record, which is not this attempt's.
        """
        limit = time.monotonic() + RECORD_VISIBLE_SECONDS

        def look() -> TrialRecord | None:
            record = self.schedule.finished(config)
            is_earlier = record is not None and record.status == "complete" and not record.has_weights and self._kept(config) != "none"
            return None if is_earlier else record

        while (record := look()) is None and is_certain and time.monotonic() < limit:
            list((self.schedule.store.root / "trials").iterdir())  # asks a network file system for the folder anew
            time.sleep(0.2)
        return record

    def _record(self, config: TrialConfig, status: str, error: str, *, attempts: int = 1) -> TrialRecord:
        """Write the record of a trial that could not write its own."""
        epochs = self.epochs.get(config.trial_id, [])
        values = [row.top1_val for row in epochs if row.top1_val is not None]
        seconds = sum(row.train_seconds for row in epochs)
        record = TrialRecord.of(
            config,
            status=status,
            error=error,
            attempts=attempts,
            has_weights=False,
            epochs_done=len(epochs),
            top1_val=max(values) if values else None,
            train_seconds=seconds,
            total_seconds=seconds + sum(row.eval_seconds for row in epochs),  # what a search costs includes what it pruned
            teacher_weights_sha256=self.schedule.store.weights_digest(config.teacher),
            backbone_weights_sha256=self.schedule.store.weights_digest(config.backbone),
            **predictions_columns(epochs),
            device=str(self.options.context.get("device", "")),
            num_threads=self.options.threads,
            started_at=utc(self.begun.get(config.trial_id, time.time())),
            finished_at=utc(time.time()),
        )
        self.schedule.store.write_trial(record, epochs)
        return record

    def note_crash(self, own_id: str) -> None:
        """Leave a word of an attempt that failed without one, so that it counts as the others do."""
        store = self.schedule.store
        told = len(read_errors(store, own_id))
        if told <= self.failures[own_id]:
            told += 1
            note_error(store, own_id, told, WorkerDied("the worker process died without a word (killed, or its node was lost)"))
        self.failures[own_id] = told

    def _failure(self, config: TrialConfig, status: str) -> TrialRecord:
        errors = read_errors(self.schedule.store, config.trial_id)
        return self._record(config, status, errors[-1] if errors else "", attempts=max(1, len(errors)))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the truth is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a new command starts from the result folder."""


class PruningScheduler(FIFOScheduler):
    """Passes each epoch to the trial's study and stops what its pruner would stop."""

    def __init__(self, searcher: ScheduleSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        del tune_controller
        return str(FIFOScheduler.STOP if self.searcher.on_epoch(trial.trial_id, result) else FIFOScheduler.CONTINUE)


class Watch(tune.Callback):
    """What happens between events, on the driver's own thread: the time limit, nodes that come and go, the progress file, crash counts."""

    def __init__(self, searcher: ScheduleSearcher, limiter: ConcurrencyLimiter) -> None:
        self.searcher, self.limiter = searcher, limiter
        self.next_look = 0.0
        self.num_present = searcher.nodes.num_present
        self.is_over = False

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        del iteration, info
        searcher = self.searcher
        schedule = searcher.schedule
        running = [trial.trial_id for trial in trials if trial.status == Trial.RUNNING]
        self.is_over = schedule.is_stopping and not running
        now = time.monotonic()
        if now < self.next_look:
            return
        self.next_look = now + HEARTBEAT_SECONDS
        left = searcher._seconds_left()
        if left is not None and left <= 0 and not schedule.is_stopping:
            searcher.say("the time limit is reached: trials checkpoint at their next step")
            schedule.is_stopping = True
            touch_if_possible(searcher.options.out / STOP_FILE)
        searcher.nodes.refresh()
        present = searcher.nodes.num_present
        if present != self.num_present:
            searcher.say(f"the cluster has {present:g} {searcher.nodes.kind}s now")
            self.num_present = present
            self.limiter.max_concurrent = num_slots(searcher.options, searcher.nodes)
        self.write_progress([searcher.trial_ids[name] for name in running if name in searcher.trial_ids])

    def write_progress(self, running: list[str]) -> None:
        """Tell readers of the folder what runs now; `python sweeps/status.py` reads it."""
        searcher = self.searcher
        schedule = searcher.schedule
        epochs = {trial_id: len(searcher.epochs.get(trial_id, [])) for trial_id in running}
        options, packing = searcher.options, searcher.packing
        per_slot = packing.ranks_per_trial / packing.trials_per_gpu if options.gpus else options.threads_per_trial
        at_once = schedule.num_slots = max(1.0, searcher.nodes.num_present / per_slot)
        schedule.epochs_done = epochs
        schedule.forecast_seconds = schedule.seconds_left()
        progress = {
            "host": socket.gethostname(),
            "running": epochs,
            "slots": at_once,
            "seconds_left": schedule.forecast_seconds,
            "basis": schedule.cost.describe(),
        }
        try:
            with replacing(searcher.options.out / PROGRESS_FILE) as temporary:
                temporary.write_text(json.dumps(progress))
        except OSError as error:
            searcher._stop_for_storage(error)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Drop Tune's statistics of each reported number: it keeps every trial to the end, and nobody reads them."""
        del iteration, trials, info
        trial.run_metadata.metric_analysis, trial.run_metadata.metric_n_steps = {}, {}

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note a crash before the trial's next attempt looks for how many there were; the last one ends the trial."""
        del iteration, trials, info
        own_id = self.searcher.trial_ids.get(trial.trial_id)
        if own_id is not None:
            self.searcher.note_crash(own_id)
            self.searcher.say(f"crashed  {describe(self.searcher.schedule.configs[own_id])}; is tried again")

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles callbacks, and nobody restores them."""
        return {}


class EndOfSweep(tune.Stopper):
    """Ends Ray's loop once the sweep is stopping and nothing runs: trials that still wait for a place never began."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        return self.watch.is_over

    def __getstate__(self) -> dict[str, Any]:
        return {}


def describe(config: TrialConfig) -> str:
    """Return a trial in a few words."""
    teacher = f" <- {config.teacher.network} ({config.teacher_regime})" if config.teacher is not None else ""
    terms = "+".join(name for name, _ in config.objective.terms)
    return f"{config.trial_id}  {config.role:8s} {config.network}{teacher}  {terms}  seed {config.seed}"


def utc(seconds: float) -> str:
    """Return a time as records have it: UTC, ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def touch_if_possible(path: Path) -> None:
    """Create an empty file; where the disk is full, those who look for it are told otherwise."""
    try:
        path.touch()
    except OSError:
        return


def temporary_folder() -> Path:
    """Return a new folder that says whose it is, after deleting those of processes that were killed.

    Ray's sockets lie in it and a socket's path is at most 107 characters long, so a long TMPDIR gives way to /tmp.
    """
    roots = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/dev/shm")]
    root = next((root for root in roots if len(str(root)) <= LONGEST_ROOT and os.access(root, os.W_OK)), roots[0])
    for folder in root.glob("hsakd-*"):
        owner = re.fullmatch(r"hsakd-(\d+)-\w+", folder.name)
        if owner is not None and not Path(f"/proc/{owner[1]}").exists():
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"hsakd-{os.getpid()}-", dir=root))


def package_folders() -> list[str]:
    """Return our three packages, as Ray carries them to nodes where they are not installed."""
    return [str(Path(str(importlib.import_module(name).__file__)).parent) for name in ("hsakd", "sweeps", "analysis")]


@contextmanager
def ray_cluster(options: EngineOptions, folder: Path) -> Iterator[None]:
    """Start a local Ray whose files are in `folder`, or join the one at `options.address`, our packages with us."""
    try:
        if options.address is not None:
            check_address(options.address)
            try:
                ray.init(
                    address=options.address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"py_modules": package_folders(), "excludes": ["**/__pycache__", "**/*.parquet"]},
                )
            except ConnectionError as error:
                raise Unfit(f"--address is {options.address}, but no Ray cluster was found; accepted: the head's HOST:PORT") from error
        else:
            start_ray(options, folder)
        yield
    finally:
        ray.shutdown()


def start_ray(options: EngineOptions, folder: Path) -> None:
    """Start a local Ray; on a machine so busy that its processes don't answer in time (Ray waits for 30 s), once more."""
    trials_at_once = options.gpus * options.packing.most_per_gpu() or options.packing.ranks_per_trial
    for starts_left in reversed(range(RAY_STARTS)):
        try:
            ray.init(
                num_cpus=max(num_cores(), options.threads * trials_at_once),
                include_dashboard=options.has_dashboard,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
                num_gpus=None if options.gpus else 0,
            )
        except Exception as error:  # Ray raises plain ones
            ray.shutdown()
            if starts_left == 0:
                reason = str(error).strip().partition("\n")[0]
                raise Unfit(
                    f"Ray could not be started in {RAY_STARTS} attempts ({reason}); accepted: a machine with time for it"
                ) from error
        else:
            return


def check_address(address: str) -> None:
    """Refuse a HOST:PORT where nothing listens: Ray itself would try for many minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ADDRESS_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise Unfit(f"--address is {address}, where nothing answers ({error}); accepted: the HOST:PORT of a Ray cluster's head") from error


def check_gpus(options: EngineOptions, nodes: Nodes, say: Callable[[str], None]) -> None:
    """Refuse a cluster without GPUs where some are wanted; with fewer than wanted say so (or refuse, with `requires_gpus`)."""
    if not options.gpus:
        return
    present = int(nodes.num_present)
    if present == 0:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        raise Unfit(f"--gpus is {options.gpus}, but the cluster has no GPU ({int(resources.get('CPU', 0))} CPUs); use --gpus 0")
    if present < options.gpus:
        if options.requires_gpus:
            raise Unfit(f"--gpus is {options.gpus}, but the cluster has {present}; drop --require-gpus to start with them")
        say(f"the cluster has {present} of {options.gpus} GPUs; more are used as nodes join")
    num_trials, cores = options.packing.most_at_once(min(present, options.gpus)), len(os.sched_getaffinity(0))
    if options.address is None and num_trials * options.threads_per_trial > cores:  # a cluster's Ray starts no more than its CPUs allow
        say(f"{num_trials} trials of {options.threads_per_trial} CPU threads share {cores} CPU cores; fewer --trials-per-gpu may be faster")
    ranks = options.packing.ranks_per_trial
    if ranks > 1 and ranks > (largest := int(max(resources.get("GPU", 0) for resources in nodes.fit.values()))):
        raise Unfit(f"--ranks-per-trial is {ranks}, but no node has more than {largest} GPUs; a trial's ranks are on one node")


def num_slots(options: EngineOptions, nodes: Nodes) -> int:
    """Return how many trials may run at once: GPUs x trials per GPU, or CPUs / threads per trial; at least 1."""
    if options.gpus:
        return options.packing.most_at_once(options.gpus)
    return max(1, int(nodes.num_present) // options.threads_per_trial)


def run_schedule(schedule: Schedule, options: EngineOptions, say: Callable[[str], None] = print) -> None:
    """Run the schedule to its end, or until SIGINT, SIGTERM or the time limit: then trials checkpoint at their next step.

    A signal while Ray starts or ends, when no trial runs, ends at once.

    Raises:
        Unfit: the cluster lacks the GPUs, or no node of it can run trials.
    """
    stop_path = options.out / STOP_FILE
    stop_path.unlink(missing_ok=True)
    schedule.store.write_plan(schedule.plan())
    if schedule.is_complete or (schedule.is_stuck and not schedule.failed and schedule.num_waiting == 0):
        return
    folder = temporary_folder()
    for stale in options.out.glob(".tune-*"):  # of a driver that was killed: this process holds the folder's lock
        shutil.rmtree(stale, ignore_errors=True)
    for stale in options.out.glob(".*.tmp"):
        stale.unlink(missing_ok=True)
    try:
        is_over = False
        while not is_over:
            with ray_cluster(options, folder):
                nodes = Nodes(options, say)
                nodes.wait_for_checks()
                check_gpus(options, nodes, say)
                experiments = folder / "tune" if options.address is None else options.out / f".tune-{secrets.token_hex(4)}"
                try:
                    is_over = _run_tuner(schedule, options, nodes, experiments, say)
                finally:
                    shutil.rmtree(experiments, ignore_errors=True)
    except (KeyboardInterrupt, SystemExit):  # Ray's own handler of SIGTERM exits
        schedule.is_stopping = True
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for path in (stop_path, options.out / PROGRESS_FILE):
            path.unlink(missing_ok=True)
        try:
            schedule.store.write_plan(schedule.plan())
        except OSError as error:
            say(f"--out can't be written ({error.strerror})")
            schedule.is_stopping = True
        sys.stdout.flush()


def _run_tuner(schedule: Schedule, options: EngineOptions, nodes: Nodes, experiments: Path, say: Callable[[str], None]) -> bool:
    """Let Ray's one Tuner work the schedule off; return False where it broke for want of host memory and a new one is to go on."""

    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        schedule.is_stopping = True
        touch_if_possible(options.out / STOP_FILE)
        news = f"{signal.Signals(number).name}: trials checkpoint at their next step; a second ends at once\n"
        with suppress(OSError):  # the reader of stdout may be gone
            os.write(sys.stdout.fileno(), news.encode())  # not `say`: it reads the studies, whose lock the interrupted code may hold

    searcher = ScheduleSearcher(schedule, options, nodes, say)
    limiter = ConcurrencyLimiter(searcher, max_concurrent=num_slots(options, nodes))
    watch = Watch(searcher, limiter)
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        tuner = tune.Tuner(
            tune.with_resources(run_unit, resources_of),
            tune_config=tune.TuneConfig(
                search_alg=limiter,
                scheduler=PruningScheduler(searcher),
                num_samples=-1,
                reuse_actors=options.reuses_workers,
                max_concurrent_trials=None,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(experiments),
                failure_config=tune.FailureConfig(max_failures=options.max_failures),
                callbacks=[watch],
                stop=EndOfSweep(watch),
                verbose=0,
            ),
        )
        tuner.fit()
    except KeyboardInterrupt:
        schedule.is_stopping = True
    except (tune.TuneError, ray.exceptions.RayError) as error:
        say(f"Ray ended the sweep: {str(error).strip().splitlines()[-1]}")
    except RuntimeError as error:
        if LOW_MEMORY not in str(error):
            raise
        searcher.take_lack_of_host_memory(str(error).partition("\n")[0])
        return schedule.is_stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for trial_id in list(schedule.running):
            schedule.put_back(trial_id)
    return True
