"""Table 1 of the paper: methods by pairs, the published rows beside the measured ones; and the comparison of the two."""

import pandas as pd

from analysis.aggregate import METHODS, Results, by_row, make_cell, pair_label, pairs_of, reference, reported, where
from analysis.artefact import NotAsked, Options
from analysis.inference import Summary, holm, p_text, verdict, welch
from analysis.table import Cell, Table
from analysis.uniform import Pair, uniform

PUBLISHED_N = 3  # runs behind a published mean ± std; their ddof is not published
PUBLISHED_EPOCHS = 240
COMPARATORS = ("FitNet", "AT", "AB", "VID", "RKD", "SP", "CC", "CRD", "SSKD")  # the paper's, in its order, after KD
LATER = ("PKT", "DKD", "DIST", "ReviewKD", "LSKD")
ONLINE = "HSSAKD (online)"
ROWS = (*(row for method in METHODS for row in ((method, *COMPARATORS, *LATER) if method == "KD" else (method,))), ONLINE)


def build(results: Results, options: Options) -> list[Table]:
    """Return Table 1, and measured minus published where anything is comparable."""
    entries = reported(results)
    pairs = pairs_of(entries)
    if not pairs:
        raise NotAsked("Table 1: the folder's plan has no reported pair.")
    found = set(entries["method"])
    methods = [*ROWS, *sorted(found - set(ROWS))]
    published = {pair: _published(pair) for pair in pairs}
    others = sorted({method for rows in published.values() for method in rows} - set(methods))
    notes: list[str] = []
    entries, refused = uniform(entries, pairs, options, notes)
    of_rows = by_row(entries, pairs)
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
        if any(method in published[pair] for pair in pairs):
            rows.append(_published_row(method, pairs, published))
    rows += [_published_row(method, pairs, published) for method in others]
    about = [f"Test accuracy in per cent, mean ± sample std (n); selection: {options.selection}."]
    if any(published.values()):
        about.append("Published rows: mean ± std of 3 runs on one teacher run (ddof unknown), selected on the best test epoch.")
        if options.selection != "best-test":
            about.append("Measured and published rows have different selections: compare them in the next table, never here.")
    about += _cost(results)
    columns = ("Method", *(pair_label(pair, pairs) for pair in pairs))
    tables = [Table(name="table1", title="Table 1: accuracy of the methods", columns=columns, rows=tuple(rows), notes=(*about, *notes))]
    comparison = _comparison(of_rows, pairs, published, options)
    return [*tables, comparison] if comparison is not None else tables


def _published(pair: Pair) -> dict[str, Summary]:
    if pair[0] != "cifar100":
        return {}
    rows = reference()
    is_here = rows["table"].isin(["table1_cifar100", "online_cifar100"])  # the latter are pairs of a network with itself
    rows = rows[is_here & (rows["teacher"] == pair[1]) & (rows["student"] == pair[2])]
    return {
        row["method"]: Summary(
            mean=row["mean"], std=None if pd.isna(row["std"]) else row["std"], n=1 if pd.isna(row["std"]) else PUBLISHED_N
        )
        for row in rows.to_dict("records")
    }


def _published_row(method: str, pairs: list[Pair], published: dict[Pair, dict[str, Summary]]) -> tuple[Cell, ...]:
    return (Cell(text=f"{method}, published (best-test)"), *(published_cell(published[pair].get(method)) for pair in pairs))


def published_cell(summary: Summary | None) -> Cell:
    """Return the cell of a published number; it has no trials."""
    if summary is None:
        return Cell(text="-")
    return Cell(text=f"{summary.mean:.2f}" + ("" if summary.std is None else f" ± {summary.std:.2f}"), mean=summary.mean, std=summary.std)


def _comparison(
    of_rows: dict[tuple[Pair, str], pd.DataFrame], pairs: list[Pair], published: dict[Pair, dict[str, Summary]], options: Options
) -> Table | None:
    lines = []
    for pair in pairs:
        for method, summary in published[pair].items():
            mine = of_rows.get((pair, method))
            cell = make_cell(mine, selection="best-test", where="", notes=[], force=options.force)
            if mine is None or cell.mean is None or cell.n is None:
                continue
            done = mine[mine["status"] == "complete"]
            protocol = set(zip(done["epochs"], done["train_subset"].isna(), strict=True))
            lines.append((pair, method, summary, cell, welch(Summary(mean=cell.mean, std=cell.std, n=cell.n), summary), protocol))
    if not lines:
        return None
    corrected = holm([line[4].p for line in lines])
    rows = []
    for (pair, method, summary, cell, difference, protocol), p in zip(lines, corrected, strict=True):
        same = method in ("Teacher", "Teacher*") or protocol == {(PUBLISHED_EPOCHS, True)}
        judged = (verdict(difference) or "none (no std)") if same else f"none (not {PUBLISHED_EPOCHS} epochs on all data)"
        interval = "-" if difference.low is None else f"[{difference.low:+z.2f}, {difference.high:+z.2f}]"
        texts = [f"{difference.value:+z.2f}", interval, p_text(difference.p), p_text(p), judged]
        values = [difference.value, None, difference.p, p, None]
        ends = [Cell(text=text, mean=value, trial_ids=cell.trial_ids) for text, value in zip(texts, values, strict=True)]
        rows.append((Cell(text=f"{pair[1]} → {pair[2]}"), Cell(text=method), published_cell(summary), cell, *ends))
    columns = ("Pair", "Method", "Published", "Measured", "Difference", "95 % interval", "p (Welch)", "p (Holm)", "Verdict")
    notes = (
        "Both on the best test epoch, as published. Welch's interval and test from mean, std, n (published n = 3, ddof unknown).",
        "Reproduced: the 95 % interval lies within ±0.5 points; above or below: it excludes 0; else inconclusive.",
    )
    return Table(name="table1_comparison", title="Table 1: measured minus published", columns=columns, rows=tuple(rows), notes=notes)


def _cost(results: Results) -> list[str]:
    search = results.entries[results.entries["purpose"].isin(["search", "confirm"])].drop_duplicates("trial_id")
    if search.empty:
        return []
    hours = search["total_seconds"].fillna(0).sum() / 3600
    states = ", ".join(f"{count} {str(name).replace('_', ' ')}" for name, count in search["status"].value_counts().sort_index().items())
    return [f"HSAKD-tuned was chosen on validation accuracy by {len(search)} search and confirmation trials ({states}), {hours:.2f} hours."]
