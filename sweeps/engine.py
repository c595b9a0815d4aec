"""The only `import ray`: one Tuner per command, whose Searcher and Scheduler are thin views of the schedule.

Ray places, retries and stops trials; what is true is on disk (Parquet, weights, the studies' journal), so its own state is thrown away.
Why it is built like this: never `Tuner.restore` (crashes with persistent studies), never `OptunaSearch` (pruned trials become COMPLETE),
never two Tuners in threads.
"""

import importlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hsakd.config import TrialConfig
from hsakd.records import EpochMetrics, ResultStore, TrialRecord
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
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher

STOP_FILE = "stop"
OBJECT_STORE_BYTES = 100 * 2**20
STOP_CHECK_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """How trials are placed: `gpus` 0 runs `cpus // threads` trials at once on the CPU, else `gpus * trials_per_gpu`.

    `run` is the dotted name of the function that runs a trial (`hsakd.training.trial:run_trial`, or a stand-in in scheduling tests);
    `context` are the keyword arguments of its `RunContext`.
    """

    out: Path
    gpus: int = 0
    trials_per_gpu: int = 1
    threads: int = 1
    max_failures: int = 2
    reuses_workers: bool = False
    address: str | None = None
    requires_gpus: bool = False
    run: str = "hsakd.training.trial:run_trial"
    context: dict[str, Any] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """Trials at once."""
        if self.gpus:
            return self.gpus * self.trials_per_gpu
        return max(1, (os.cpu_count() or 1) // self.threads)

    @property
    def resources(self) -> dict[str, float]:
        """What Ray reserves for a trial."""
        return {"cpu": 1, "gpu": 1 / self.trials_per_gpu} if self.gpus else {"cpu": self.threads}


class NoGpus(ValueError):
    """The cluster lacks the GPUs that were asked for."""


def run_unit(unit: dict[str, Any]) -> None:
    """Run one trial in a Ray worker; its record goes to disk, its epochs to the driver.

    An exception's text is left in `<out>/errors/` before Ray sees it, since the driver writes the record of a trial that failed for good.
    """
    module, _, name = unit["run"].partition(":")
    run: Callable[..., TrialRecord] = getattr(importlib.import_module(module), name)
    from hsakd.training.trial import RunContext, TrialInterrupted

    config, out = TrialConfig.from_json(unit["config_json"]), Path(unit["out"])
    error_path = out / "errors" / f"{config.trial_id}.txt"
    attempt = 1 + (error_path.read_text().count(ATTEMPT_MARK) if error_path.exists() else 0)
    context = RunContext(store=ResultStore(out), attempt=attempt, **unit["context"])
    stop_path, checked = out / STOP_FILE, [0.0]

    def should_stop() -> bool:
        if time.monotonic() - checked[0] < STOP_CHECK_SECONDS:
            return False
        checked[0] = time.monotonic()
        return stop_path.exists()

    def report(metrics: EpochMetrics) -> None:
        tune.report({"epoch": metrics.epoch, "epoch_metrics": asdict(metrics)})

    try:
        run(config, context, report=report, should_stop=should_stop)
    except TrialInterrupted:
        return
    except Exception as error:
        error_path.parent.mkdir(parents=True, exist_ok=True)
        with error_path.open("a") as file:
            file.write(f"{ATTEMPT_MARK} {attempt}: {type(error).__name__}: {error}\n{traceback.format_exc()}\n")
        raise


ATTEMPT_MARK = "=== attempt"


class ScheduleSearcher(Searcher):
    """Ray's view of the schedule: hands out its trials, tells it their ends."""

    def __init__(self, schedule: Schedule, options: EngineOptions, say: Callable[[str], None]) -> None:
        super().__init__(metric="epoch", mode="max")
        self.schedule, self.options, self.say = schedule, options, say
        self.trial_ids: dict[str, str] = {}
        self.epochs: dict[str, list[EpochMetrics]] = {}
        self.pruned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles its searcher into an experiment state that nobody restores."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        schedule = self.schedule
        config = schedule.next_trial()
        if config is None:
            is_over = schedule.is_stopping or schedule.is_stuck
            return Searcher.FINISHED if is_over and not schedule.running else None
        self.trial_ids[trial_id] = config.trial_id
        self.epochs[config.trial_id] = []
        schedule.store.write_plan(schedule.plan())
        return {
            "config_json": config.to_json(),
            "out": str(self.options.out),
            "run": self.options.run,
            "context": self.options.context,
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Epochs come through `PruningScheduler`."""

    def on_epoch(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Note an epoch; return whether to prune."""
        values = result.get("epoch_metrics")
        if values is None or trial_id not in self.trial_ids:
            return False
        metrics = EpochMetrics(**values)
        own_id = self.trial_ids[trial_id]
        self.epochs[own_id] = [row for row in self.epochs[own_id] if row.epoch < metrics.epoch] + [metrics]
        is_pruned = self.schedule.on_epoch(own_id, metrics) and metrics.epoch + 1 < self.schedule.configs[own_id].optim.epochs
        if is_pruned:
            self.pruned.add(own_id)
        return is_pruned

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        del result  # the record on disk says more
        own_id = self.trial_ids.pop(trial_id)
        schedule = self.schedule
        config = schedule.configs[own_id]
        record = schedule.finished(config)
        if record is None and own_id in self.pruned:
            record = self._record(config, "pruned", "")
        if record is None and error:
            record = self._failure(config)
        if record is None:
            schedule.interrupt(own_id)
            self.say(f"stopped  {describe(config)}")
            if not schedule.is_stopping:
                schedule.failed.add(own_id)
            return
        schedule.complete(own_id, record)
        schedule.store.write_plan(schedule.plan())
        accuracy = (
            f"top-1 {record.top1_last:.2f} %" if record.top1_last is not None else record.error.splitlines()[0] if record.error else ""
        )
        self.say(f"{record.status:8s} {describe(config)}  {accuracy}")
        if (sentence := doubt(record)) is not None:
            self.say(sentence)

    def _record(self, config: TrialConfig, status: str, error: str, *, attempts: int = 1) -> TrialRecord:
        """Write the record of a trial that could not write its own."""
        epochs = self.epochs.get(config.trial_id, [])
        values = [row.top1_val for row in epochs if row.top1_val is not None]
        teacher = config.teacher
        record = TrialRecord(
            trial_id=config.trial_id,
            status=status,
            error=error,
            attempts=attempts,
            role=config.role,
            network=config.network,
            dataset=config.data.dataset,
            seed=config.seed,
            terms="+".join(name for name, _ in config.objective.terms),
            teacher_network=teacher.network if teacher is not None else "",
            teacher_regime=config.teacher_regime,
            teacher_trial_id=teacher.trial_id if teacher is not None else "",
            num_epochs=config.optim.epochs,
            epochs_done=len(epochs),
            top1_val=max(values) if values else None,
            config_json=config.to_json(),
        )
        self.schedule.store.write_trial(record, epochs)
        return record

    def _failure(self, config: TrialConfig) -> TrialRecord:
        path = self.options.out / "errors" / f"{config.trial_id}.txt"
        text = path.read_text() if path.exists() else "the worker process died without a word (killed, or its node was lost)"
        last = text.rsplit(ATTEMPT_MARK, 1)[-1].strip()
        return self._record(
            config, "out_of_memory" if "TrialOutOfMemory" in last else "failed", last, attempts=max(1, text.count(ATTEMPT_MARK))
        )

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


def describe(config: TrialConfig) -> str:
    """Return a trial in a few words."""
    teacher = f" <- {config.teacher.network} ({config.teacher_regime})" if config.teacher is not None else ""
    terms = "+".join(name for name, _ in config.objective.terms)
    return f"{config.trial_id}  {config.role:8s} {config.network}{teacher}  {terms}  seed {config.seed}"


@contextmanager
def ray_cluster(options: EngineOptions) -> Iterator[None]:
    """Start a local Ray (in a short-named temporary folder, deleted afterwards), or join the one at `options.address`."""
    folder = Path(tempfile.mkdtemp(prefix="hsakd-"))
    try:
        if options.address is not None:
            ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                num_cpus=max(os.cpu_count() or 1, options.slots if options.gpus else options.slots * options.threads),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
                num_gpus=None if options.gpus else 0,
            )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def check_gpus(options: EngineOptions, say: Callable[[str], None]) -> None:
    """Refuse a cluster without GPUs where some are wanted; with fewer than wanted say so (or refuse, with `requires_gpus`)."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    present = int(resources.get("GPU", 0))
    if options.gpus and present == 0:
        raise NoGpus(f"--gpus is {options.gpus}, but the cluster has no GPU ({int(resources.get('CPU', 0))} CPUs); use --gpus 0")
    if present < options.gpus:
        if options.requires_gpus:
            raise NoGpus(f"--gpus is {options.gpus}, but the cluster has {present}; drop --require-gpus to start with them")
        say(f"the cluster has {present} of {options.gpus} GPUs; more are used as nodes join")


def run_schedule(schedule: Schedule, options: EngineOptions, say: Callable[[str], None] = print) -> None:
    """Run the schedule to its end, or until SIGINT or SIGTERM: then trials checkpoint at their next step and the call returns.

    Raises:
        NoGpus: the cluster lacks the GPUs.
    """
    stop_path = options.out / STOP_FILE
    stop_path.unlink(missing_ok=True)
    schedule.store.write_plan(schedule.plan())
    if schedule.is_complete or (schedule.is_stuck and not schedule.failed and schedule.num_waiting == 0):
        return
    with ray_cluster(options):
        check_gpus(options, say)

        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            if schedule.is_stopping:
                raise KeyboardInterrupt
            schedule.is_stopping = True
            stop_path.touch()
            # Not `say`: it reads the studies, whose lock the interrupted code may hold.
            os.write(
                sys.stdout.fileno(),
                f"{signal.Signals(number).name}: trials checkpoint at their next step; a second ends at once\n".encode(),
            )

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        experiments = Path(tempfile.mkdtemp(prefix="hsakd-tune-"))
        searcher = ScheduleSearcher(schedule, options, say)
        try:
            tuner = tune.Tuner(
                tune.with_resources(run_unit, options.resources),
                tune_config=tune.TuneConfig(
                    search_alg=ConcurrencyLimiter(searcher, max_concurrent=options.slots),
                    scheduler=PruningScheduler(searcher),
                    num_samples=-1,
                    reuse_actors=options.reuses_workers,
                    max_concurrent_trials=None,
                ),
                run_config=tune.RunConfig(
                    name="sweep",
                    storage_path=str(experiments),
                    failure_config=tune.FailureConfig(max_failures=options.max_failures),
                    verbose=0,
                ),
            )
            tuner.fit()
        except KeyboardInterrupt:
            schedule.is_stopping = True
        except (tune.TuneError, ray.exceptions.RayError) as error:
            say(f"Ray ended the sweep: {str(error).strip().splitlines()[-1]}")
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            shutil.rmtree(experiments, ignore_errors=True)
            stop_path.unlink(missing_ok=True)
            schedule.store.write_plan(schedule.plan())
            sys.stdout.flush()
