"""Table 5 of the paper: students trained on a part of the training set, the teacher on all of it."""

from analysis.aggregate import Results
from analysis.artefact import Options
from analysis.studies import published_arms, study_table
from analysis.table import Cell, Table


def build(results: Results, options: Options) -> list[Table]:
    """Return the accuracy at each ratio; the published HSAKD stands in the notes of a matching pair."""
    entries = results.rows(purpose="report", study="few-shot")
    order = lambda entry: float(entry["few_shot_ratio"])  # noqa: E731
    table = study_table(
        results, options, study="few-shot", title="Few-shot: accuracy over the part of the training set", order=order, base=None
    )
    pair = ("cifar100", "resnet56", "resnet20")
    if ((entries["teacher"] == pair[1]) & (entries["student"] == pair[2]) & (entries["dataset"] == pair[0])).any():
        width = len(table.columns) - 1
        rows = []
        for per_cent in (25, 50, 75):
            for method, summary in published_arms(f"table5_fewshot_{per_cent}", pair).items():
                text = f"{summary.mean:.2f} ± {summary.std:.2f}" if summary.std is not None else f"{summary.mean:.2f}"
                cells = [
                    Cell(text=text if "resnet56 → resnet20" in column else "-", mean=summary.mean)
                    for column in table.columns[1 : width + 1]
                ]
                rows.append((Cell(text=f"{method} {per_cent}%, published"), *cells))
        return [Table(name=table.name, title=table.title, columns=table.columns, rows=(*table.rows, *rows), notes=table.notes)]
    return [table]
