"""Test accuracy over epochs of Table 1's methods, with the band of the seeds."""

from typing import Any

from matplotlib.ticker import MaxNLocator

from analysis.aggregate import METHODS, Results, by_row, make_cell, methods_of, pair_label, pairs_of, reported, where
from analysis.artefact import Drawing, NotAsked, NothingToShow, Options
from analysis.drawing import COLOURS, line_of, marker_of, new_figure
from analysis.uniform import Pair, uniform


def draw(results: Results, options: Options) -> list[Drawing]:
    """Return a panel per pair; lines are means over seeds, bands reach from the lowest to the highest seed."""
    entries = reported(results)
    if entries.empty:
        raise NotAsked("Learning curves: the folder's plan has no reported pair.")
    every = pairs_of(entries)
    kept, refused = uniform(entries, every, options, [])
    trials: dict[tuple[Pair, str], tuple[str, ...]] = {}
    for (pair, method), rows in by_row(kept[(kept["purpose"] == "report") | kept["method"].isin(METHODS[:2])], every).items():
        cell = make_cell(rows, selection="last", where=method, notes=[], force=options.force)
        if cell.text == "refused":
            refused[pair, method] = cell
        else:
            trials[pair, method] = tuple(rows.loc[rows["status"] == "complete", "trial_id"])
    left_out = [where(pair, method) for pair, method in refused]
    curves = results.epochs([trial_id for ids in trials.values() for trial_id in ids], ["top1_test"]).dropna()
    shown = {place: curves[curves["trial_id"].isin(ids)].groupby("epoch")["top1_test"] for place, ids in trials.items()}
    shown = {place: own for place, own in shown.items() if own.ngroups}
    pairs = [pair for pair in every if any(place[0] == pair for place in shown)]
    if not pairs:
        raise NothingToShow("Learning curves: no complete trial has epochs with test accuracy.")
    methods = [method for method in methods_of(entries) if any(place[1] == method for place in shown)]
    figure, axes = new_figure(len(pairs), height=4.2)
    handles = {}
    for panel, pair in zip(axes, pairs, strict=True):
        late = list[float]()
        for i, method in enumerate(methods):
            if (own := shown.get((pair, method))) is None:
                continue
            look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "linestyle": line_of(i), "marker": marker_of(i), "markersize": 3.5}
            mean = own.mean()
            (handles[method],) = panel.plot(mean.index, mean, markevery=max(1, len(mean) // 8), linewidth=1.2, **look)
            panel.fill_between(mean.index, own.min(), own.max(), color=look["color"], alpha=0.1, linewidth=0)
            late += mean[mean.index >= mean.index.max() / 2].to_list()
        panel.set_ylim(min(late) - 1, max(late) + 1)
        panel.set_title(pair_label(pair, pairs), fontsize=9)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylabel("test accuracy (per cent)")
    figure.legend([handles[method] for method in methods], methods, fontsize=7, loc="outside lower center", ncols=5)
    ids = tuple(sorted(set(curves["trial_id"])))
    caption = "Lines: mean over seeds after each epoch; bands: lowest to highest seed. The axis holds the means of the last half."
    caption += f" Left out, as rows that may not be averaged: {'; '.join(left_out)}." if left_out else ""
    return [Drawing(name="learning_curves", title="Learning curves", caption=caption, figure=figure, trial_ids=ids)]
