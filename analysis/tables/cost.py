"""What the results cost, by purpose and method, and what the teacher bank saved."""

from typing import Any

import pandas as pd

from analysis.aggregate import Results, records_of
from analysis.artefact import NothingToShow, Options
from analysis.hours import total, with_hours
from analysis.table import Cell, Table
from hsakd.dataset_table import stored_size
from hsakd.network_table import network_table
from hsakd.term_table import facts_of_terms


def build(results: Results, options: Options) -> list[Table]:
    """Return hours, multiply-adds and how much of the teacher's work the bank saved."""
    del options
    every = results.entries.assign(study=results.entries["study"].where(results.entries["purpose"] == "report", ""))
    entries = with_hours(every)
    if entries.empty:
        raise NothingToShow("Cost: no trial has ended.")
    entries = entries.assign(saved=_saved(entries))
    rows = []
    for (purpose, study, method, device), group in entries.groupby(["purpose", "study", "method", "device"]):
        hours, hits, misses = float(group["hours"].sum()), int(group["bank_hits"].sum()), int(group["bank_misses"].sum())
        share = hits / (hits + misses) if hits + misses else None
        saved, ids = float(group["saved"].sum()) / 1e12, tuple(group["trial_id"])
        numbers = (
            Cell(text=f"{len(group)}", mean=float(len(group)), trial_ids=ids),
            Cell(text=f"{hours:.3f}", mean=hours, trial_ids=ids),
            _multi_adds(group),
            Cell(text="no bank") if share is None or not hits else Cell(text=f"{share:.1%}", mean=share, trial_ids=ids),
            Cell(text=f"{saved:.3g}", mean=saved, trial_ids=ids if saved else ()),
        )
        rows.append((Cell(text=_name(str(study), str(method))), Cell(text=str(purpose)), Cell(text=str(device)), *numbers))
    columns = (
        "Method",
        "Purpose",
        "Device",
        "Trials",
        "Hours",
        "Multiply-adds (M)",
        "From the bank",
        "Saved by the bank (T multiply-adds)",
    )
    notes = [
        f"Together {total(entries)}; each trial once, all attempts, pruned and failed trials included.",
        "A trial on several GPUs counts on each; trials that share a GPU count each, too. CPU-hours are those of all of a trial's threads.",
        "Multiply-adds: the trial's own network, per unrotated image. Saved: the teacher's forwards that the bank answered instead.",
    ]
    if shared := _counted_elsewhere(every, entries):
        notes.append(
            f"A trial that serves several rows is counted in one; trials of these rows are counted in others: {', '.join(shared)}."
        )
    return [Table(name="cost", title="Cost", columns=columns, rows=tuple(rows), notes=tuple(notes))]


def _name(study: str, method: str) -> str:
    return f"{study}: {method}" if study else method


def _multi_adds(group: pd.DataFrame) -> Cell:
    """Return the multiply-adds of a row's network, or the range of several."""
    adds = sorted(set(group["multi_adds"].dropna() / 1e6))
    text = "-" if not adds else f"{adds[0]:.1f}" if len(adds) == 1 else f"{adds[0]:.1f} to {adds[-1]:.1f}"
    return Cell(text=text, mean=adds[0] if len(adds) == 1 else None, trial_ids=tuple(group["trial_id"]))


def _counted_elsewhere(every: pd.DataFrame, counted: pd.DataFrame) -> list[str]:
    """Return the rows that have trials which stand in another row."""
    places = ["trial_id", "purpose", "study", "method"]
    ended = every.loc[every["trial_id"].isin(counted["trial_id"]), places].drop_duplicates()
    lost = ended.merge(counted[places], how="left", indicator=True).query("_merge == 'left_only'")
    return list(dict.fromkeys(_name(study, method) for study, method in zip(lost["study"], lost["method"], strict=True)))


def _saved(entries: pd.DataFrame) -> pd.Series:
    """Return the teacher's multiply-adds that each trial was spared: hits x rotations x teacher, with the branches that terms read."""
    columns = ["bank_hits", "teacher_network", "weights", "taps", "num_rotations", "image_size", "dataset"]
    helped = entries.loc[entries["bank_hits"].fillna(0) > 0, columns]
    saved = pd.Series([_saved_by(entry) for entry in records_of(helped)], index=helped.index, dtype=float)
    return saved.reindex(entries.index, fill_value=0.0)


def _saved_by(entry: dict[str, Any]) -> float:
    facts = network_table().get(entry["teacher_network"])
    if facts is None:
        return 0.0
    reads = facts_of_terms(entry["weights"])
    rotations = entry["num_rotations"] if reads.is_rotated else 1
    size = entry["image_size"] if pd.notna(entry["image_size"]) else stored_size(str(entry["dataset"]))
    taps = entry["taps"].split("+")
    branches = [adds for tap, adds in enumerate(facts.branch_multi_adds, 1) if taps == ["all"] or f"c{tap}" in taps]
    per_row = facts.multi_adds + (sum(branches) if reads.reads_teacher_branches else 0)
    return float(entry["bank_hits"] * rotations * per_row * (size / facts.image_size) ** 2)
