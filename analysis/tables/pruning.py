"""What pruning saved in each study, and what the pruners would have done: the rows of `sweeps/pruning_report.py`, where it has run."""

from analysis.aggregate import Results
from analysis.artefact import NotAsked, NothingToShow, Options
from analysis.table import Cell, Table
from hsakd.records import PruningRow
from hsakd.store import read_rows

PRUNING_FILE = "pruning.parquet"


def build(results: Results, options: Options) -> list[Table]:
    """Return a row per study and pruner; every accuracy is validation accuracy."""
    del options
    files = [path for folder in results.folders if (path := folder / PRUNING_FILE).exists()]
    if not files:
        raise NotAsked("Pruning: sweeps/pruning_report.py has not run on the folder.")
    found, notes = list[PruningRow](), list[str]()
    for path in files:
        try:
            found += read_rows(path, PruningRow)
        except ValueError as error:
            notes.append(f"{path.parent.name}/{str(error).splitlines()[0]}; it is left out.")
    if not found:
        raise NothingToShow(" ".join(["Pruning: no study has a complete trial with validation accuracies.", *notes]))
    columns = ("Study", "Pruner", "Trials", "Pruned", "Epochs saved", "Hours saved", "Best", "Points lost")
    about = [
        "As run: what the study's pruner did, so what it lost is not known. Others: what they would have done with its complete trials, "
        "replayed on the recorded epochs. Best: validation accuracy in per cent; points lost: of the best trial that is not pruned."
    ]
    rows = tuple(_row(row) for row in found)
    return [Table(name="pruning", title="Pruning", columns=columns, rows=rows, notes=(*about, *notes))]


def _row(row: PruningRow) -> tuple[Cell, ...]:
    epochs, best = row.epochs_run + row.epochs_saved, (row.best_trial_id,)
    share, hours, lost = row.epochs_saved / max(1, epochs), row.seconds_saved / 3600, row.best_top1_val - row.top1_val_left
    return (
        Cell(text=row.study),
        Cell(text=row.pruner),
        Cell(text=f"{row.num_trials}", mean=float(row.num_trials)),
        Cell(text=f"{row.num_pruned}", mean=float(row.num_pruned)),
        Cell(text=f"{row.epochs_saved} ({share:.0%})", mean=float(row.epochs_saved)),
        Cell(text=f"{hours:.3f}", mean=hours),
        Cell(text=f"{row.best_top1_val:.2f}", mean=row.best_top1_val, trial_ids=best),
        Cell(text="-") if row.pruner == "as run" else Cell(text=f"{lost:.2f}", mean=lost),
    )
