"""Accuracy against the cost of inference, with the front of students that nothing beats on both."""

from typing import Any

from matplotlib.lines import Line2D

from analysis.aggregate import Results, by_row, make_cell, methods_of, pair_label, pairs_of, reported
from analysis.artefact import Drawing, NotAsked, NothingToShow, Options
from analysis.drawing import COLOURS, marker_of, new_figure
from analysis.uniform import uniform

MOST_FOR_LINEAR = 5.0  # times the cheapest network
SIZE = 36.0  # of a marker, in square points


def draw(results: Results, options: Options) -> list[Drawing]:
    """Return a point per method and pair: multiply-adds of the network, and test accuracy."""
    entries = reported(results)
    pairs = pairs_of(entries)
    if not pairs:
        raise NotAsked("Accuracy against cost: the folder's plan has no reported pair.")
    points, order, of_rows = [], methods_of(entries), by_row(uniform(entries, pairs, options, [])[0], pairs)
    for (pair, method), mine in of_rows.items():
        cell = make_cell(mine, selection=options.selection, where=method, notes=[], force=options.force)
        adds = mine["multi_adds"].dropna()
        if cell.mean is not None and len(adds) and adds.iloc[0] > 0:
            points.append((float(adds.iloc[0]) / 1e6, cell.mean, method, pair_label(pair, pairs), cell.trial_ids))
    if not points:
        raise NothingToShow("Accuracy against cost: no complete trial says its multiply-adds.")
    points.sort(key=lambda point: point[0])
    figure, (panel,) = new_figure(1, width=6.5, height=5)
    labels = list(dict.fromkeys(point[3] for point in points))
    methods = [method for method in order if method in {point[2] for point in points}]
    drawn: list[tuple[float, float]] = []
    for method in methods:
        places = dict.fromkeys(point[:2] for point in points if point[2] == method)
        look: dict[str, Any] = {
            "color": COLOURS[order.index(method) % len(COLOURS)],
            "marker": marker_of(order.index(method)),
            "edgecolor": "black",
            "linewidth": 0.5,
        }
        panel.scatter([], [], s=SIZE, label=method, **look)
        for place in places:  # where another method's marker is, a larger ring
            rings = drawn.count(place)
            ring = {"facecolor": "none", "edgecolor": look["color"], "linewidth": 1.5} if rings else {}
            panel.scatter(*place, s=SIZE * (1 + 1.5 * rings), zorder=3, **(look | ring))
        drawn += places
    front = [point for point in points if not any(o[0] <= point[0] and o[1] >= point[1] and o[:2] != point[:2] for o in points)]
    front.sort()
    panel.step(
        [point[0] for point in front],
        [point[1] for point in front],
        where="post",
        color="#444444",
        linestyle="--",
        linewidth=1,
        label="front",
    )
    handles, names = panel.get_legend_handles_labels()
    for i, label in enumerate(labels, 1):
        students = [point for point in points if point[3] == label and not point[2].startswith("Teacher")]
        best = max(students, key=lambda point: point[1], default=None)
        if best is not None:
            panel.annotate(
                f"{i}", best[:2], textcoords="offset points", xytext=(14 if i % 2 else -14, 5), ha="center", va="center", fontsize=7
            )
            handles.append(Line2D([], [], linestyle="none", marker=f"${i}$", color="black", markeredgewidth=0))
            names.append(label)
    panel.set_xscale("log" if points[-1][0] > MOST_FOR_LINEAR * points[0][0] else "linear")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_xlabel("multiply-adds per image (million)")
    panel.set_ylabel(f"test accuracy (per cent, {options.selection})")
    panel.margins(x=0.08, y=0.12)
    figure.legend(handles, names, fontsize=7, loc="outside right upper")
    ids = tuple(sorted({trial_id for point in points for trial_id in point[4]}))
    caption = "Mean over seeds; the dashed front joins what nothing beats in both accuracy and cost; a number marks a pair's best student; "
    caption += "a ring is a method at another one's place."
    return [Drawing(name="pareto", title="Accuracy against cost", caption=caption, figure=figure, trial_ids=ids)]
