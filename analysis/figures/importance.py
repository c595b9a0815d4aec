"""How much each parameter matters, per pair."""

from typing import Any

import numpy as np

from analysis.aggregate import Results
from analysis.artefact import Drawing, NotAsked, NothingToShow, Options
from analysis.drawing import COLOURS, HATCHES, new_figure
from analysis.search import displayed, studies_of


def draw(results: Results, options: Options) -> list[Drawing]:
    """Return a group of bars per study: shares of the variance of validation accuracy (fANOVA)."""
    del options
    studies = studies_of(results)
    if not studies:
        raise NotAsked("Importance: the folder's plan has no search trials.")
    found = {study.label: (study, study.importances) for study in studies}
    found = {name: value for name, value in found.items() if value[1]}
    if not found:
        raise NothingToShow("Importance: no study has four complete trials that vary a parameter.")
    names = sorted({name for _, shares in found.values() for name in shares})
    places, width = np.arange(len(found)), 0.8 / len(names)
    figure, (panel,) = new_figure(1, width=6.5, height=1.4 + 0.16 * len(found) * (len(names) + 1), grid="x")
    for i, name in enumerate(names):
        shares = [value[1].get(name, 0.0) for value in found.values()]
        look: dict[str, Any] = {"color": COLOURS[i % 8], "hatch": HATCHES[i % 8], "edgecolor": "black", "linewidth": 0.8}
        panel.barh(places + (i - (len(names) - 1) / 2) * width, shares, width, label=displayed(name), **look)
    panel.set_yticks(places, list(found), fontsize=8)
    panel.invert_yaxis()  # the first study and parameter on top
    panel.set_xlabel("share of the variance")
    panel.set_xlim(0, 1)
    figure.legend(*panel.get_legend_handles_labels(), fontsize=7, ncols=3, loc="outside upper center")
    ids = tuple(sorted({trial.trial_id for study, _ in found.values() for trial in study.judged}))
    caption = "fANOVA over complete search trials (at most 100 a study, evenly thinned), on validation accuracy; rough with few trials."
    return [Drawing(name="importance", title="Importance of the parameters", caption=caption, figure=figure, trial_ids=ids)]
