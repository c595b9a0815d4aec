"""`python sweeps/status.py OUT`: how a sweep stands, read from its folder only; works while it runs, after it, and from another machine."""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tyro

from hsakd.config import TrialConfig
from hsakd.records import PlanEntry, ResultStore, TrialRecord, read_rows
from sweeps.cli import parse, refuse
from sweeps.cost import cost_of

STATES = ("done", "begun", "waiting", "failed")
SHOWN_ERRORS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusOptions:
    """Print how a sweep stands."""

    out: tyro.conf.Positional[Path]
    """Result folder."""
    watch: bool = False
    """Print again every --every seconds until the sweep is complete."""
    every: float = 10.0
    """Seconds."""


def read_records(store: ResultStore) -> dict[str, TrialRecord]:
    """Return all readable records; unlike the driver, a reader sets nothing aside."""
    records = {}
    for trial_id in store.trial_ids():
        try:
            records[trial_id] = read_rows(store.trial_path(trial_id), TrialRecord)[0]
        except (ValueError, IndexError):
            continue
    return records


def state_of(entry: PlanEntry, records: dict[str, TrialRecord], store: ResultStore) -> str:
    """Return one of `STATES`; "begun" has a checkpoint folder and no record."""
    record = records.get(entry.trial_id)
    if record is not None:
        return "done" if record.status in ("complete", "pruned") else "failed"
    return "begun" if entry.trial_id and store.checkpoint_dir(entry.trial_id).exists() else "waiting"


def seconds_left(plan: list[PlanEntry], records: dict[str, TrialRecord]) -> tuple[float, str] | None:
    """Return the seconds left and what they rest on, or None before the first trial has ended."""
    done = [record for record in records.values() if record.total_seconds > 0]
    if not done:
        return None
    spent = sum(record.total_seconds for record in done)
    rate = sum(cost_of(record.config) * record.epochs_done / max(1, record.num_epochs) for record in done) / spent
    begins = [datetime.fromisoformat(record.started_at).timestamp() for record in done if record.started_at]
    ends = [datetime.fromisoformat(record.finished_at).timestamp() for record in done if record.finished_at]
    wall = max(ends) - min(begins) if begins and ends else spent
    at_once = max(1.0, spent / wall) if wall > 0 else 1.0
    missing = {entry.trial_id: entry for entry in plan if entry.trial_id and entry.trial_id not in records and entry.config_json}
    known = sum(cost_of(TrialConfig.from_json(entry.config_json)) for entry in missing.values())
    unknown = sum(not entry.trial_id for entry in plan)
    costs = [cost_of(record.config) for record in done if record.role == "student"] or [0.0]
    left = (known + unknown * sum(costs) / len(costs)) / rate if rate else 0.0
    basis = f"{len(done)} trials at {rate:.3g} multiply-adds per second, {at_once:.1f} at once; {unknown} to be searched"
    return left / at_once, basis


def describe(store: ResultStore) -> tuple[str, bool]:
    """Return the status text and whether every planned trial has ended well."""
    plan, records = store.read_plan(), read_records(store)
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    best: dict[tuple[str, str], float] = {}
    for entry in plan:
        key = (f"{entry.teacher}-{entry.student}", entry.method if entry.purpose in ("report", "teacher", "backbone") else entry.purpose)
        counts[key][state_of(entry, records, store)] += 1
        record = records.get(entry.trial_id)
        value = None if record is None else record.top1_val if entry.purpose in ("search", "confirm") else record.top1_last
        if value is not None:
            best[key] = max(value, best.get(key, value))
    width = max([len(pair) for pair, _ in counts] or [4])
    lines = [f"{'pair':{width}s}  {'row':12s} " + " ".join(f"{state:>7s}" for state in STATES) + "  best top-1 (%)"]
    for (pair, row), numbers in counts.items():
        shown = f"{best[pair, row]:.2f}" if (pair, row) in best else ""
        lines.append(f"{pair:{width}s}  {row:12s} " + " ".join(f"{numbers[state]:7d}" for state in STATES) + f"  {shown:>14s}")
    total = sum(counts.values(), Counter[str]())
    lines.append(f"{'all lines':{width}s}  {'':12s} " + " ".join(f"{total[state]:7d}" for state in STATES))
    lines.append(f"spent: {sum(record.total_seconds for record in records.values()) / 3600:.3f} trial hours in {len(records)} trials")
    left = seconds_left(plan, records)
    if left is not None and total["done"] < sum(total.values()):
        lines.append(f"left: about {left[0] / 3600:.2f} h (basis: {left[1]})")
    errors = [record for record in records.values() if record.status not in ("complete", "pruned")]
    lines += [
        f"{record.status}: {record.trial_id} {record.network}: {(record.error.splitlines() or ['no text'])[0]}"
        for record in sorted(errors, key=lambda record: record.finished_at)[-SHOWN_ERRORS:]
    ]
    return "\n".join(lines), bool(plan) and total["done"] == sum(total.values())


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
    raise SystemExit(main())
