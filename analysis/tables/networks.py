"""Size and cost of the networks in the results."""

from analysis.aggregate import Results
from analysis.artefact import NothingToShow, Options
from analysis.table import Cell, Table
from hsakd.network_table import NetworkFacts, network_table

NAMES = {32: "networks", 224: "networks_imagenet"}  # of the tables, by the image size that their networks are counted at


def build(results: Results, options: Options) -> list[Table]:
    """Return parameters and multiply-adds of every network of the work-list, a table per size and classes that they are counted at."""
    del options
    facts = network_table()
    named = {str(name) for column in ("teacher", "student", "network") for name in results.entries[column].dropna().unique() if name}
    used = named & set(facts)
    if not used:
        raise NothingToShow("Networks: the results name no known network.")
    notes = ["4 rotations. Multiply-adds at the results' own image size and classes are in the table of costs."]
    if others := sorted(named - used):
        notes.append(f"Not in the package's table of networks, so without a row: {', '.join(others)}.")
    tables = []
    for size, num_classes in sorted({(facts[name].image_size, facts[name].num_classes) for name in used}):
        counted = f"{size} px, {num_classes} classes"
        sizes = (("Parameters", f"{num_classes} classes"), ("Multiply-adds", counted))
        heads = (f"{what}{part} (M), {at}" for what, at in sizes for part in ("", " of c_1..c_L"))
        rows = tuple(_row(name, facts[name]) for name in sorted(used) if facts[name].image_size == size)
        columns = ("Network", "Classifiers", *heads)
        tables.append(Table(name=NAMES[size], title=f"Networks at {counted}", columns=columns, rows=rows, notes=tuple(notes)))
    return tables


def _row(name: str, fact: NetworkFacts) -> tuple[Cell, ...]:
    millions = [number / 1e6 for number in (fact.parameters, sum(fact.branch_parameters), fact.multi_adds, sum(fact.branch_multi_adds))]
    first = Cell(text=f"{fact.num_branches}", mean=float(fact.num_branches))
    return Cell(text=name), first, *(Cell(text=f"{number:.2f}", mean=number) for number in millions)
