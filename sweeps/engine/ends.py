"""What a trial's end means: which record there is, what is tried again and how, what ends the sweep; knows no Ray."""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from hsakd.config import TrialConfig
from hsakd.files import FULL_DISK
from hsakd.records import EpochMetrics, TrialRecord, predictions_columns
from sweeps.attempts import WorkerDied, note_error, ran_out_of_host_memory, ran_out_of_memory, read_errors
from sweeps.engine.options import STOP_FILE, EngineOptions
from sweeps.schedule import Schedule
from sweeps.teacher_files import doubt
from sweeps.wording import judged, name_of, reason_of, subject_of

RECORD_VISIBLE_SECONDS = 60.0  # a network file system may show a new file only after its attribute cache has expired


class KnownNodes(Protocol):
    """What an end may say of the node it came from."""

    def avoid(self, name: str, problem: str) -> None:
        """Place no more trials on a node."""

    @property
    def are_all_unfit(self) -> bool:
        """Whether there are nodes, and none that can run trials."""


class Ends:
    """Tells the schedule how attempts end, and writes the records of trials that could not write their own.

    Of trials that run it keeps the epochs, when they began, and how many failed attempts the errors' file tells of.
    """

    def __init__(self, schedule: Schedule, options: EngineOptions, nodes: KnownNodes, say: Callable[[str], None]) -> None:
        self.schedule, self.options, self.nodes, self.say = schedule, options, nodes, say
        self.packing = options.packing
        self.begun: dict[str, float] = {}
        self.epochs: dict[str, list[EpochMetrics]] = {}
        self.failures: dict[str, int] = {}
        self.crashes: Counter[str] = Counter()  # failed attempts of this command's
        self.pruned: set[str] = set()
        self.fallbacks: set[str] = set()  # why banks were not used or filled, as far as said
        names = [(len(name_of(entry)), len(subject_of(entry))) for entry in schedule.entries]
        self.widths = [max(lengths) for lengths in zip(*names, strict=True)]
        lacking: set[str] = set()
        for trial_id, config in schedule.configs.items():
            errors = [] if trial_id in schedule.done else list(filter(ran_out_of_memory, read_errors(schedule.store, trial_id)))
            if errors and self._set_apart(config, of_host=any(map(ran_out_of_host_memory, errors))):
                lacking.add(config.network)
        for network in lacking:
            self.packing.loosen(network)

    def describe(self, trial_id: str) -> str:
        """Return a trial in a few words: what it is for, not what it consists of."""
        entry, config = self.schedule.line_of(trial_id), self.schedule.configs[trial_id]
        teacher = f" (teacher seed {entry.teacher_seed})" if entry.teacher_seed and config.teacher is not None else ""
        name_width, subject_width = self.widths
        return f"{trial_id}  {name_of(entry):{name_width}s}  {subject_of(entry):{subject_width}s}  seed {config.seed}{teacher}"

    def _news(self, record: TrialRecord) -> str:
        """Return what came out of a trial: why it failed, or its accuracy and, of a search's trial, its setting."""
        value = judged(self.schedule.line_of(record.trial_id), record)
        news = record.error.partition("\n")[0] or ("" if value is None else f"{value[0]:.2f} % {value[1]}")
        settings = [search.describe(number) for search, number in self.schedule.numbers.get(record.trial_id, [])[:1]]
        return "  ".join(filter(None, (news, *settings)))

    def begin(self, trial_id: str) -> None:
        """Take note that a trial begins."""
        self.begun[trial_id] = time.time()
        self.epochs[trial_id] = []
        self.failures[trial_id] = len(read_errors(self.schedule.store, trial_id))

    def on_epoch(self, own_id: str, metrics: EpochMetrics) -> bool:
        """Note an epoch; return whether to prune."""
        config = self.schedule.configs[own_id]
        self.epochs[own_id] = [row for row in self.epochs[own_id] if row.epoch < metrics.epoch] + [metrics]
        self.schedule.cost.observe_epochs(config, self.epochs[own_id])
        self._say_once(metrics.predictions_fallback)
        try:
            is_pruned = self.schedule.on_epoch(own_id, metrics) and metrics.epoch + 1 < config.optim.epochs
        except OSError as error:
            self.stop_for_storage(error)
            return False
        if is_pruned:
            self.pruned.add(own_id)
        return is_pruned

    def forget(self, trial_id: str) -> None:
        """Drop what was kept of a trial that has ended: of ten thousand it would be gigabytes."""
        for what in (self.epochs, self.begun, self.failures):
            what.pop(trial_id, None)

    def kept(self, config: TrialConfig) -> str:
        """Return what stays of a trial's checkpoints, as its `RunContext` says it."""
        if self.options.keep_checkpoints != "teachers":
            return self.options.keep_checkpoints
        return "last" if self.schedule.is_needed(config.trial_id) else "none"

    def _set_apart(self, config: TrialConfig, *, of_host: bool) -> bool:
        """Run a trial beside no other on its GPU or, `of_host` or on CPUs, beside no other at all; return whether that is new."""
        alone = self.packing.host_alone if of_host or not self.options.gpus else self.packing.alone
        is_new = config.trial_id not in alone
        alone.add(config.trial_id)
        return is_new

    def take(self, own_id: str, result: dict[str, Any], *, is_error: bool) -> None:
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
                self.say(f"no memory {self.describe(own_id)}; again alone{from_now_on}")
                return
            record = self._failure(config, "out_of_memory")
        if record is None and outcome == "unfit":
            self.nodes.avoid(str(result["node"]), str(result["problem"]))
            schedule.put_back(own_id)
            if self.nodes.are_all_unfit:
                self.say("no node is left that can run trials: stopping")
                schedule.is_stopping = schedule.is_blocked = True
            return
        if record is None and outcome == "storage":
            schedule.put_back(own_id)
            self.stop_for_storage(OSError(0, str(result["problem"])))
            return
        if record is None and is_error:
            self.note_crash(own_id)
            if self.crashes[own_id] <= self.options.max_failures:  # Tune may give up earlier when a node is lost
                schedule.put_back(own_id)
                self.say(f"crashed  {self.describe(own_id)}; is tried again")
                return
            record = self._failure(config, "failed")
        if record is None:
            schedule.put_back(own_id)
            self.say(f"stopped  {self.describe(own_id)}")
            schedule.is_stopping |= outcome == "interrupted"  # somebody else has put the stop file there
            if not schedule.is_stopping:
                schedule.failed.add(own_id)
            return
        schedule.complete(own_id, record)
        self.say(f"{record.status:8s} {self.describe(own_id)}  {self._news(record)}")
        self._say_once(record.predictions_fallback)
        if (sentence := doubt(record)) is not None:
            self.say(sentence)

    def _say_once(self, fallback: str) -> None:
        """Say why a bank is not used, or filled no further: of a whole sweep's trials it is mostly the same."""
        if fallback and fallback not in self.fallbacks:
            self.fallbacks.add(fallback)
            self.say(f"teachers are asked live: {fallback}")

    def take_lack_of_host_memory(self, reason: str, own_ids: list[str]) -> None:
        """Tell the schedule that Ray killed workers since their node ran low on memory: it doesn't say whose, so all that Ray had
        (`own_ids`) are tried again, each while no other runs, and their networks share GPUs less."""
        from hsakd.training.trial import TrialOutOfMemory

        self.say(reason.removeprefix("Caught unexpected exception: "))
        before = set(self.packing.host_alone)
        for own_id in own_ids:
            attempt = 1 + len(read_errors(self.schedule.store, own_id))
            note_error(self.schedule.store, own_id, attempt, TrialOutOfMemory(reason))
            self.take(own_id, {"outcome": "out_of_host_memory"}, is_error=False)
        for network in {self.schedule.configs[own_id].network for own_id in self.packing.host_alone - before}:
            self.packing.loosen(network)

    def _visible_record(self, config: TrialConfig, *, is_certain: bool) -> TrialRecord | None:
        """Return the record that the worker wrote; one that certainly was written may take a while to be seen here.

        A trial whose weights had been given up and are wanted now has an earlier record, which is not this attempt's.
        """
        limit = time.monotonic() + RECORD_VISIBLE_SECONDS
        while True:
            try:
                record = self.schedule.finished(config)
            except OSError:  # the file system fails at the moment
                if time.monotonic() >= limit:
                    raise
            else:
                if record is not None and record.status == "complete" and not record.has_weights and self.kept(config) != "none":
                    record = None
                if record is not None or not is_certain or time.monotonic() >= limit:
                    return record
            time.sleep(0.2)
            with suppress(OSError):
                list((self.schedule.store.root / "trials").iterdir())  # asks a network file system for the folder anew

    def _record(self, config: TrialConfig, status: str, error: str, *, attempts: int = 1) -> TrialRecord:
        """Write the record of a trial that could not write its own."""
        from hsakd.training.trial import installed_versions

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
            git_commit=str(self.options.context.get("git_commit", "")),
            versions=installed_versions(),
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
        self.crashes[own_id] += 1

    def _failure(self, config: TrialConfig, status: str) -> TrialRecord:
        errors = read_errors(self.schedule.store, config.trial_id)
        return self._record(config, status, errors[-1] if errors else "", attempts=max(1, len(errors)))

    def stop_for_storage(self, error: OSError) -> None:
        """End the sweep: what can't be written must not be lost. A full disk (also one that a worker met: errno 0) needs a person."""
        was_stopping, is_full = self.schedule.is_stopping, error.errno in (0, *FULL_DISK)
        self.schedule.is_stopping = True
        self.schedule.is_blocked |= is_full
        touch_if_possible(self.options.out / STOP_FILE)
        if not was_stopping:
            self.say(f"--out can't be written ({reason_of(error)}): stopping{'; make room, then go on' if is_full else ''}")


def utc(seconds: float) -> str:
    """Return a time as records have it: UTC, ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def touch_if_possible(path: Path) -> None:
    """Create an empty file; where the disk is full, those who look for it are told otherwise."""
    try:
        path.touch()
    except OSError:
        return
