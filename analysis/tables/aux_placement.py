"""The paper's ablation of auxiliary classifiers: which of c_1..c_L are distilled."""

from functools import partial

from analysis.aggregate import Results
from analysis.artefact import Options, each
from analysis.studies import PLACEMENT_STUDIES, placement_order, published_arms, study_table
from analysis.table import Table

PUBLISHED = "fig_ablation_aux_placement"


def build(results: Results, options: Options) -> list[Table]:
    """Return the accuracy of each placement and its gain over none: with the paper's task + kl_q, and with the full objective."""

    def table(study: str) -> list[Table]:
        title = f"Effect of the auxiliary classifiers ({PLACEMENT_STUDIES[study]})"
        published = partial(published_arms, PUBLISHED if study == "aux-placement" else None)
        return [study_table(results, options, study=study, title=title, order=placement_order, base="none", published=published)]

    return each(PLACEMENT_STUDIES, table)
