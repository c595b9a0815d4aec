"""Size and cost of the networks in the results."""

from analysis.aggregate import Results
from analysis.artefact import NothingToShow, Options
from analysis.table import Cell, Table
from hsakd.network_table import network_table


def build(results: Results, options: Options) -> list[Table]:
    """Return parameters and multiply-adds of every network of the work-list, at 32 px and 100 classes."""
    del options
    facts = network_table()
    named = {str(name) for column in ("teacher", "student", "network") for name in results.entries[column].dropna().unique() if name}
    used = named & set(facts)
    if not used:
        raise NothingToShow("Networks: the results name no known network.")
    rows = []
    for name in sorted(used):
        fact = facts[name]
        numbers = (
            fact.num_branches,
            fact.parameters / 1e6,
            sum(fact.branch_parameters) / 1e6,
            fact.multi_adds / 1e6,
            sum(fact.branch_multi_adds) / 1e6,
        )
        texts = (f"{numbers[0]}", *(f"{number:.2f}" for number in numbers[1:]))
        rows.append((Cell(text=name), *(Cell(text=text, mean=float(number)) for text, number in zip(texts, numbers, strict=True))))
    counts = (f"{name}{part} (M)" for name in ("Parameters", "Multiply-adds") for part in ("", " of c_1..c_L"))
    columns = ("Network", "Classifiers", *counts)
    notes = ["At 32 px, 100 classes, 4 rotations."]
    if others := sorted(named - used):
        notes.append(f"Not in the package's table of networks, so without a row: {', '.join(others)}.")
    return [Table(name="networks", title="Networks", columns=columns, rows=tuple(rows), notes=tuple(notes))]
