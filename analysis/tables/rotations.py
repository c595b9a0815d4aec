"""Accuracy over which of the M rotations are used."""

from analysis.aggregate import Results
from analysis.artefact import Options
from analysis.studies import study_table
from analysis.table import Table


def build(results: Results, options: Options) -> list[Table]:
    """Return the accuracy of each set of rotations."""
    return [
        study_table(results, options, study="rotations", title="Effect of the rotations", order=lambda entry: entry["method"], base=None)
    ]
