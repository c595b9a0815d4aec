"""What the results cost, by purpose and method."""

from analysis.aggregate import Results
from analysis.artefact import NothingToShow, Options
from analysis.table import Cell, Table


def build(results: Results, options: Options) -> list[Table]:
    """Return hours, multiply-adds and how often the teacher bank answered."""
    del options
    entries = results.entries[results.entries["total_seconds"].notna()]
    if entries.empty:
        raise NothingToShow("Cost: no trial has ended.")
    entries = entries.drop_duplicates("trial_id").assign(study=entries["study"].where(entries["purpose"] == "report", ""))
    rows = []
    for (purpose, study, method, device), group in entries.groupby(["purpose", "study", "method", "device"]):
        hours, hits, misses = group["total_seconds"].sum() / 3600, int(group["bank_hits"].sum()), int(group["bank_misses"].sum())
        share = f"{hits / (hits + misses):.1%}" if hits + misses else "no bank"
        adds = group["multi_adds"].mean() / 1e6
        name = f"{study}: {method}" if study else str(method)
        numbers = [
            (f"{len(group)}", float(len(group))),
            (f"{hours:.3f}", hours),
            (f"{adds:.1f}", adds),
            (share, None),
            (f"{hits}", float(hits)),
        ]
        rows.append(
            (Cell(text=name), Cell(text=str(purpose)), Cell(text=str(device)), *(Cell(text=text, mean=value) for text, value in numbers))
        )
    total = entries["total_seconds"].sum() / 3600
    unit = "-hours and ".join(sorted(str(device).upper() for device in entries["device"].unique()))
    columns = ("Method", "Purpose", "Device", "Trials", "Hours", "Multiply-adds (M)", "From the bank", "Teacher answers saved (images)")
    notes = (
        f"Together {total:.3f} {unit}-hours, each trial once, all attempts, pruned and failed trials included.",
        "Multiply-adds: the trial's own network, per unrotated image. A saved answer is one image for which the teacher was not run.",
    )
    return [Table(name="cost", title="Cost", columns=columns, rows=tuple(rows), notes=notes)]
