"""The paper's bar chart of loss terms."""

from analysis.aggregate import Results
from analysis.artefact import Drawing, Options
from analysis.bars import draw_bars


def draw(results: Results, options: Options) -> list[Drawing]:
    """Return the chart, published bars beside ours."""
    return draw_bars(results, options, study="loss-terms", published="fig_ablation_loss_terms", title="Effect of the loss terms")
