"""The arms of an ablation study: which they are, in which order, as a table with paired gains, the published arms beside them."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from analysis.aggregate import SELECTIONS, Results, for_pair, make_cell, pair_label, pairs_of, records_of, reference
from analysis.artefact import NotAsked, Options
from analysis.inference import Difference, Summary, paired
from analysis.table import Cell, Table

Pair = tuple[str, str, str]
Order = Callable[[dict[str, Any]], Any]


def arms_of(results: Results, study: str, order: Order) -> list[str]:
    """Return the arm labels of a study, sorted by `order` of an entry, then by name; raises NotAsked if none."""
    entries = results.rows(purpose="report", study=study)
    if entries.empty:
        raise NotAsked(f"Study {study}: the folder's plan has none of its trials.")
    first = records_of(entries.drop_duplicates("method"))
    return [str(entry["method"]) for entry in sorted(first, key=lambda entry: (order(entry), str(entry["method"])))]


def published_arms(table: str, pair: Pair, *, dataset: str = "cifar100") -> dict[str, Summary]:
    """Return the published numbers of a pair in one table of `reference.csv`, by method; none for pairs on another `dataset`."""
    rows = reference()
    rows = rows[(rows["table"] == table) & (rows["teacher"] == pair[1]) & (rows["student"] == pair[2])]
    if pair[0] != dataset:
        return {}
    return {str(row["method"]): Summary(mean=row["mean"], std=None if pd.isna(row["std"]) else row["std"], n=3) for row in records_of(rows)}


def gain(entries: pd.DataFrame, arm: str, base: str, column: str) -> tuple[Difference, tuple[str, ...]] | None:
    """Return arm minus base over the seeds that both have, and their trials; None where there is no common seed."""
    done = entries[(entries["status"] == "complete") & entries[column].notna()]
    sides = [done[done["method"] == name].drop_duplicates(["seed", "teacher_seed"]) for name in (arm, base)]
    both = sides[0].merge(sides[1], on=["seed", "teacher_seed"], suffixes=("", "_base")).sort_values(["seed", "teacher_seed"])
    if both.empty:
        return None
    difference = paired(both[column].astype(float).to_list(), both[f"{column}_base"].astype(float).to_list())
    return difference, (*both["trial_id"], *both["trial_id_base"])


def gain_cell(found: tuple[Difference, tuple[str, ...]] | None) -> Cell:
    """Return "+1.20 [+0.80, +1.60]"."""
    if found is None:
        return Cell(text="-")
    difference, trial_ids = found
    interval = "" if difference.low is None else f" [{difference.low:+.2f}, {difference.high:+.2f}]"
    return Cell(text=f"{difference.value:+.2f}{interval}", mean=difference.value, trial_ids=trial_ids)


def study_table(
    results: Results,
    options: Options,
    *,
    study: str,
    title: str,
    order: Order,
    base: str | None,
    published: Callable[[Pair], dict[str, Summary]] = lambda _: {},
    columns: Mapping[str, str] = SELECTIONS,
    measure: str = "Test accuracy in per cent",
) -> Table:
    """Return a study's table: per pair the accuracy, the gain over the arm `base` (paired by seed) and the published arm if any.

    `columns` are the records' columns of `measure` by selection.
    """
    arms = arms_of(results, study, order)
    entries = results.rows(purpose="report", study=study)
    pairs = pairs_of(entries)
    references = {pair: published(pair) for pair in pairs}
    base = base if base in arms else None
    heads, notes, rows = ["Arm"], list[str](), []
    column = columns[options.selection]
    for pair in pairs:
        label = pair_label(pair, pairs)
        heads += [
            label,
            *([f"{label}: gain over {base}"] if base else []),
            *([f"{label}: published (best-test)"] if references[pair] else []),
        ]
    for arm in [*arms, *sorted({name for found in references.values() for name in found} - set(arms))]:
        cells = [Cell(text=arm)]
        for pair in pairs:
            mine = for_pair(entries, pair)
            where = f"{arm}, {pair[1]} → {pair[2]}"
            own = mine[mine["method"] == arm]
            cells.append(make_cell(own, selection=options.selection, where=where, notes=notes, force=options.force, column=column))
            if base:
                cells.append(Cell(text="base") if arm == base else gain_cell(gain(mine, arm, base, column)))
            if references[pair]:
                summary = references[pair].get(arm)
                spread = "" if summary is None or summary.std is None else f" ± {summary.std:.2f}"
                cells.append(Cell(text="-" if summary is None else f"{summary.mean:.2f}{spread}", mean=summary.mean if summary else None))
        rows.append(tuple(cells))
    about = [f"{measure}, mean ± sample std (n); selection: {options.selection}."]
    if base:
        about.append("Gains are paired by seed (same stream, same teacher): 95 % t-interval below 10 pairs, bootstrap from 10.")
    if any(references.values()):
        about.append("Published numbers are selected on the best test epoch.")
    return Table(name=study.replace("-", "_"), title=title, columns=tuple(heads), rows=tuple(rows), notes=(*about, *notes))


def placement_order(entry: dict[str, Any]) -> tuple[int, str]:
    """Return the order of placements: by the number of auxiliary classifiers, then by name (the paper's order, too)."""
    arm = str(entry["method"])
    return 0 if arm == "none" else arm.count("+") + 1, arm


def paper_order(table: str) -> Order:
    """Return the order in which `reference.csv` lists the methods of a table; others follow."""
    rows = reference()
    names = list(dict.fromkeys(rows.loc[rows["table"] == table, "method"]))
    return lambda entry: names.index(entry["method"]) if entry["method"] in names else len(names)
