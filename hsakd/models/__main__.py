"""`python -m hsakd.models` lists every network; `--write-table` writes the torch-free table of facts."""

import argparse
import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from hsakd.command_line import run_command
from hsakd.models import network_names
from hsakd.models.facts import facts_of
from hsakd.network_table import TABLE_FILE, network_table


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m hsakd.models", description="List every network.")
    parser.add_argument("--write-table", action="store_true", help=f"write {TABLE_FILE.name}, the torch-free table of facts, instead")
    writes_table = parser.parse_args().write_table
    if writes_table:
        facts = {name: facts_of(name) for name in network_names()}
        TABLE_FILE.write_text(json.dumps({name: asdict(row) for name, row in facts.items()}, indent=1) + "\n")
        return 0
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
    return 0


if __name__ == "__main__":
    run_command(main)
