"""Table 3 of the paper: linear probes of frozen students on other data sets."""

from analysis.aggregate import Results
from analysis.artefact import Options
from analysis.inference import Summary
from analysis.studies import StudyRows, study_table
from analysis.table import Table
from analysis.uniform import Pair


def build(results: Results, options: Options) -> list[Table]:
    """Return the accuracy of each method's features, the published ones beside them on the paper's data sets."""
    title = "Transfer: linear probes on other data sets"
    table = study_table(
        results,
        options,
        study="transfer",
        title=title,
        order=lambda entry: entry["method"],
        base="Student",
        beside=_published,
        names_dataset=True,
    )
    return [table]


def _published(rows: StudyRows, pair: Pair, notes: list[str]) -> dict[str, Summary]:
    return rows.published(f"table3_transfer_{pair[0]}", pair, notes)
