"""The paper's bar chart of auxiliary classifiers, and the same with the full objective."""

from analysis.aggregate import Results
from analysis.artefact import Drawing, Options, each
from analysis.bars import draw_bars
from analysis.studies import AUX_PLACEMENT, PLACEMENT_STUDIES, placement_order


def draw(results: Results, options: Options) -> list[Drawing]:
    """Return the charts, published bars beside ours (the paper's objective is task + kl_q)."""

    def chart(study: str) -> list[Drawing]:
        published = AUX_PLACEMENT if study == "aux-placement" else None
        title = f"Effect of the auxiliary classifiers ({PLACEMENT_STUDIES[study]})"
        return draw_bars(results, options, study=study, published=published, title=title, order=placement_order)

    return each(PLACEMENT_STUDIES, chart)
