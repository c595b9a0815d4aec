"""The paper's ablation of loss terms."""

from functools import partial

from analysis.aggregate import Results
from analysis.artefact import Options
from analysis.studies import paper_order, published_arms, study_table
from analysis.table import Table

PUBLISHED = "fig_ablation_loss_terms"


def build(results: Results, options: Options) -> list[Table]:
    """Return the accuracy of each sum of loss terms, and its gain over the plain task."""
    title = "Effect of the loss terms"
    return [
        study_table(
            results,
            options,
            study="loss-terms",
            title=title,
            order=paper_order(PUBLISHED),
            base="task",
            published=partial(published_arms, PUBLISHED),
        )
    ]
