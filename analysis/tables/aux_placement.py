"""The paper's ablation of auxiliary classifiers: which of c_1..c_L are distilled."""

from analysis.aggregate import Results
from analysis.artefact import Options
from analysis.studies import paper_order, study_table
from analysis.table import Table

PUBLISHED = "fig_ablation_aux_placement"


def build(results: Results, options: Options) -> list[Table]:
    """Return the accuracy of each placement, and its gain over none."""
    title = "Effect of the auxiliary classifiers (published: task + kl_q, jointly trained teacher)"
    return [
        study_table(results, options, study="aux-placement", title=title, order=paper_order(PUBLISHED), base="none", published=PUBLISHED)
    ]
