"""`python -m hsakd.losses` lists every loss term and what it reads; `--write-table` writes the torch-free table of facts."""

import argparse
import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from hsakd.command_line import run_command
from hsakd.losses import LOSS_TERMS
from hsakd.losses.objective import AUTHORS_EPOCHS
from hsakd.term_table import TABLE_FILE, TermFacts


def registered_facts() -> dict[str, TermFacts]:
    """Return what the terms' registrations declare, by name, sorted."""
    terms = {name: LOSS_TERMS[name] for name in sorted(LOSS_TERMS)}
    return {
        name: TermFacts(
            is_rotated=term.is_rotated,
            reads_branches=term.reads_branches,
            reads_teacher_branches=term.reads_branches and term.reads_teacher,
            reads_features=term.reads_features,
            library=term.library,
            pretraining_share=term.pretraining.epochs / AUTHORS_EPOCHS if term.pretraining is not None else 0.0,
        )
        for name, term in terms.items()
    }


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m hsakd.losses", description="List every loss term and what it reads.")
    parser.add_argument("--write-table", action="store_true", help=f"write {TABLE_FILE.name}, the torch-free table of facts, instead")
    writes_table = parser.parse_args().write_table
    facts = registered_facts()
    if writes_table:
        TABLE_FILE.write_text(json.dumps({name: asdict(row) for name, row in facts.items()}, indent=1) + "\n")
        return 0
    table = Table("term", "rotated images", "branches", "teacher's branches", "features", "needs", "pre-training")
    for name, row in facts.items():
        reads = (row.is_rotated, row.reads_branches, row.reads_teacher_branches, row.reads_features)
        share = f"{row.pretraining_share:.0%} of the epochs" if row.pretraining_share else "-"
        table.add_row(name, *("yes" if answer else "-" for answer in reads), row.library or "-", share)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 0


if __name__ == "__main__":
    run_command(main)
