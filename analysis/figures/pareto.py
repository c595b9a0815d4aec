"""Accuracy against the cost of inference, with the front of students that nothing beats on both."""

from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from analysis.aggregate import Results, by_row, make_cell, methods_of, pair_label, pairs_of, reported
from analysis.artefact import Drawing, NotAsked, NothingToShow, Options
from analysis.drawing import COLOURS, marker_of, new_figure, spread
from analysis.uniform import TEACHERS, uniform

MOST_FOR_LINEAR = 5.0  # times the cheapest network
SIZE = 36.0  # of a marker, in square points
MARGIN = 0.15  # around the points, in parts of what they span
STEP = 8.0  # between two markers, in points
MOST_FLAT_LABELS = 4
WIDE_LABEL, HIGH_LABEL = 90.0, 9.0  # between two networks' names, flat or upright, in points
WIDTH, HEIGHT = 400.0, 260.0  # of the panel, about, in points


class Point(NamedTuple):
    """A method of a pair, or a teacher (of no pair: `pair` is empty): million multiply-adds of its network, accuracy in per cent."""

    adds: float
    top1: float
    method: str
    network: str
    pair: str
    ids: tuple[str, ...]


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
            network = str(mine["network"].dropna().iloc[0])
            label = "" if method in TEACHERS else pair_label(pair, pairs)
            points.append(
                Point(adds=float(adds.iloc[0]) / 1e6, top1=cell.mean, method=method, network=network, pair=label, ids=cell.trial_ids)
            )
    if not points:
        raise NothingToShow("Accuracy against cost: no complete trial says its multiply-adds.")
    points = list(dict.fromkeys(sorted(points, key=lambda point: (point.adds, point.network, point.pair, order.index(point.method)))))
    labels = [label for pair in pairs if (label := pair_label(pair, pairs)) in {point.pair for point in points}]
    figure, (panel,) = new_figure(1, width=8, height=5)
    low, high = min(point.top1 for point in points), max(point.top1 for point in points)
    margin = max(high - low, 0.5) * MARGIN
    panel.set_ylim(low - margin, high + margin)
    per_point = (high - low + 2 * margin) / HEIGHT
    for cost in dict.fromkeys(point.adds for point in points):
        every = [[point for point in points if point.adds == cost and point.pair == label] for label in ("", *labels)]
        columns = [column for column in every if column]
        places = [_side_by_side([point.top1 / per_point for point in column]) for column in columns]
        widths = [(max(shifts) - min(shifts) + 3 * STEP) for shifts in places]
        start = -sum(widths) / 2
        for column, shifts, width in zip(columns, places, widths, strict=True):
            for point, shift in zip(column, shifts, strict=True):
                moved = panel.transData + ScaledTranslation((start + 1.5 * STEP - min(shifts) + shift) / 72, 0, figure.dpi_scale_trans)
                panel.scatter(point.adds, point.top1, zorder=3, transform=moved, **_look(order.index(point.method)))
            if column[0].pair:
                best = max(point.top1 for point in column)
                middle = (start + width / 2, 7)
                panel.annotate(
                    f"{labels.index(column[0].pair) + 1}", (cost, best), middle, textcoords="offset points", ha="center", fontsize=8
                )
            start += width
    for method in (method for method in order if method in {point.method for point in points}):
        panel.scatter([], [], label=method, **_look(order.index(method)))
    front = sorted({(p.adds, p.top1) for p in points if not any(o.adds <= p.adds and o.top1 >= p.top1 and o[:2] != p[:2] for o in points)})
    xs, ys = zip(*front, strict=True)
    panel.step(xs, ys, where="post", color="#444444", linestyle="--", linewidth=1, label="front")
    handles, names = panel.get_legend_handles_labels()
    handles += [Line2D([], [], linestyle="none", marker=f"${i}$", color="black", markeredgewidth=0) for i in range(1, len(labels) + 1)]
    networks = {point.adds: sorted({other.network for other in points if other.adds == point.adds}) for point in points}
    cheapest, dearest = points[0].adds, points[-1].adds
    if dearest > MOST_FOR_LINEAR * cheapest:
        panel.set_xscale("log")
        factor = (dearest / cheapest) ** MARGIN
        panel.set_xlim(cheapest / factor, dearest * factor)
    else:
        space = max(dearest - cheapest, 0.2 * dearest) * MARGIN
        panel.set_xlim(cheapest - space, dearest + space)
    panel.set_xticks(list(networks), [""] * len(networks))
    names_of = [f"{', '.join(found)}: {cost:.{0 if cost >= 100 else 1}f}" for cost, found in networks.items()]
    is_crowded = len(networks) > MOST_FLAT_LABELS
    places_of = _apart(panel, list(networks), (HIGH_LABEL if is_crowded else WIDE_LABEL) / WIDTH)
    panel.xaxis.remove_overlapping_locs = False
    panel.set_xticks(places_of, names_of, minor=True, rotation=90 if is_crowded else 0, fontsize=7)
    panel.tick_params(axis="x", which="minor", length=0, pad=6)
    panel.set_xlabel("multiply-adds per image (million)")
    panel.set_ylabel(f"test accuracy (per cent, {options.selection})")
    figure.legend(handles, [*names, *labels], fontsize=7, loc="outside right upper")
    ids = tuple(sorted({trial_id for point in points for trial_id in point.ids}))
    caption = (
        "Mean over seeds; the dashed front joins what nothing beats in both accuracy and cost. Points of one network stand side by side: "
    )
    caption += "its pairs as numbered columns, points that would hide each other next to each other."
    return [Drawing(name="pareto", title="Accuracy against cost", caption=caption, figure=figure, trial_ids=ids)]


def _look(number: int) -> dict[str, Any]:
    """Return the look of a method's marker, by its place among the methods."""
    return {"s": SIZE, "color": COLOURS[number % len(COLOURS)], "marker": marker_of(number), "edgecolor": "black", "linewidth": 0.5}


def _side_by_side(heights: list[float]) -> list[float]:
    """Return how far aside each point of a column stands, in points as `heights`, so that no marker hides another."""
    placed = list[tuple[float, float]]()
    for height in heights:
        shifts = (STEP * (-(i // 2) if i % 2 else i // 2) for i in range(1, len(heights) + 2))
        free = (shift for shift in shifts if not any(abs(shift - x) < STEP and abs(height - y) < STEP for x, y in placed))
        placed.append((next(free), height))
    return [shift for shift, _ in placed]


def _apart(panel: Axes, values: list[float], gap: float) -> list[float]:
    """Return places on the x axis for labels of `values`, `gap` parts of its width apart."""
    axis = panel.transScale + panel.transLimits  # to parts of the panel's width
    places = spread([axis.transform((value, 1.0))[0] for value in values], gap)
    return [float(axis.inverted().transform((place, 0.5))[0]) for place in places]
