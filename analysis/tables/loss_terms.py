"""The paper's ablation of loss terms."""

from analysis.aggregate import Results
from analysis.artefact import Options
from analysis.studies import LOSS_TERMS, paper_order, study_table
from analysis.table import Table


def build(results: Results, options: Options) -> list[Table]:
    """Return the accuracy of each sum of loss terms, and its gain over the plain task."""
    title = "Effect of the loss terms"
    return [
        study_table(
            results,
            options,
            study="loss-terms",
            title=title,
            order=paper_order(LOSS_TERMS),
            base="task",
            beside=lambda rows, pair, notes: rows.published(LOSS_TERMS, pair, notes),
        )
    ]
