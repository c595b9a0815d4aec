"""Table 1 of the paper: methods by pairs, the published rows beside the measured ones; and the comparison of the two."""

import pandas as pd

from analysis.aggregate import METHODS, Results, by_row, make_cell, pair_label, pairs_of, reported, where
from analysis.artefact import NotAsked, Options
from analysis.configurations import parsed
from analysis.hours import search_entries, total, with_hours
from analysis.inference import Summary, holm, p_text, verdict, welch
from analysis.published import comparable, published, published_cell
from analysis.table import Cell, Table
from analysis.uniform import Pair, uniform

PUBLISHED = ("table1_cifar100", "online_cifar100")  # the latter's pairs are of a network with itself
COMPARATORS = ("FitNet", "AT", "AB", "VID", "RKD", "SP", "CC", "CRD", "SSKD")  # the paper's, in its order, after KD
PAPERS, TUNED = "HSAKD*", "HSAKD-tuned"
ONLINE = "HSSAKD (online)"
IMPORTED = '"imported_sha256":"'  # in a configuration's text


def build(results: Results, options: Options) -> list[Table]:
    """Return Table 1, and measured minus published where anything is comparable."""
    entries = reported(results)
    pairs = pairs_of(entries)
    if not pairs:
        raise NotAsked("Table 1: the folder's plan has no reported pair.")
    found = set(entries["method"])
    methods = rows_of(found)
    every = {pair: published(PUBLISHED, pair) if pair[0] == "cifar100" else {} for pair in pairs}
    notes: list[str] = []
    entries, refused = uniform(entries, pairs, options, notes)
    of_rows = by_row(entries, pairs)
    theirs = {}
    for pair in pairs:
        measured = {method: own for (place, method), own in of_rows.items() if place == pair}
        theirs[pair] = comparable(every[pair], measured, pair_label(pair, pairs), notes)
    rows = []
    for method in methods:
        cells = [
            refused.get((pair, method))
            or make_cell(
                of_rows.get((pair, method)), selection=options.selection, where=where(pair, method), notes=notes, force=options.force
            )
            for pair in pairs
        ]
        if any(cell.text != "-" for cell in cells):
            rows.append((Cell(text=method), *cells))
        if any(method in theirs[pair] for pair in pairs):
            cells = [published_cell(theirs[pair].get(method)) for pair in pairs]
            rows.append((Cell(text=f"{method}, published (best-test)"), *cells))
    about = [f"Test accuracy in per cent, mean ± sample std (n); selection: {options.selection}."]
    if any(theirs.values()):
        about.append("Published rows: mean ± std of 3 runs on one teacher run (ddof unknown), selected on the best test epoch.")
        if options.selection != "best-test":
            about.append("Measured and published rows have different selections: compare them in the next table, never here.")
    about += _from_files(entries) + _untuned(of_rows, pairs) + _cost(results)
    columns = ("Method", *(pair_label(pair, pairs) for pair in pairs))
    title, notes = "Table 1: accuracy of the methods", [*about, *notes]
    tables = [Table(name="table1", title=title, columns=columns, rows=tuple(rows), notes=tuple(notes), selection=options.selection)]
    comparison = _comparison(of_rows, every, theirs, options)
    return [*tables, comparison] if comparison is not None else tables


def _from_files(entries: pd.DataFrame) -> list[str]:
    """Return a sentence per weights file that stands in a trained teacher's place, with the rows that rest on it."""
    found: dict[tuple[str, str], set[str]] = {}
    for method, text in entries.loc[entries["config_json"].str.contains(IMPORTED), ["method", "config_json"]].itertuples(index=False):
        waiting = [parsed(text)]
        for config in waiting:
            waiting += [needed for name in ("teacher", "backbone") if (needed := config.get(name)) is not None]
            if sha256 := config.get("imported_sha256"):
                found.setdefault((str(config["network"]), str(sha256)), set()).add(str(method))
    return [
        f"{network} is from a weights file (sha256 {sha256[:12]}), not trained here, in: {', '.join(sorted(methods))}."
        for (network, sha256), methods in sorted(found.items())
    ]


def _untuned(of_rows: dict[tuple[Pair, str], pd.DataFrame], pairs: list[Pair]) -> list[str]:
    """Return a sentence on the pairs whose search kept the paper's setting: the two rows are one result, not two that agree."""
    tuned, papers = ({place[0]: set(own["trial_id"]) for place, own in of_rows.items() if place[1] == row} for row in (TUNED, PAPERS))
    same = [pair_label(pair, pairs) for pair in pairs if pair in tuned and tuned[pair] == papers.get(pair)]
    return [f"{TUNED} of {', '.join(same)} is the paper's setting: the same trials as {PAPERS}."] if same else []


