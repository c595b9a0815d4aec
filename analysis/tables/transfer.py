"""Linear probes of frozen students on other data sets."""

from analysis.aggregate import Results
from analysis.artefact import Options
from analysis.studies import study_table
from analysis.table import Table


def build(results: Results, options: Options) -> list[Table]:
    """Return the accuracy of each method's features."""
    title = "Transfer: linear probes on other data sets"
    return [study_table(results, options, study="transfer", title=title, order=lambda entry: entry["method"], base="Student")]
