"""Accuracy over the distillation temperature."""

from analysis.aggregate import Results
from analysis.artefact import Options
from analysis.studies import study_table
from analysis.table import Table

PAPER_TEMPERATURE = 3.0


def build(results: Results, options: Options) -> list[Table]:
    """Return the grid of temperatures; gains are over the paper's."""
    entries = results.rows(purpose="report", study="temperature")
    paper = entries.loc[entries["temperature"] == PAPER_TEMPERATURE, "method"]
    base = None if paper.empty else str(paper.iloc[0])
    order = lambda entry: float(entry["temperature"] or 0)  # noqa: E731
    return [study_table(results, options, study="temperature", title="Effect of the temperature", order=order, base=base)]
