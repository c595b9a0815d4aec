"""Table 1 of the paper: methods by pairs, the published rows beside the measured ones; and the comparison of the two."""

import json

import pandas as pd

from analysis.aggregate import METHODS, Results, for_pair, make_cell, pair_label, pairs_of, reference, reported, setting_of
from analysis.artefact import NotAsked, Options
from analysis.inference import Summary, holm, verdict, welch
from analysis.table import Cell, Table
from hsakd.config import TrialConfig

PUBLISHED_N = 3  # runs behind a published mean ± std; their ddof is not published
PUBLISHED_EPOCHS = 240
COMPARATORS = ("FitNet", "AT", "AB", "VID", "RKD", "SP", "CC", "CRD", "SSKD")  # the paper's, in its order, after KD
LATER = ("PKT", "DKD", "DIST", "ReviewKD", "LSKD")
ONLINE = "HSSAKD (online)"
ROWS = (*(row for method in METHODS for row in ((method, *COMPARATORS, *LATER) if method == "KD" else (method,))), ONLINE)
Pair = tuple[str, str, str]


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
    entries, refused = _uniform(entries, pairs, options, notes)
    rows = []
    for method in methods:
        cells = [refused.get((pair, method)) or _measured(entries, pair, method, options, notes) for pair in pairs]
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
    comparison = _comparison(entries, pairs, published, options)
    return [*tables, comparison] if comparison is not None else tables


def _uniform(
    entries: pd.DataFrame, pairs: list[Pair], options: Options, notes: list[str]
) -> tuple[pd.DataFrame, dict[tuple[Pair, str], Cell]]:
    """Return the entries that may share their pair's column, and a "refused" cell for each row that may not.

    The rows of a column must have been trained on the same data, and those of one teacher regime on the same teacher (seeds aside); what
    most trials of the column have is right. With `force` nothing is refused, but the notes say it.
    """
    refused: dict[tuple[Pair, str], Cell] = {}
    kept = entries
    for pair in pairs:
        mine = for_pair(entries, pair)
        mine = mine[(mine["status"] == "complete") & (mine["config_json"] != "")]
        facts = pd.DataFrame([_grounds(text) for text in mine["config_json"]], index=mine.index, columns=["data", "regime", "teacher"])
        groups = [("the training data", "data", facts)]
        groups += [(f"the {regime!s} teacher", "teacher", group) for regime, group in facts.groupby("regime") if regime]
        for what, column, group in groups:
            counts = group[column].value_counts()
            usual = max(sorted(counts.index), key=lambda value: counts[value], default="")
            for name, odd in mine.loc[group.index[group[column] != usual]].groupby("method"):
                method = str(name)
                if len(odd) < (mine["method"] == method).sum():
                    continue  # a row that differs within itself is refused by its own cell
                where = f"{method}, {pair[1]} → {pair[2]}"
                if options.force:
                    notes.append(f"{where}: forced, {what} differs from the other rows of the column.")
                else:
                    notes.append(f"{where}: refused, {what} differs from the other rows of the column (--force shows it).")
                    refused[pair, method] = Cell(text="refused", trial_ids=tuple(odd["trial_id"]))
                    kept = kept.drop(index=kept.index.intersection(odd.index))
    return kept, refused


def _grounds(config_json: str) -> tuple[str, str, str]:
    """Return what the rows of a column must share: the data, and under a teacher's regime its backbone's configuration, seeds aside."""
    try:
        config = TrialConfig.from_json(config_json).to_dict()  # with the neutral fields that an older version's text lacks
    except ValueError:
        config = json.loads(config_json)
    data, teacher = json.dumps(config.get("data"), sort_keys=True), config.get("teacher")
    if teacher is None:
        return data, "", ""
    root = teacher.get("backbone") or teacher
    is_plain = root is not teacher or all(name != "ce_q" for name, _ in teacher["objective"]["terms"])
    return data, "frozen" if is_plain else "joint", setting_of(json.dumps(root))


