"""What HSAKD gains over other methods when both learn from the same teacher run."""

import itertools
from dataclasses import replace

import pandas as pd

from analysis.aggregate import METHODS, SELECTIONS, Results, by_row, methods_of, pair_label, pairs_of, reported
from analysis.artefact import NotAsked, NothingToShow, Options
from analysis.gains import Line, gain_table
from analysis.published import departures, reference
from analysis.studies import gain
from analysis.table import Table
from analysis.uniform import teacher_of, uniform

OURS = tuple(method for method in METHODS[::-1] if method.startswith("HSAKD"))


def build(results: Results, options: Options) -> list[Table]:
    """Return the paired gain per pair of networks, and the mean over pairs with Wilcoxon's test."""
    entries = reported(results)
    pairs, notes = pairs_of(entries), list[str]()
    kept, _ = uniform(entries, pairs, options, notes)
    kept = kept[kept["purpose"] == "report"]
    teachers = [teacher_of(text) for text in kept["config_json"]]
    of_rows = by_row(kept.assign(regime=[regime for regime, _ in teachers], root=[root for _, root in teachers]), pairs)
    names = [*OURS, *(method for method in methods_of(kept) if method not in OURS)]
    found: list[Line] = []
    left_out: dict[str, list[str]] = {}  # by reason
    for pair, (left, right) in itertools.product(pairs, itertools.combinations(names, 2)):
        sides = [of_rows[pair, name] for name in (left, right) if (pair, name) in of_rows]
        if left not in OURS or len(sides) < 2 or not _common(sides, "regime"):
            continue
        shared, label, what = _common(sides, "root"), pair_label(pair, pairs), f"{left} - {right}"
        arm, base = (side[side["root"].isin(shared)] for side in sides)
        gained = gain(arm, base, SELECTIONS[options.selection], force=options.force)
        if set(sides[0]["trial_id"]) == set(sides[1]["trial_id"]):
            left_out.setdefault("both rows are the same trials (of HSAKD-tuned: the paper's setting won)", []).append(f"{what}, {label}")
        elif gained is None:
            why = "no seed and teacher have a number in both rows, or a row has different settings"
            left_out.setdefault(why, []).append(f"{what}, {label}")
        else:
            found.append((label, what, gained))
            if any(set(side["root"]) - shared for side in sides):
                notes.append(f"{what}, {label}: over the teachers that both rows have ({len(shared)}).")
    if not found and not left_out:
        raise NotAsked("Equal teacher: the folder's plan has no two methods on the same teacher.")
    if not found:
        raise NothingToShow(f"Equal teacher: no two methods to compare, since {', and '.join(left_out)}.")
    table = gain_table(found, options, name="equal_teacher", title="Gains at equal teacher")
    about = [f"No line where {why}: {'; '.join(places)}." for why, places in left_out.items()]
    on_cifar100 = kept.loc[kept["dataset"] == "cifar100"].drop_duplicates(["teacher", "student", "method"])
    if any(text and not departures(text) for text in on_cifar100["config_json"]):
        about.append(_published())
    return [replace(table, notes=(*table.notes, *about, *notes))]


def _common(sides: list[pd.DataFrame], column: str) -> set[str]:
    """Return what two rows have in common in a column."""
    return {text for text in sides[0][column] if text} & set(sides[1][column])


def _published() -> str:
    rows = reference()
    rows = rows[rows["table"] == "table1_cifar100"].pivot(index=["teacher", "student"], columns="method", values="mean")
    return f"Published (Table 1, eight pairs): HSAKD - SSKD is {(rows['HSAKD'] - rows['SSKD']).mean():+.3f} on the same teachers."