def rows_of(found: set[str]) -> list[str]:
    """Return the methods in the table's order: the paper's, with methods that it doesn't have (by name) after its comparators."""
    others = sorted(found - {*METHODS, *COMPARATORS, ONLINE})
    beside_kd = (*COMPARATORS, *others)
    return [*(row for method in METHODS for row in ((method, *beside_kd) if method == "KD" else (method,))), ONLINE]


def _comparison(
    of_rows: dict[tuple[Pair, str], pd.DataFrame],
    every: dict[Pair, dict[str, Summary]],
    theirs: dict[Pair, dict[str, Summary]],
    options: Options,
) -> Table | None:
    """Return the comparison of measured rows with `every` published one: with a verdict where it is in `theirs`, None where none is."""
    lines = []
    for pair, method, summary in ((pair, *found) for pair, rows in every.items() for found in rows.items()):
        mine = of_rows.get((pair, method))
        cell = make_cell(mine, selection="best-test", where="", notes=[], force=options.force)
        if mine is None or cell.mean is None or cell.n is None:
            continue
        difference = welch(Summary(mean=cell.mean, std=cell.std, n=cell.n), summary) if method in theirs[pair] else None
        judged = "" if difference is None else verdict(difference)
        why = "no std" if difference is not None else "not the paper's schedule or data"
        lines.append((pair, method, summary, cell, difference, judged, judged or f"none ({why})"))
    if not any(line[4] for line in lines):
        return None
    tests = {(cell.trial_ids, summary): difference.p for _, _, summary, cell, difference, judged, _ in lines if difference and judged}
    corrected = dict(zip(tests, holm(list(tests.values())), strict=True))
    rows = []
    for pair, method, summary, cell, difference, judged, text in lines:
        ids = cell.trial_ids
        if difference is None:
            rows.append(
                (Cell(text=f"{pair[1]} → {pair[2]}"), Cell(text=method), Cell(text="-"), cell, *[Cell(text="-")] * 4, Cell(text=text))
            )
            continue
        p = corrected[cell.trial_ids, summary] if judged else None
        interval = "-" if difference.low is None else f"[{difference.low:+z.2f}, {difference.high:+z.2f}]"
        ends = (
            Cell(text=f"{difference.value:+z.2f}", mean=difference.value, low=difference.low, high=difference.high, trial_ids=ids),
            Cell(text=interval, low=difference.low, high=difference.high, trial_ids=ids),
            Cell(text=p_text(difference.p), mean=difference.p, p=difference.p, trial_ids=ids),
            Cell(text=p_text(p), mean=p, p=p, trial_ids=ids),
            Cell(text=text, trial_ids=ids),
        )
        rows.append((Cell(text=f"{pair[1]} → {pair[2]}"), Cell(text=method), published_cell(summary), cell, *ends))
    columns = ("Pair", "Method", "Published", "Measured", "Difference", "95 % interval", "p (Welch)", "p (Holm)", "Verdict")
    notes = [
        "Both on the best test epoch, as published. Welch's interval and test from mean, std, n (published n = 3, ddof unknown).",
        "Reproduced: the 95 % interval lies within ±0.5 points; above or below: it excludes 0; else inconclusive.",
    ]
    if tests:
        notes.append(f"Holm's correction is over the {len(tests)} comparisons with a verdict; one that several pairs share counts once.")
    title = "Table 1: measured minus published"
    return Table(name="table1_comparison", title=title, columns=columns, rows=tuple(rows), notes=tuple(notes), selection="best-test")


def _cost(results: Results) -> list[str]:
    entries = search_entries(results).drop_duplicates("trial_id")
    trials, teachers = (entries[(entries["purpose"] == "teacher") == is_teacher] for is_teacher in (False, True))
    if trials.empty:
        return []
    states = ", ".join(f"{count} {str(name).replace('_', ' ')}" for name, count in trials["status"].value_counts().sort_index().items())
    return [
        f"HSAKD-tuned was chosen on validation accuracy by {len(trials)} search and confirmation trials ({states}); with their "
        f"{len(teachers)} teacher{'s' * (len(teachers) != 1)} they took {total(with_hours(entries))}."
    ]
