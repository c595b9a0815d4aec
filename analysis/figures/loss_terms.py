"""The paper's bar chart of loss terms."""

from analysis.aggregate import Results
from analysis.artefact import Drawing, Options
from analysis.bars import draw_bars
from analysis.studies import paper_order

PUBLISHED = "fig_ablation_loss_terms"


def draw(results: Results, options: Options) -> list[Drawing]:
    """Return the chart, published bars beside ours."""
    return draw_bars(
        results, options, study="loss-terms", published=PUBLISHED, title="Effect of the loss terms", order=paper_order(PUBLISHED)
    )
