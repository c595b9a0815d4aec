"""Tables of one method's gain over another: each pair of networks with its interval and test, then the means over pairs."""

import numpy as np

from analysis.artefact import Options
from analysis.inference import WILCOXON_FROM, holm, p_text, wilcoxon
from analysis.studies import GAINS, Gain, gain_cell
from analysis.table import Cell, Table

Line = tuple[str, str, Gain]  # the pair's label, "HSAKD - KD", and the gain


def gain_table(found: list[Line], options: Options, *, name: str, title: str) -> Table:
    """Return the table of the gains, Holm-corrected over them, and of their means over pairs with Wilcoxon's test."""
    rows = [
        (Cell(text=label), Cell(text=what), gain_cell(gained), *_p_cells(gained[0].p, p, gained[1]), Cell(text=gained[0].method))
        for (label, what, gained), p in zip(found, holm([gained[0].p for _, _, gained in found]), strict=True)
    ]
    means = _means(found)
    notes = [
        f"Selection: {options.selection}. Gains: {GAINS}",
        "Holm's correction is over the table's tests of single pairs, and apart from them over those of means.",
    ]
    if means and all(row[3].p is None for row in means):
        notes.append(f"Means are not tested: of fewer than {WILCOXON_FROM} pairs of networks, Wilcoxon's test can't have a p below 0.05.")
    columns = ("Pair", "Methods", "Gain", "p", "p (Holm)", "Test")
    return Table(name=name, title=title, columns=columns, rows=(*rows, *means), notes=tuple(notes), selection=options.selection)


def _p_cells(p: float | None, corrected: float | None, trial_ids: tuple[str, ...]) -> tuple[Cell, Cell]:
    first, second = (Cell(text=p_text(value), mean=value, p=value, trial_ids=trial_ids) for value in (p, corrected))
    return first, second


def _means(found: list[Line]) -> list[tuple[Cell, ...]]:
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
