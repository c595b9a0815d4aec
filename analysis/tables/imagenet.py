"""Table 2 of the paper: ImageNet, top-1 and top-5."""

from analysis.aggregate import METHODS, Results, for_pair, make_cell, pairs_of, reference, reported
from analysis.artefact import NotAsked, Options
from analysis.table import Cell, Table

TOP5 = {"last": "top5_last"}


def build(results: Results, options: Options) -> list[Table]:
    """Return one table with top-1 and top-5 per method and pair, the published numbers beside them."""
    entries = reported(results)
    entries = entries[entries["dataset"] == "imagenet"]
    pairs = pairs_of(entries)
    if not pairs:
        raise NotAsked("ImageNet: the folder's plan has no trials on imagenet.")
    published = reference()
    published = published[published["table"] == "table2_imagenet"]
    notes: list[str] = [f"Per cent; top-1 by selection {options.selection}, top-5 of the last epoch; published: best test epoch."]
    rows = []
    for pair in pairs:
        for method in METHODS:
            mine = for_pair(entries[entries["method"] == method], pair)
            where = f"{method}, {pair[1]} → {pair[2]}"
            top1 = make_cell(mine, selection=options.selection, where=where, notes=notes, force=options.force)
            top5 = make_cell(mine, selection="last", where=where, notes=[], force=options.force, column=TOP5["last"])
            same = published[(published["teacher"] == pair[1]) & (published["student"] == pair[2]) & (published["method"] == method)]
            theirs = [same.loc[same["metric"] == metric, "mean"] for metric in ("top1", "top5")]
            cells = [Cell(text="-" if found.empty else f"{found.iloc[0]:.2f}") for found in theirs]
            rows.append((Cell(text=f"{pair[1]} → {pair[2]}"), Cell(text=method), top1, top5, *cells))
    columns = ("Pair", "Method", "Top-1", "Top-5", "Top-1, published", "Top-5, published")
    return [Table(name="imagenet", title="Table 2: ImageNet", columns=columns, rows=tuple(rows), notes=tuple(notes))]
