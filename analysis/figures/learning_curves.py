"""Test accuracy over epochs of Table 1's methods, with the band of the seeds."""

from typing import Any

from matplotlib.ticker import MaxNLocator

from analysis.aggregate import METHODS, Results, by_row, make_cell, methods_of, pair_label, pairs_of, reported, where
from analysis.artefact import Drawing, NotAsked, NothingToShow, Options
from analysis.drawing import COLOURS, new_figure, spread
from analysis.uniform import Pair, uniform

BANDS = ("Student", "KD", *(method for method in METHODS if method.startswith("HSAKD")))  # those of all methods hide each other
OTHERS = {"color": "#999999", "linewidth": 0.8}
LABEL_GAP, LABEL_SHIFT = 0.055, 0.04  # in parts of the late means' span and of the epochs


def draw(results: Results, options: Options) -> list[Drawing]:
    """Return a panel per pair; lines are means over seeds, bands of the main ones reach from the lowest to the highest seed."""
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
    figure, axes = new_figure(len(pairs), height=4.6, width=5.2)
    for panel, pair in zip(axes, pairs, strict=True):
        alike = dict[tuple[str, ...], list[str]]()  # rows of the same trials (of HSAKD-tuned: the paper's setting won) are one line
        for method in methods:
            if (pair, method) in shown:
                alike.setdefault(trials[pair, method], []).append(method)
        of_names = {" = ".join(names): shown[pair, names[0]] for names in alike.values()}
        means = {names: own.mean() for names, own in of_names.items()}
        late = [value for mean in means.values() for value in mean[mean.index >= mean.index.max() * 3 / 4]]
        span, last = max(max(late) - min(late), 1.0), max(mean.index.max() for mean in means.values())
        panel.set_ylim(min(late) - span / 2, max(late) + span / 10)
        ends = spread([mean.iloc[-1] for mean in means.values()], span * LABEL_GAP)
        for (names, mean), end in zip(means.items(), ends, strict=True):
            method = names.partition(" = ")[0]
            look: dict[str, Any] = {"color": COLOURS[METHODS.index(method)], "linewidth": 1.5} if method in METHODS else OTHERS
            look |= {"linestyle": "--" if method in METHODS[:2] else "-", "zorder": 3 if method in METHODS else 2}
            panel.plot(mean.index, mean, label=names, **look)
            if method in BANDS:
                own = of_names[names]
                panel.fill_between(mean.index, own.min(), own.max(), color=look["color"], alpha=0.15, linewidth=0)
            line: dict[str, Any] = {
                "arrowstyle": "-",
                "color": look["color"],
                "linewidth": 0.5,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            }
            place = (last * (1 + LABEL_SHIFT), end)
            panel.annotate(names, (mean.index[-1], mean.iloc[-1]), place, fontsize=7, va="center", annotation_clip=False, arrowprops=line)
        panel.set_title(pair_label(pair, pairs), fontsize=9)
        panel.set_xlabel("epoch")
        panel.set_xlim(0, max(last, 1))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylabel("test accuracy (per cent)")
    ids = tuple(sorted(set(curves["trial_id"])))
    caption = "Lines: mean over seeds after each epoch; bands (of HSAKD's rows, KD and Student): lowest to highest seed; dashed: teachers; "
    caption += "grey: other methods. The axis holds the means of the last quarter."
    caption += f" Left out, as rows that may not be averaged: {'; '.join(left_out)}." if left_out else ""
    return [Drawing(name="learning_curves", title="Learning curves", caption=caption, figure=figure, trial_ids=ids)]
