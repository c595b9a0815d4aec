"""What the results cost, by purpose and method, and what the teacher bank saved."""

from typing import Any

import pandas as pd

from analysis.aggregate import Results, records_of
from analysis.artefact import NothingToShow, Options
from analysis.table import Cell, Table
from hsakd.network_table import network_table

IMAGE_SIZES = {"digits": 8, "fashion_mnist": 28}  # pixels as stored, where it isn't 32


def build(results: Results, options: Options) -> list[Table]:
    """Return hours, multiply-adds and how much of the teacher's work the bank saved."""
    del options
    entries = results.entries[results.entries["total_seconds"].notna()]
    if entries.empty:
        raise NothingToShow("Cost: no trial has ended.")
    entries = entries.drop_duplicates("trial_id").assign(study=entries["study"].where(entries["purpose"] == "report", ""))
    threads = entries["num_threads"].where(entries["device"] == "cpu", 1).fillna(1).clip(lower=1)
    entries = entries.assign(
        hours=entries["total_seconds"] * threads / 3600,
        device=entries["device"].replace("", "unknown").fillna("unknown"),
        saved=_saved(entries),
    )
    rows = []
    for (purpose, study, method, device), group in entries.groupby(["purpose", "study", "method", "device"]):
        hours, hits, misses = float(group["hours"].sum()), int(group["bank_hits"].sum()), int(group["bank_misses"].sum())
        share = hits / (hits + misses) if hits + misses else None
        adds, saved = float(group["multi_adds"].mean()) / 1e6, float(group["saved"].sum()) / 1e12
        ids = tuple(group["trial_id"])
        numbers = (
            Cell(text=f"{len(group)}", mean=float(len(group)), trial_ids=ids),
            Cell(text=f"{hours:.3f}", mean=hours, trial_ids=ids),
            Cell(text=f"{adds:.1f}", mean=adds, trial_ids=ids[:1]),
            Cell(text="no bank") if share is None or not hits else Cell(text=f"{share:.1%}", mean=share, trial_ids=ids),
            Cell(text=f"{saved:.3g}", mean=saved, trial_ids=ids if saved else ()),
        )
        name = f"{study}: {method}" if study else str(method)
        rows.append((Cell(text=name), Cell(text=str(purpose)), Cell(text=str(device)), *numbers))
    kinds = {"cpu": "CPU-hours (trial hours x threads)", "cuda": "GPU trial hours"}
    totals = ", ".join(
        f"{group['hours'].sum():.3f} {kinds.get(str(device), f'trial hours on {device}')}" for device, group in entries.groupby("device")
    )
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
    notes = (
        f"Together {totals}; each trial once, all attempts, pruned and failed trials included.",
        "A GPU trial hour is an hour of one trial; trials that share a GPU take that many at once.",
        "Multiply-adds: the trial's own network, per unrotated image. Saved: the teacher's forwards that the bank answered instead.",
    )
    return [Table(name="cost", title="Cost", columns=columns, rows=tuple(rows), notes=notes)]


def _saved(entries: pd.DataFrame) -> pd.Series:
    """Return the teacher's multiply-adds that each trial was spared: hits x rotations x teacher (with branches where kl_q reads them)."""
    columns = ["bank_hits", "teacher_network", "weights", "num_rotations", "image_size", "dataset"]
    helped = entries.loc[entries["bank_hits"].fillna(0) > 0, columns]
    saved = pd.Series([_saved_by(entry) for entry in records_of(helped)], index=helped.index, dtype=float)
    return saved.reindex(entries.index, fill_value=0.0)


def _saved_by(entry: dict[str, Any]) -> float:
    facts = network_table().get(entry["teacher_network"])
    if facts is None:
        return 0.0
    terms = set(entry["weights"])
    rotations = entry["num_rotations"] if terms & {"ce_q", "kl_q", "kl_p"} else 1
    size = entry["image_size"] if pd.notna(entry["image_size"]) else IMAGE_SIZES.get(str(entry["dataset"]), facts.image_size)
    per_row = facts.multi_adds + (sum(facts.branch_multi_adds) if "kl_q" in terms else 0)
    return float(entry["bank_hits"] * rotations * per_row * (size / facts.image_size) ** 2)
