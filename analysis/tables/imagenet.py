"""Table 2 of the paper: ImageNet, top-1 and top-5."""

from analysis.aggregate import Results, by_row, make_cell, methods_of, pairs_of, records_of, reported, where
from analysis.artefact import NotAsked, Options
from analysis.published import reference
from analysis.table import Cell, Table
from analysis.uniform import uniform


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
    entries, refused = uniform(entries, pairs, options, notes)
    of_rows = by_row(entries, pairs)
    rows = []
    for pair in pairs:
        same = published[(published["teacher"] == pair[1]) & (published["student"] == pair[2])]
        theirs = {(row["method"], row["metric"]): float(row["mean"]) for row in records_of(same)}
        measured = [method for method in methods_of(entries) if (pair, method) in of_rows or (pair, method) in refused]
        for method in dict.fromkeys([*measured, *(name for name, _ in theirs)]):
            mine, place = of_rows.get((pair, method)), where(pair, method)
            top1 = make_cell(mine, selection=options.selection, where=place, notes=notes, force=options.force)
            top5 = make_cell(mine, selection="last", where=place, notes=[], force=options.force, column="top5_last")
            cells = [refused.get((pair, method), cell) for cell in (top1, top5)]
            cells += [Cell(text="-" if (key := (method, metric)) not in theirs else f"{theirs[key]:.2f}") for metric in ("top1", "top5")]
            rows.append((Cell(text=f"{pair[1]} → {pair[2]}"), Cell(text=method), *cells))
    columns = ("Pair", "Method", "Top-1", "Top-5 (last)", "Top-1, published (best-test)", "Top-5, published (best-test)")
    return [Table(name="imagenet", title="Table 2: ImageNet", columns=columns, rows=tuple(rows), notes=tuple(notes))]
