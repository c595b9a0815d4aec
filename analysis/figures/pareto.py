"""Accuracy against the cost of inference, with the front of students that nothing beats on both."""

from typing import Any

from analysis.aggregate import Results, for_pair, make_cell, methods_of, pair_label, pairs_of, reported
from analysis.artefact import Drawing, NotAsked, NothingToShow, Options
from analysis.drawing import COLOURS, marker_of, new_figure


def draw(results: Results, options: Options) -> list[Drawing]:
    """Return a point per method and pair: multiply-adds of the network, and test accuracy."""
    entries = reported(results)
    pairs = pairs_of(entries)
    if not pairs:
        raise NotAsked("Accuracy against cost: the folder's plan has no reported pair.")
    points, order = [], methods_of(entries)
    for pair in pairs:
        for method in order:
            mine = for_pair(entries[entries["method"] == method], pair)
            cell = make_cell(mine, selection=options.selection, where=method, notes=[], force=options.force)
            adds = mine["multi_adds"].dropna()
            if cell.mean is not None and len(adds) and adds.iloc[0] > 0:
                points.append((float(adds.iloc[0]) / 1e6, cell.mean, method, pair_label(pair, pairs), cell.trial_ids))
    if not points:
        raise NothingToShow("Accuracy against cost: no complete trial says its multiply-adds.")
    figure, (panel,) = new_figure(1, width=6.5, height=4)
    labels = list(dict.fromkeys(point[3] for point in points))
    methods = [method for method in order if method in {point[2] for point in points}]
    for method in methods:
        mine_points = [point for point in points if point[2] == method]
        look: dict[str, Any] = {
            "color": COLOURS[order.index(method) % len(COLOURS)],
            "marker": marker_of(order.index(method)),
            "edgecolor": "black",
            "linewidth": 0.5,
        }
        panel.scatter([point[0] for point in mine_points], [point[1] for point in mine_points], s=36, label=method, zorder=3, **look)
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
    for i, label in enumerate(labels):
        best = max(
            (point for point in points if point[3] == label and not point[2].startswith("Teacher")),
            key=lambda point: point[1],
            default=None,
        )
        if best is not None:
            panel.annotate(label, best[:2], textcoords="offset points", xytext=(6, 4 - 9 * (i % 2)), fontsize=7)
    panel.set_xlabel("multiply-adds per image (million)")
    panel.set_ylabel(f"test accuracy (per cent, {options.selection})")
    panel.margins(x=0.25, y=0.12)
    figure.legend(fontsize=7, loc="outside right upper")
    ids = tuple(sorted({trial_id for point in points for trial_id in point[4]}))
    caption = "Mean over seeds; the dashed front joins what nothing beats in both accuracy and cost."
    return [Drawing(name="pareto", title="Accuracy against cost", caption=caption, figure=figure, trial_ids=ids)]
