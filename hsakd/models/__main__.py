"""`python -m hsakd.models` lists every network; `--write-table` writes the torch-free table of facts."""

import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from hsakd.models import network_names
from hsakd.models.facts import facts_of
from hsakd.network_table import TABLE_FILE, network_table


def main() -> None:
    if "--write-table" in sys.argv[1:]:
        facts = {name: facts_of(name) for name in network_names()}
        TABLE_FILE.write_text(json.dumps({name: asdict(row) for name, row in facts.items()}, indent=1) + "\n")
        return
    known = network_table()
    facts = {name: known[name] if name in known else facts_of(name) for name in network_names()}
    table = Table("network", "parameters", "multi-adds", "branches", "with branches", "taps (C x H x W)")
    for name, row in facts.items():
        table.add_row(
            name,
            f"{row.parameters:,}",
            f"{row.multi_adds / 1e6:,.1f} M",
            str(row.num_branches),
            f"{(row.multi_adds + sum(row.branch_multi_adds)) / 1e6:,.1f} M",
            ", ".join("x".join(map(str, shape)) for shape in row.tap_shapes),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main()
