"""The paper's ablation of auxiliary classifiers: which of c_1..c_L are distilled."""

from analysis.aggregate import Results
from analysis.artefact import Options, each
from analysis.studies import AUX_PLACEMENT, PLACEMENT_STUDIES, placement_order, study_table
from analysis.table import Table


def build(results: Results, options: Options) -> list[Table]:
    """Return the accuracy of each placement and its gain over none: with the paper's task + kl_q, and with the full objective."""

    def table(study: str) -> list[Table]:
        return [
            study_table(
                results,
                options,
                study=study,
                title=f"Effect of the auxiliary classifiers ({PLACEMENT_STUDIES[study]})",
                order=placement_order,
                base="none",
                beside=lambda rows, pair, notes: rows.published(AUX_PLACEMENT, pair, notes) if study == "aux-placement" else {},
            )
        ]

    return each(PLACEMENT_STUDIES, table)
