"""The arms of an ablation study: which they are, in which order, as a table with paired gains, the published arms beside them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

import pandas as pd

from analysis.aggregate import SELECTIONS, Results, by_row, make_cell, pair_label, pairs_of, records_of, where
from analysis.artefact import NotAsked, Options
from analysis.configurations import settings_of, source_of
from analysis.inference import Difference, Summary, paired
from analysis.published import departures, published, published_cell, reference
from analysis.table import Cell, Table
from analysis.uniform import Pair, teacher_of, uniform

Order = Callable[[dict[str, Any]], Any]
Gain = tuple[Difference, tuple[str, ...]]  # with the trials behind it
PLACEMENT_STUDIES = {"aux-placement": "task + kl_q", "aux-placement-full": "task + kl_q + kl_p"}
LOSS_TERMS, AUX_PLACEMENT = "fig_ablation_loss_terms", "fig_ablation_aux_placement"  # the paper's; both distil the joint teacher
GAINS = (
    "mean [95 % interval] (pairs). Pairs have the same seed, so the same stream, and the same teacher; beside a row without a teacher, the "
    "mean over teachers counts once per seed. A t-interval below 10 pairs, bootstrap from 10."
)


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

    def published(
        self, table: str, pair: Pair, notes: list[str], *, trained_on: str = "cifar100", varies_ratio: bool = False
    ) -> dict[str, Summary]:
        """Return a pair's numbers in a table of `reference.csv` by method, or none, and why in `notes`, where ours can't stand beside them.

        Our students must have been trained on the data set `trained_on` as the paper's were (but for the part of the training set with
        `varies_ratio`), and their teacher as that of the paper's ablations.
        """
        found = published([table], pair)
        of_arms = {arm: str(rows["config_json"].iloc[0]) for (own, arm), rows in self.of_rows.items() if own == pair}
        texts = list(of_arms.values())
        sources, regimes = {source_of(text) for text in texts}, {teacher_of(text)[0] for text in texts} - {""}
        reasons = [f"students trained on {', '.join(sorted(sources))} (the paper's: {trained_on})"] if sources != {trained_on} else []
        if table in (LOSS_TERMS, AUX_PLACEMENT) and "frozen" in regimes:
            reasons.append("arms of a frozen teacher (the paper's: trained jointly)")
        odd = {arm: lines for arm, text in of_arms.items() if (lines := departures(text, varies_ratio=varies_ratio))}
        if odd and sources == {trained_on} and len(odd) == len(of_arms):
            differences = dict.fromkeys(line for lines in odd.values() for line in lines)
            reasons.append(f"trials not of the paper's schedule or data ({'; '.join(differences)})")
        if found and reasons:
            notes.append(f"{pair[1]} → {pair[2]}: no published numbers beside {' and '.join(reasons)}.")
        if reasons:
            return {}
        notes += [
            f"{pair[1]} → {pair[2]}: no published number beside {arm}, not of the paper's schedule or data ({'; '.join(odd[arm])})."
            for arm in sorted(found.keys() & odd.keys())
        ]
        return {arm: summary for arm, summary in found.items() if arm not in odd}


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


def gain(arm: pd.DataFrame | None, base: pd.DataFrame | None, column: str, *, force: bool = False) -> Gain | None:
    """Return arm minus base over the places that both have, and their trials; None where they have none in common.

    A place is a seed and a teacher's seed. Where one side has no teacher it is the seed alone, and the other side's mean over its teachers
    counts once. An arm whose trials have different settings has no gain unless `force` is on, as it has no mean.
    """
    rows = [_complete(entries, column, force=force) for entries in (arm, base)]
    if not all(rows):
        return None
    is_by_teacher = all(teacher_of(own[0]["config_json"])[0] for own in rows)
    sides = [_by_place(own, is_by_teacher=is_by_teacher) for own in rows]
    common = sorted(set(sides[0]) & set(sides[1]))
    if not common:
        return None
    values = [[fmean(float(row[column]) for row in side[place].values()) for place in common] for side in sides]
    return paired(*values), tuple(trial_id for side in sides for place in common for trial_id in side[place])


def _complete(entries: pd.DataFrame | None, column: str, *, force: bool) -> list[dict[str, Any]]:
    """Return the complete trials with a number; none of different settings."""
    if entries is None:
        return []
    rows = records_of(entries[["status", "seed", "teacher_seed", "trial_id", "config_json", column]])
    done = [row for row in rows if row["status"] == "complete" and pd.notna(row[column])]
    return done if force or len(set(settings_of(row["config_json"] for row in done))) == 1 else []


def _by_place(rows: list[dict[str, Any]], *, is_by_teacher: bool) -> dict[tuple[int, int], dict[str, dict[str, Any]]]:
    """Return the trials, by id, of each seed and teacher's seed (0 where it doesn't count)."""
    places: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        places.setdefault((row["seed"], row["teacher_seed"] if is_by_teacher else 0), {})[row["trial_id"]] = row
    return places


def gain_cell(found: Gain | None) -> Cell:
    """Return "+1.20 [+0.80, +1.60] (3)": the mean, its 95 % interval and the number of pairs."""
    if found is None:
        return Cell(text="-")
    gained, trial_ids = found
    interval = "" if gained.low is None else f" [{gained.low:+z.2f}, {gained.high:+z.2f}]"
    text = f"{gained.value:+z.2f}{interval} ({gained.n})"
    return Cell(text=text, mean=gained.value, n=gained.n, low=gained.low, high=gained.high, p=gained.p, trial_ids=trial_ids)


def study_table(
    results: Results,
    options: Options,
    *,
    study: str,
    title: str,
    order: Order,
    base: str | None,
    beside: Callable[[StudyRows, Pair, list[str]], dict[str, Summary]] = lambda *_: {},
    columns: Mapping[str, str] = SELECTIONS,
    measure: str = "Test accuracy in per cent",
    names_dataset: bool = False,
    base_of: Callable[[str], str] | None = None,
) -> Table:
    """Return a study's table: per pair the accuracy, the gain over the arm `base` (paired by seed) and the published arm if any.

    Where arms have different bases, `base_of` an arm is its own and `base` what heads call them.
    `beside` returns the published arms of a pair by name, and says in the list why there are none; `columns` are the records' columns of
    `measure` by selection; with `names_dataset` columns name their data set even where all have the same.
    """
    rows_of_study = study_rows(results, options, study, columns)
    arms, pairs, reasons = rows_of_study.arms(order), rows_of_study.pairs, list[str]()
    references = {pair: beside(rows_of_study, pair, reasons) for pair in pairs}
    own_base = base_of or (lambda _: base or "")
    base = base if any(own_base(arm) in arms for arm in arms) else None
    heads, rows = ["Arm"], []
    for pair in pairs:
        label = pair_label(pair, pairs, names_dataset=names_dataset)
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
                own, other = (rows_of_study.of_rows.get((pair, name)) for name in (arm, own_base(arm)))
                found = gain(own, other, columns[options.selection], force=options.force)
                cells.append(Cell(text="base") if arm == own_base(arm) else gain_cell(found))
            if references[pair]:
                cells.append(published_cell(references[pair].get(arm)))
        rows.append(tuple(cells))
    about = [f"{measure}, mean ± sample std (n); selection: {options.selection}."]
    if base:
        about.append(f"Gains: {GAINS}")
    if any(references.values()):
        about.append("Published numbers are selected on the best test epoch.")
    notes = tuple(dict.fromkeys([*about, *reasons, *rows_of_study.notes]))
    name, selection = study.replace("-", "_"), options.selection
    return Table(name=name, title=title, columns=tuple(heads), rows=tuple(rows), notes=notes, selection=selection)


def placement_order(entry: dict[str, Any]) -> tuple[int, str]:
    """Return the order of placements: by the number of auxiliary classifiers, then by name (the paper's order, too)."""
    arm = str(entry["method"])
    return 0 if arm == "none" else arm.count("+") + 1, arm


def paper_order(table: str) -> Order:
    """Return the order in which `reference.csv` lists the methods of a table; others follow."""
    rows = reference()
    names = list(dict.fromkeys(rows.loc[rows["table"] == table, "method"]))
    return lambda entry: names.index(entry["method"]) if entry["method"] in names else len(names)
