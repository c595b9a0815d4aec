"""The arms of an ablation study: which they are, in which order, as a table with paired gains, the published arms beside them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd

from analysis.aggregate import SELECTIONS, Results, by_row, make_cell, pair_label, pairs_of, records_of, reference, where
from analysis.artefact import NotAsked, Options
from analysis.configurations import setting_of
from analysis.inference import Difference, Summary, paired
from analysis.table import Cell, Table
from analysis.uniform import Pair, uniform

Order = Callable[[dict[str, Any]], Any]
PLACEMENT_STUDIES = {"aux-placement": "task + kl_q", "aux-placement-full": "task + kl_q + kl_p"}


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRows:
    """The entries of a study by pair and arm, a cell of each, and sentences on what is missing or refused.

    `first` has one entry of each arm, for the order of arms and their places on axes.
    """

    pairs: list[Pair]
    first: dict[str, dict[str, Any]]
    of_rows: dict[tuple[Pair, str], pd.DataFrame]
    cells: dict[tuple[Pair, str], Cell]
    notes: tuple[str, ...]

    def arms(self, order: Order) -> list[str]:
        """Return the arms, sorted by `order` of an entry, then by name."""
        return sorted(self.first, key=lambda arm: (order(self.first[arm]), arm))

    def cell(self, pair: Pair, arm: str) -> Cell:
        """Return an arm's cell, "-" where the pair does not have the arm."""
        return self.cells.get((pair, arm), Cell(text="-"))


def study_rows(results: Results, options: Options, study: str, columns: Mapping[str, str] = SELECTIONS) -> StudyRows:
    """Return the rows of a study, made once for all artefacts of a build; raises NotAsked if there are none."""
    name = f"study {study} {options}"
    if name not in results.memo:
        entries = results.rows(purpose="report", study=study)
        if entries.empty:
            raise NotAsked(f"Study {study}: the folder's plan has none of its trials.")
        pairs, notes = pairs_of(entries), list[str]()
        first = {str(entry["method"]): entry for entry in records_of(entries.drop_duplicates("method"))}
        kept, cells = uniform(entries, pairs, options, notes, varies_ratio=True)
        of_rows = by_row(kept, pairs)
        for (pair, arm), own in of_rows.items():
            cells[pair, arm] = make_cell(
                own,
                selection=options.selection,
                where=where(pair, arm),
                notes=notes,
                force=options.force,
                column=columns[options.selection],
            )
        results.memo[name] = StudyRows(pairs=pairs, first=first, of_rows=of_rows, cells=cells, notes=tuple(notes))
    return cast(StudyRows, results.memo[name])


def published_arms(table: str | None, pair: Pair, *, dataset: str = "cifar100") -> dict[str, Summary]:
    """Return the published numbers of a pair in one table of `reference.csv`, by method; none for pairs on another `dataset`."""
    rows = reference()
    rows = rows[(rows["table"] == table) & (rows["teacher"] == pair[1]) & (rows["student"] == pair[2])]
    if pair[0] != dataset:
        return {}
    return {str(row["method"]): Summary(mean=row["mean"], std=None if pd.isna(row["std"]) else row["std"], n=3) for row in records_of(rows)}


def gain(
    arm: pd.DataFrame | None, base: pd.DataFrame | None, column: str, *, force: bool = False
) -> tuple[Difference, tuple[str, ...]] | None:
    """Return arm minus base over the seeds that both have, and their trials; None where there is no common seed.

    An arm whose trials have different settings has no gain unless `force` is on, as it has no mean.
    """
    sides = [_by_seed(entries, column, force=force) for entries in (arm, base)]
    common = sorted(set(sides[0]) & set(sides[1]))
    if not common:
        return None
    values = [[side[place][0] for place in common] for side in sides]
    return paired(*values), tuple(side[place][1] for side in sides for place in common)


def _by_seed(entries: pd.DataFrame | None, column: str, *, force: bool) -> dict[tuple[int, int], tuple[float, str]]:
    """Return value and trial by (seed, teacher seed)."""
    if entries is None:
        return {}
    rows = records_of(entries[["status", "seed", "teacher_seed", "trial_id", "config_json", column]])
    done = [row for row in rows if row["status"] == "complete" and pd.notna(row[column])]
    if len({setting_of(row["config_json"]) for row in done}) > 1 and not force:
        return {}
    return {(row["seed"], row["teacher_seed"]): (float(row[column]), row["trial_id"]) for row in reversed(done)}


def gain_cell(found: tuple[Difference, tuple[str, ...]] | None) -> Cell:
    """Return "+1.20 [+0.80, +1.60]"."""
    if found is None:
        return Cell(text="-")
    difference, trial_ids = found
    interval = "" if difference.low is None else f" [{difference.low:+z.2f}, {difference.high:+z.2f}]"
    return Cell(text=f"{difference.value:+z.2f}{interval}", mean=difference.value, trial_ids=trial_ids)


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
    rows_of_study = study_rows(results, options, study, columns)
    arms, pairs = rows_of_study.arms(order), rows_of_study.pairs
    references = {pair: published(pair) for pair in pairs}
    base = base if base in arms else None
    heads, rows = ["Arm"], []
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
            cells.append(rows_of_study.cell(pair, arm))
            if base:
                own, other = (rows_of_study.of_rows.get((pair, name)) for name in (arm, base))
                found = gain(own, other, columns[options.selection], force=options.force)
                cells.append(Cell(text="base") if arm == base else gain_cell(found))
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
    return Table(name=study.replace("-", "_"), title=title, columns=tuple(heads), rows=tuple(rows), notes=(*about, *rows_of_study.notes))


def placement_order(entry: dict[str, Any]) -> tuple[int, str]:
    """Return the order of placements: by the number of auxiliary classifiers, then by name (the paper's order, too)."""
    arm = str(entry["method"])
    return 0 if arm == "none" else arm.count("+") + 1, arm


def paper_order(table: str) -> Order:
    """Return the order in which `reference.csv` lists the methods of a table; others follow."""
    rows = reference()
    names = list(dict.fromkeys(rows.loc[rows["table"] == table, "method"]))
    return lambda entry: names.index(entry["method"]) if entry["method"] in names else len(names)
