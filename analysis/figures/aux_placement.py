"""The paper's bar chart of auxiliary classifiers."""

from analysis.aggregate import Results
from analysis.artefact import Drawing, Options
from analysis.bars import draw_bars
from analysis.studies import placement_order


def draw(results: Results, options: Options) -> list[Drawing]:
    """Return the chart, published bars beside ours."""
    return draw_bars(
        results,
        options,
        study="aux-placement",
        published="fig_ablation_aux_placement",
        title="Effect of the auxiliary classifiers",
        order=placement_order,
    )
