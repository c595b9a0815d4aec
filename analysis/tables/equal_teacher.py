"""What HSAKD gains over other methods when both learn from the same teacher run."""

import itertools

import numpy as np
import pandas as pd

from analysis.aggregate import METHODS, SELECTIONS, Results, by_row, methods_of, pair_label, pairs_of, reported
from analysis.artefact import NotAsked, NothingToShow, Options
from analysis.inference import WILCOXON_FROM, holm, p_text, wilcoxon
from analysis.published import departures, reference
from analysis.studies import GAINS, Gain, gain, gain_cell
from analysis.table import Cell, Table
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
    found: list[tuple[str, str, Gain]] = []
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
    rows = [
        (Cell(text=label), Cell(text=what), gain_cell(gained), *_p_cells(gained[0].p, p, gained[1]), Cell(text=gained[0].method))
        for (label, what, gained), p in zip(found, holm([gained[0].p for _, _, gained in found]), strict=True)
    ]
    means = _means(found)
    about = [
        f"Selection: {options.selection}. Gains: {GAINS}",
        "Holm's correction is over the table's tests of single pairs, and apart from them over those of means.",
    ]
    if means and all(row[3].p is None for row in means):
        about.append(f"Means are not tested: of fewer than {WILCOXON_FROM} pairs of networks, Wilcoxon's test can't have a p below 0.05.")
    about += [f"No line where {why}: {'; '.join(places)}." for why, places in left_out.items()]
    on_cifar100 = kept.loc[kept["dataset"] == "cifar100"].drop_duplicates(["teacher", "student", "method"])
    if any(text and not departures(text) for text in on_cifar100["config_json"]):
        about.append(_published())
    columns = ("Pair", "Methods", "Gain", "p", "p (Holm)", "Test")
    title, every, notes = "Gains at equal teacher", (*rows, *means), [*about, *notes]
    return [Table(name="equal_teacher", title=title, columns=columns, rows=every, notes=tuple(notes), selection=options.selection)]


def _common(sides: list[pd.DataFrame], column: str) -> set[str]:
    """Return what two rows have in common in a column."""
    return {text for text in sides[0][column] if text} & set(sides[1][column])


def _p_cells(p: float | None, corrected: float | None, trial_ids: tuple[str, ...]) -> tuple[Cell, Cell]:
    first, second = (Cell(text=p_text(value), mean=value, p=value, trial_ids=trial_ids) for value in (p, corrected))
    return first, second


def _means(found: list[tuple[str, str, Gain]]) -> list[tuple[Cell, ...]]:
    """Return a line for each two methods that several pairs have."""
    of_methods: dict[str, list[Gain]] = {}
    for _, what, gained in found:
        of_methods.setdefault(what, []).append(gained)
    of_methods = {what: gains for what, gains in of_methods.items() if len(gains) > 1}
    tests = [wilcoxon([gained.value for gained, _ in gains]) for gains in of_methods.values()]
    rows: list[tuple[Cell, ...]] = []
    for (what, gains), p, corrected in zip(of_methods.items(), tests, holm(tests), strict=True):
        mean, trial_ids = float(np.mean([gained.value for gained, _ in gains])), tuple(trial for _, ids in gains for trial in ids)
        cell = Cell(text=f"{mean:+z.2f}", mean=mean, n=len(gains), trial_ids=trial_ids)
        test = Cell(text="-" if p is None else "Wilcoxon over pairs")
        rows.append((Cell(text=f"mean of {len(gains)} pairs"), Cell(text=what), cell, *_p_cells(p, corrected, trial_ids), test))
    return rows


def _published() -> str:
    rows = reference()
    rows = rows[rows["table"] == "table1_cifar100"].pivot(index=["teacher", "student"], columns="method", values="mean")
    return f"Published (Table 1, eight pairs): HSAKD - SSKD is {(rows['HSAKD'] - rows['SSKD']).mean():+.3f} on the same teachers."
