"""`python sweeps/status.py OUT`: how a sweep stands, read from its folder only; works while it runs, after it, and from another machine."""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tyro

from hsakd.command_line import parse, refuse, run_command
from hsakd.config import TrialConfig
from hsakd.records import PlanEntry, TrialRecord
from hsakd.result_folder import check_trials, read_plan
from hsakd.store import OtherVersion, ResultStore
from sweeps.cost import CostModel
from sweeps.wording import counted, judged, pair_of, row_of

MOST_SECONDS = 86_400  # between two looks
STATES = ("done", "running", "waiting", "failed")
FAILURES = ("failed", "out_of_memory", "diverged")
PROGRESS_FILE = "progress.json"
SHOWN_ERRORS = 5
SILENT_SECONDS = 180.0  # a driver writes its progress every two seconds, but not while Ray starts


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
        if not 0 < self.every <= MOST_SECONDS:
            raise ValueError(f"--every is {self.every}; accepted: seconds above 0, at most {MOST_SECONDS}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What a driver at work says of itself: its process, the epochs of each running trial, the slots, the seconds left with their basis."""

    host: str
    pid: int
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
            pid=int(values["pid"]),
            running={str(name): int(epochs) for name, epochs in values["running"].items()},
            slots=float(values["slots"]),
            seconds_left=float(values["seconds_left"]),
            basis=str(values["basis"]),
            age_seconds=age,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def describe_driver(store: ResultStore) -> str:
    """Return "another driver" and, where it has said so lately, which process of which host it is."""
    progress = read_progress(store)
    is_known = progress is not None and progress.age_seconds < SILENT_SECONDS
    return "another driver" + (f" (process {progress.pid} on {printable(progress.host)})" if progress is not None and is_known else "")


def read_records(store: ResultStore) -> dict[str, TrialRecord]:
    """Return all records that this code can read; unlike the driver, a reader sets nothing aside."""
    records = {}
    for trial_id in store.trial_ids():
        with suppress(OtherVersion):
            if (record := store.peek_trial(trial_id)) is not None:
                records[trial_id] = record
    return records


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
    basis = f"{cost.describe()}, {at_once:.1f} at once so far; {counted(unknown, 'training')} of searches not known yet"
    return (known + unknown * sum(students) / len(students)) / at_once, basis


def printable(text: str) -> str:
    """Return text of a record for a terminal: control characters, which could move its cursor, as escapes."""
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in text)


def describe(store: ResultStore) -> tuple[str, bool]:
    """Return the status text and whether every planned trial has ended well."""
    plan, records, progress = read_plan(store), read_records(store), read_progress(store)
    lines = [*_table(plan, records, progress), _spent(records), *_driver(plan, progress)]
    if unread := len(store.trial_ids()) - len(records):
        lines.append(f"{counted(unread, 'record')} not counted, as this code can't read it (damaged, or of other code)")
    ends = [records[entry.trial_id].status if entry.trial_id in records else "" for entry in plan]
    is_complete = bool(plan) and not {"", "failed", "out_of_memory"} & set(ends)
    if not is_complete:
        lines += _left(plan, records, progress)
    errors = [record for record in records.values() if record.status in FAILURES]
    lines += [
        f"{record.status}: {record.trial_id} {printable(record.network)}: {printable((record.error.splitlines() or ['no text'])[0])}"
        for record in sorted(errors, key=lambda record: (record.finished_at, record.trial_id))[-SHOWN_ERRORS:]
    ]
    return "\n".join(lines), is_complete


