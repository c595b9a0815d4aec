"""The paper's ablation of auxiliary classifiers: which of c_1..c_L are distilled."""

from collections.abc import Callable
from functools import partial

from analysis.aggregate import Results
from analysis.artefact import NotAsked, Options
from analysis.inference import Summary
from analysis.studies import Pair, placement_order, published_arms, study_table
from analysis.table import Table

PUBLISHED = "fig_ablation_aux_placement"


def build(results: Results, options: Options) -> list[Table]:
    """Return the accuracy of each placement and its gain over none: with the paper's task + kl_q, and with the full objective."""
    title = "Effect of the auxiliary classifiers (task + kl_q"
    published: Callable[[Pair], dict[str, Summary]] = partial(published_arms, PUBLISHED)
    tables = []
    for study, more, known in (
        ("aux-placement", ")", published),
        ("aux-placement-full", " + kl_p)", lambda _: {}),
    ):
        try:
            tables.append(
                study_table(results, options, study=study, title=title + more, order=placement_order, base="none", published=known)
            )
        except NotAsked:
            continue
    if not tables:
        raise NotAsked("Study aux-placement: the folder's plan has none of its trials.")
    return tables
