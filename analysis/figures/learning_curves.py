"""Test accuracy over epochs of Table 1's methods, with the band of the seeds."""

from typing import Any

from matplotlib.ticker import MaxNLocator

from analysis.aggregate import METHODS, Results, for_pair, methods_of, pair_label, pairs_of, reported
from analysis.artefact import Drawing, NotAsked, NothingToShow, Options
from analysis.drawing import COLOURS, LINES, marker_of, new_figure


def draw(results: Results, options: Options) -> list[Drawing]:
    """Return a panel per pair; lines are means over seeds, bands reach from the lowest to the highest seed."""
    del options
    entries = reported(results)
    if entries.empty:
        raise NotAsked("Learning curves: the folder's plan has no reported pair.")
    entries = entries[(entries["status"] == "complete") & ((entries["purpose"] == "report") | entries["method"].isin(METHODS[:2]))]
    curves = results.epochs(entries["trial_id"].to_list(), ["top1_test"]).dropna()
    pairs = [pair for pair in pairs_of(entries) if for_pair(entries, pair)["trial_id"].isin(curves["trial_id"]).any()]
    if not pairs:
        raise NothingToShow("Learning curves: no complete trial has epochs with test accuracy.")
    figure, axes = new_figure(len(pairs))
    for panel, pair in zip(axes, pairs, strict=True):
        mine = for_pair(entries, pair)
        for i, method in enumerate(name for name in methods_of(mine) if name in set(mine["method"])):
            own = curves[curves["trial_id"].isin(mine.loc[mine["method"] == method, "trial_id"])].groupby("epoch")["top1_test"]
            look: dict[str, Any] = {
                "color": COLOURS[i % len(COLOURS)],
                "linestyle": LINES[i % len(LINES)],
                "marker": marker_of(i),
                "markersize": 3.5,
            }
            mean = own.mean()
            panel.plot(mean.index, mean, label=method, markevery=max(1, len(mean) // 8), linewidth=1.2, **look)
            panel.fill_between(mean.index, own.min(), own.max(), color=look["color"], alpha=0.2, linewidth=0)
        panel.set_title(pair_label(pair, pairs), fontsize=9)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylabel("test accuracy (per cent)")
        panel.legend(fontsize=7, loc="lower right")
    ids = tuple(sorted(set(curves["trial_id"])))
    caption = "Lines: mean over seeds after each epoch; bands: lowest to highest seed."
    return [Drawing(name="learning_curves", title="Learning curves", caption=caption, figure=figure, trial_ids=ids)]
