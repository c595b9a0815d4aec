"""Table 2 of the paper: ImageNet, top-1 and top-5; and the authors' online distillation."""

from dataclasses import replace

from analysis.aggregate import Results, by_row, make_cell, methods_of, pair_label, pairs_of, records_of, reported, where
from analysis.artefact import NotAsked, Options
from analysis.published import comparable, reference
from analysis.table import Cell, Table
from analysis.uniform import uniform

PUBLISHED = ("table2_imagenet", "online_imagenet")  # the latter's pair is of a network with itself


def build(results: Results, options: Options) -> list[Table]:
    """Return one table with top-1 and top-5 per method and pair, the published numbers beside them."""
    entries = reported(results)
    entries = entries[entries["dataset"] == "imagenet"]
    pairs = pairs_of(entries)
    if not pairs:
        raise NotAsked("ImageNet: the folder's plan has no trials on imagenet.")
    published = reference()
    published = published[published["table"].isin(PUBLISHED)]
    notes: list[str] = [f"Per cent; top-1 by selection {options.selection}, top-5 of the last epoch; published: best test epoch."]
    entries, refused = uniform(entries, pairs, options, notes)
    of_rows = by_row(entries, pairs)
    rows = []
    for pair in pairs:
        same = published[(published["teacher"] == pair[1]) & (published["student"] == pair[2])]
        every: dict[str, dict[str, float]] = {}
        for row in records_of(same):
            every.setdefault(row["method"], {})[row["metric"]] = float(row["mean"])
        own_rows = {method: own for (place, method), own in of_rows.items() if place == pair}
        theirs = comparable(every, own_rows, pair_label(pair, pairs), notes)
        measured = [method for method in methods_of(entries) if (pair, method) in of_rows or (pair, method) in refused]
        for method in dict.fromkeys([*measured, *theirs]):
            mine, place = of_rows.get((pair, method)), where(pair, method)
            top1 = make_cell(mine, selection=options.selection, where=place, notes=notes, force=options.force)
            top5 = make_cell(mine, selection="last", where=place, notes=[], force=options.force, column="top5_last")
            cells = [refused.get((pair, method), cell) for cell in (top1, replace(top5, selection="last"))]
            numbers = [theirs.get(method, {}).get(metric) for metric in ("top1", "top5")]
            cells += [
                Cell(text="-") if number is None else Cell(text=f"{number:.2f}", mean=number, selection="best-test") for number in numbers
            ]
            rows.append((Cell(text=f"{pair[1]} → {pair[2]}"), Cell(text=method), *cells))
    columns = ("Pair", "Method", "Top-1", "Top-5 (last)", "Top-1, published (best-test)", "Top-5, published (best-test)")
    title, selection = "Table 2: ImageNet", options.selection
    return [Table(name="imagenet", title=title, columns=columns, rows=tuple(rows), notes=tuple(notes), selection=selection)]
