"""Accuracy over which of the M rotations are used."""

from typing import Any

from analysis.aggregate import Results
from analysis.artefact import Options
from analysis.studies import study_table
from analysis.table import Table


def build(results: Results, options: Options) -> list[Table]:
    """Return the accuracy of each set of rotations the student is trained on, and its gain over the unrotated images alone."""
    title = "Effect of the rotations (degrees that the student is trained on; teacher and joint classes: all four)"
    return [study_table(results, options, study="rotations", title=title, order=_order, base="0")]


def _order(entry: dict[str, Any]) -> tuple[int, list[int]]:
    turns = [int(turn) if turn.isdecimal() else 0 for turn in str(entry["method"]).split("+")]
    return len(turns), turns
