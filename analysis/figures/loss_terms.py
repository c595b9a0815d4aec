"""The paper's bar chart of loss terms."""

from analysis.aggregate import Results
from analysis.artefact import Drawing, Options
from analysis.bars import draw_bars
from analysis.studies import LOSS_TERMS, paper_order


def draw(results: Results, options: Options) -> list[Drawing]:
    """Return the chart, published bars beside ours."""
    title = "Effect of the loss terms"
    return draw_bars(results, options, study="loss-terms", published=LOSS_TERMS, title=title, order=paper_order(LOSS_TERMS))