def _table(plan: list[PlanEntry], records: dict[str, TrialRecord], progress: Progress | None) -> list[str]:
    """Return the counts and the best accuracy of each row; a trial that several lines name counts once in its row, and once in all."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    best: dict[tuple[str, str], tuple[float, str]] = {}
    total: Counter[str] = Counter()
    seen: set[tuple[str, ...]] = set()
    for entry in plan:
        key, record = (printable(pair_of(entry)), printable(row_of(entry))), records.get(entry.trial_id)
        state = state_of(entry, records, progress)
        for place, numbers in (((*key, entry.trial_id), counts[key]), ((entry.trial_id,), total)):
            numbers[state] += not entry.trial_id or place not in seen
            seen.add(place)
        value = None if record is None else judged(entry, record)
        if value is not None:
            best[key] = max(value, best.get(key, value))
    pair_width, row_width = (max(len(text) for text in texts) for texts in zip(*counts, ("all trials", "row"), strict=True))

    def line(pair: str, row: str, numbers: Iterable[object], accuracy: str = "") -> str:
        return f"{pair:{pair_width}s}  {row:{row_width}s}  {' '.join(f'{number!s:>7s}' for number in numbers)}{accuracy}".rstrip()

    lines = [line("pair", "row", STATES, "  best (%)")]
    for key, numbers in counts.items():
        accuracy = f"  {best[key][0]:6.2f}  {best[key][1]}" if key in best else ""
        lines.append(line(*key, (numbers[state] for state in STATES), accuracy))
    return [*lines, line("all trials", "", (total[state] for state in STATES))]


def _spent(records: dict[str, TrialRecord]) -> str:
    hours: dict[str, float] = defaultdict(float)
    for record in records.values():
        hours[record.device or "unknown"] += record.total_seconds / 3600
    shares = ", ".join(f"{value:.3f} trial hours on {printable(device)}" for device, value in sorted(hours.items())) or "nothing"
    return f"spent: {shares} in {counted(len(records), 'trial')}"


def _driver(plan: list[PlanEntry], progress: Progress | None) -> list[str]:
    """Return who works on the sweep, and a line for each trial that runs."""
    if progress is None:
        return ["no driver is at work"]
    if progress.age_seconds >= SILENT_SECONDS:
        return [f"the driver on {printable(progress.host)} was last heard of {progress.age_seconds / 60:.0f} min ago"]
    if not progress.running:
        return [f"the driver on {printable(progress.host)} runs nothing yet"]
    entries = {entry.trial_id: entry for entry in reversed(plan)}  # a trial's first line
    rows = [("trial", "row", "pair", "network", "epochs done")]
    for trial_id, epochs in sorted(progress.running.items()):
        entry = entries.get(trial_id)
        config = TrialConfig.from_json(entry.config_json) if entry is not None else None
        names = ("", "", "") if entry is None or config is None else (row_of(entry), pair_of(entry), config.network)
        rows.append((trial_id, *names, f"{epochs}{'' if config is None else f' of {config.optim.epochs}'}"))
    widths = [max(len(printable(row[column])) for row in rows) for column in range(len(rows[0]))]
    head = f"the driver on {printable(progress.host)} runs {counted(len(progress.running), 'trial')}:"
    return [head, *("  " + "  ".join(f"{printable(c):{w}s}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)]


def _left(plan: list[PlanEntry], records: dict[str, TrialRecord], progress: Progress | None) -> list[str]:
    if progress is not None and progress.age_seconds < SILENT_SECONDS:
        return [f"left: about {progress.seconds_left / 3600:.2f} h (basis: {printable(progress.basis)}, {counted(progress.slots, 'slot')})"]
    left = seconds_left(plan, records)
    return [] if left is None else [f"left: about {left[0] / 3600:.2f} h (basis: {left[1]})"]


def main() -> int:
    """Run the command; status 0 if the sweep is complete, 1 if it isn't."""
    options = parse(StatusOptions)
    store = ResultStore(options.out)
    if not store.plan_path.exists():
        refuse(f"OUT is {options.out}; accepted: a folder that a sweep has written (it has a plan.parquet)")
    try:
        while True:
            try:
                check_trials("OUT", options.out)
                text, is_complete = describe(store)
            except ValueError as error:
                refuse(str(error))
            print(text, flush=True)
            if is_complete or not options.watch:
                return 0 if is_complete else 1
            time.sleep(options.every)
            print()
    except KeyboardInterrupt:
        if not options.watch:  # of which it is the way out
            raise
        return 1


if __name__ == "__main__":
    run_command(main)
