"""What HSAKD gains over other methods when both learn from the same teacher run."""

import itertools
import json
from typing import Any

import numpy as np

from analysis.aggregate import METHODS, SELECTIONS, Results, for_pair, pair_label, pairs_of, reference, reported
from analysis.artefact import NotAsked, NothingToShow, Options
from analysis.configurations import parsed
from analysis.inference import p_text, wilcoxon
from analysis.studies import gain, gain_cell
from analysis.table import Cell, Table


def build(results: Results, options: Options) -> list[Table]:
    """Return the paired gain per pair of networks, and the mean over pairs with Wilcoxon's test."""
    entries = reported(results)
    entries = entries[entries["purpose"] == "report"].assign(
        root=[_root(text) for text in entries.loc[entries["purpose"] == "report", "config_json"]]
    )
    rows: list[tuple[Cell, ...]] = []
    gains: dict[tuple[str, str], list[float]] = {}
    is_asked = False
    pairs = pairs_of(entries)
    for pair in pairs:
        mine = for_pair(entries, pair)
        of_row = {str(method): group for method, group in mine.groupby("method")}
        for left, right in itertools.product([name for name in METHODS[::-1] if name.startswith("HSAKD")], sorted(of_row)):
            roots = [set(of_row[name]["root"]) - {""} if name in of_row else set() for name in (left, right)]
            if left == right or not roots[0] or roots[0] != roots[1]:
                continue
            is_asked = True
            found = gain(of_row[left], of_row[right], SELECTIONS[options.selection], force=options.force)
            if found is None:
                continue
            gains.setdefault((left, right), []).append(found[0].value)
            rows.append(
                (
                    Cell(text=pair_label(pair, pairs)),
                    Cell(text=f"{left} - {right}"),
                    gain_cell(found),
                    Cell(text=p_text(found[0].p)),
                    Cell(text=found[0].method),
                )
            )
    if not rows and not is_asked:
        raise NotAsked("Equal teacher: the folder's plan has no two methods on the same teacher.")
    if not rows:
        raise NothingToShow("Equal teacher: no two methods have finished trials on the same teacher.")
    for (left, right), values in gains.items():
        if len(values) > 1:
            mean = float(np.mean(values))
            cells = (
                Cell(text=f"{mean:+z.2f}", mean=mean),
                Cell(text=p_text(wilcoxon(values))),
                Cell(text="Wilcoxon over pairs"),
            )
            rows.append((Cell(text=f"mean of {len(values)} pairs"), Cell(text=f"{left} - {right}"), *cells))
    notes = (f"Selection: {options.selection}; pairs of students with the same seed.", _published())
    columns = ("Pair", "Methods", "Gain", "p", "Test")
    return [Table(name="equal_teacher", title="Gains at equal teacher", columns=columns, rows=tuple(rows), notes=notes)]


def _root(config_json: str) -> str:
    """Return the backbone that a student's teacher rests on: the frozen teacher and its backbone are one teacher."""
    teacher: dict[str, Any] | None = parsed(config_json).get("teacher")
    return "" if teacher is None else json.dumps(teacher.get("backbone") or teacher, sort_keys=True)


def _published() -> str:
    rows = reference()
    rows = rows[rows["table"] == "table1_cifar100"].pivot(index=["teacher", "student"], columns="method", values="mean")
    return f"Published (Table 1, eight pairs): HSAKD - SSKD is {(rows['HSAKD'] - rows['SSKD']).mean():+.3f} on the same teachers."