def _measured(entries: pd.DataFrame, pair: Pair, method: str, options: Options, notes: list[str]) -> Cell:
    mine = for_pair(entries[entries["method"] == method], pair)
    where = f"{method}, {pair[1]} → {pair[2]}"
    expected = pair[1] if method in ("Teacher", "Teacher*") else pair[2]
    foreign = mine[mine["network"].notna() & (mine["network"] != expected)]
    wrong_teacher = mine[mine["teacher_network"].fillna("").ne("") & (mine["teacher_network"] != pair[1]) & (expected == pair[2])]
    if (len(foreign) or len(wrong_teacher)) and not options.force:
        network = foreign["network"].iloc[0] if len(foreign) else f"teacher {wrong_teacher['teacher_network'].iloc[0]}"
        notes.append(f"{where}: refused, the trials were trained with {network} (--force shows them).")
        return Cell(text="refused", trial_ids=tuple(mine["trial_id"]))
    return make_cell(mine, selection=options.selection, where=where, notes=notes, force=options.force)


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


def _comparison(entries: pd.DataFrame, pairs: list[Pair], published: dict[Pair, dict[str, Summary]], options: Options) -> Table | None:
    lines = []
    for pair in pairs:
        for method, summary in published[pair].items():
            mine = for_pair(entries[entries["method"] == method], pair)
            cell = _measured(entries, pair, method, Options(selection="best-test", force=options.force), [])
            if cell.mean is None or cell.n is None:
                continue
            protocol = set(zip(mine["epochs"].dropna(), mine["train_subset"].isna(), strict=False))
            lines.append((pair, method, summary, cell, welch(Summary(mean=cell.mean, std=cell.std, n=cell.n), summary), protocol))
    if not lines:
        return None
    corrected = holm([line[4].p for line in lines])
    rows = []
    for (pair, method, summary, cell, difference, protocol), p in zip(lines, corrected, strict=True):
        same = method in ("Teacher", "Teacher*") or protocol == {(PUBLISHED_EPOCHS, True)}
        judged = (verdict(difference) or "none (no std)") if same else f"none (not {PUBLISHED_EPOCHS} epochs on all data)"
        interval = "-" if difference.low is None else f"[{difference.low:+.2f}, {difference.high:+.2f}]"
        texts = [f"{difference.value:+.2f}", interval, _p(difference.p), _p(p), judged]
        values = [difference.value, None, difference.p, p, None]
        ends = [Cell(text=text, mean=value, trial_ids=cell.trial_ids) for text, value in zip(texts, values, strict=True)]
        rows.append((Cell(text=f"{pair[1]} → {pair[2]}"), Cell(text=method), published_cell(summary), cell, *ends))
    columns = ("Pair", "Method", "Published", "Measured", "Difference", "95 % interval", "p (Welch)", "p (Holm)", "Verdict")
    notes = (
        "Both on the best test epoch, as published. Welch's interval and test from mean, std, n (published n = 3, ddof unknown).",
        "Reproduced: the 95 % interval lies within ±0.5 points; above or below: it excludes 0; else inconclusive.",
    )
    return Table(name="table1_comparison", title="Table 1: measured minus published", columns=columns, rows=tuple(rows), notes=notes)


def _p(p: float | None) -> str:
    return "-" if p is None else ("<0.001" if p < 0.001 else f"{p:.3f}")


def _cost(results: Results) -> list[str]:
    search = results.entries[results.entries["purpose"].isin(["search", "confirm"])].drop_duplicates("trial_id")
    if search.empty:
        return []
    hours = search["total_seconds"].fillna(0).sum() / 3600
    states = ", ".join(f"{count} {str(name).replace('_', ' ')}" for name, count in search["status"].value_counts().sort_index().items())
    return [f"HSAKD-tuned was chosen on validation accuracy by {len(search)} search and confirmation trials ({states}), {hours:.2f} hours."]
