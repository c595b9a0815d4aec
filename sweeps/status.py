"""`python sweeps/status.py OUT`: how a sweep stands, read from its folder only; works while it runs, after it, and from another machine."""

import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tyro

from hsakd.config import TrialConfig
from hsakd.records import PlanEntry, ResultStore, TrialRecord
from sweeps.cli import parse, refuse, run_command
from sweeps.cost import CostModel

STATES = ("done", "running", "waiting", "failed")
FAILURES = ("failed", "out_of_memory", "diverged")
PROGRESS_FILE = "progress.json"
SHOWN_ERRORS = 5
SILENT_SECONDS = 60.0  # a driver writes its progress every two seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusOptions:
    """Print how a sweep stands."""

    out: tyro.conf.Positional[Path]
    """Result folder."""
    watch: bool = False
    """Print again every --every seconds until the sweep is complete."""
    every: float = 10.0
    """Seconds."""

    def __post_init__(self) -> None:
        if not self.every > 0:
            raise ValueError(f"--every is {self.every}; accepted: seconds above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What a driver at work says of itself: the epochs of each running trial, the slots, and the seconds left with their basis."""

    host: str
    running: dict[str, int]
    slots: float
    seconds_left: float
    basis: str
    age_seconds: float


def read_progress(store: ResultStore) -> Progress | None:
    """Return the driver's latest word, or None where no driver is at work or its word can't be read."""
    path = store.root / PROGRESS_FILE
    try:
        values, age = json.loads(path.read_text()), time.time() - path.stat().st_mtime
        return Progress(
            host=str(values["host"]),
            running={str(name): int(epochs) for name, epochs in values["running"].items()},
            slots=float(values["slots"]),
            seconds_left=float(values["seconds_left"]),
            basis=str(values["basis"]),
            age_seconds=age,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_records(store: ResultStore) -> dict[str, TrialRecord]:
    """Return all readable records; unlike the driver, a reader sets nothing aside."""
    records = {trial_id: store.peek_trial(trial_id) for trial_id in store.trial_ids()}
    return {trial_id: record for trial_id, record in records.items() if record is not None}


def state_of(entry: PlanEntry, records: dict[str, TrialRecord], progress: Progress | None) -> str:
    """Return one of `STATES`; a failed trial may run again, and what a dead driver left unfinished is waiting again."""
    record = records.get(entry.trial_id)
    if record is not None and record.status not in FAILURES:
        return "done"
    if progress is not None and progress.age_seconds < SILENT_SECONDS and entry.trial_id in progress.running:
        return "running"
    return "waiting" if record is None else "failed"


def seconds_left(plan: list[PlanEntry], records: dict[str, TrialRecord]) -> tuple[float, str] | None:
    """Return the seconds left without a driver's word and what they rest on, or None before the first trial has ended."""
    measured = [record for record in records.values() if record.total_seconds > 0 and record.epochs_done > 0]
    if not measured:
        return None
    cost = CostModel(Counter(record.device for record in measured).most_common(1)[0][0] or "cpu")
    for record in measured:
        cost.observe_record(record)
    begins = [datetime.fromisoformat(record.started_at).timestamp() for record in measured if record.started_at]
    ends = [datetime.fromisoformat(record.finished_at).timestamp() for record in measured if record.finished_at and record.started_at]
    spent = sum(record.total_seconds for record in measured)
    wall = max(ends) - min(begins) if begins and ends else spent
    at_once = max(1.0, spent / wall) if wall > 0 else 1.0
    missing = {entry.trial_id: entry for entry in plan if entry.trial_id and entry.trial_id not in records and entry.config_json}
    known = sum(cost.seconds(TrialConfig.from_json(entry.config_json)) for entry in missing.values())
    unknown = sum(not entry.trial_id for entry in plan)
    students = [cost.seconds(record.config) for record in measured if record.role == "student"] or [0.0]
    basis = f"{cost.describe()}, {at_once:.1f} at once so far; {unknown} trainings of searches are not known yet"
    return (known + unknown * sum(students) / len(students)) / at_once, basis


def printable(text: str) -> str:
    """Return text of a record for a terminal: control characters, which could move its cursor, as escapes."""
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in text)


def describe(store: ResultStore) -> tuple[str, bool]:
    """Return the status text and whether every planned trial has ended well."""
    plan, records, progress = store.read_plan(), read_records(store), read_progress(store)
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    best: dict[tuple[str, str], float] = {}
    for entry in plan:
        key = (f"{entry.teacher}-{entry.student}", entry.method if entry.purpose in ("report", "teacher", "backbone") else entry.purpose)
        counts[key][state_of(entry, records, progress)] += 1
        record = records.get(entry.trial_id)
        value = None if record is None else record.top1_val if entry.purpose in ("search", "confirm") else record.top1_last
        if value is not None:
            best[key] = max(value, best.get(key, value))
    width = max([len(pair) for pair, _ in counts] or [4])
    lines = [f"{'pair':{width}s}  {'row':12s} " + " ".join(f"{state:>7s}" for state in STATES) + "  best top-1 (%)"]
    for (pair, row), numbers in counts.items():
        shown = f"{best[pair, row]:.2f}" if (pair, row) in best else ""
        lines.append(
            f"{printable(pair):{width}s}  {printable(row):12s} " + " ".join(f"{numbers[s]:7d}" for s in STATES) + f"  {shown:>14s}"
        )
    total = sum(counts.values(), Counter[str]())
    lines.append(f"{'all lines':{width}s}  {'':12s} " + " ".join(f"{total[state]:7d}" for state in STATES))
    ends = [records[entry.trial_id].status if entry.trial_id in records else "" for entry in plan]
    is_complete = bool(plan) and not {"", "failed", "out_of_memory"} & set(ends)
    lines += [_spent(records), *_driver(progress)]
    if not is_complete:
        lines += _left(plan, records, progress)
    errors = [record for record in records.values() if record.status in FAILURES]
    lines += [
        f"{record.status}: {record.trial_id} {printable(record.network)}: {printable((record.error.splitlines() or ['no text'])[0])}"
        for record in sorted(errors, key=lambda record: (record.finished_at, record.trial_id))[-SHOWN_ERRORS:]
    ]
    return "\n".join(lines), is_complete


def _spent(records: dict[str, TrialRecord]) -> str:
    hours: dict[str, float] = defaultdict(float)
    for record in records.values():
        hours[record.device or "unknown"] += record.total_seconds / 3600
    shares = ", ".join(f"{value:.3f} trial hours on {printable(device)}" for device, value in sorted(hours.items())) or "nothing"
    return f"spent: {shares} in {len(records)} trials"


def _driver(progress: Progress | None) -> list[str]:
    if progress is None:
        return ["no driver is at work"]
    if progress.age_seconds >= SILENT_SECONDS:
        return [f"the driver on {printable(progress.host)} was last heard of {progress.age_seconds / 60:.0f} min ago"]
    running = ", ".join(f"{printable(name)} (epoch {epochs})" for name, epochs in sorted(progress.running.items())) or "nothing yet"
    return [f"the driver on {printable(progress.host)} runs {running}"]


def _left(plan: list[PlanEntry], records: dict[str, TrialRecord], progress: Progress | None) -> list[str]:
    if progress is not None and progress.age_seconds < SILENT_SECONDS:
        return [f"left: about {progress.seconds_left / 3600:.2f} h (basis: {printable(progress.basis)}, {progress.slots:g} slots)"]
    left = seconds_left(plan, records)
    return [] if left is None else [f"left: about {left[0] / 3600:.2f} h (basis: {left[1]})"]


def main() -> int:
    """Run the command; status 0 if the sweep is complete, 1 if it isn't."""
    options = parse(StatusOptions)
    store = ResultStore(options.out)
    if not store.plan_path.exists():
        refuse(f"OUT is {options.out}; accepted: a folder that a sweep has written (it has a plan.parquet)")
    while True:
        try:
            text, is_complete = describe(store)
        except ValueError as error:
            refuse(str(error))
        print(text, flush=True)
        if is_complete or not options.watch:
            return 0 if is_complete else 1
        time.sleep(options.every)
        print()


if __name__ == "__main__":
    try:
        run_command(main)
    except KeyboardInterrupt:  # the way out of --watch
        raise SystemExit(1) from None
