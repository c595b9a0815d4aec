"""All placements of auxiliary classifiers, ordered by inclusion."""

import itertools
from collections.abc import Iterable

from matplotlib import colormaps

from analysis.aggregate import Results, pair_label
from analysis.artefact import Drawing, NothingToShow, Options, each
from analysis.drawing import new_figure
from analysis.studies import PLACEMENT_STUDIES, study_rows


def draw(results: Results, options: Options) -> list[Drawing]:
    """Return a drawing per objective, a panel per pair: a node per placement, its accuracy in it, a line where one classifier is added."""
    return each(PLACEMENT_STUDIES, lambda study: _lattice(results, options, study))


def _widest_level(arms: Iterable[str]) -> int:
    """Return how many placements have the same number of classifiers, at most."""
    sizes = [len(_node(arm)) for arm in arms]
    return max(sizes.count(size) for size in sizes)


def _node(arm: str) -> frozenset[str]:
    return frozenset(() if arm == "none" else arm.split("+"))


def _lattice(results: Results, options: Options, study: str) -> list[Drawing]:
    rows = study_rows(results, options, study)
    widest = max(_widest_level(arm for own, arm in rows.cells if own == pair) for pair in rows.pairs)
    figure, axes = new_figure(len(rows.pairs), height=3.8, width=max(4.6, 0.95 * widest))
    ids: list[str] = []
    for panel, pair in zip(axes, rows.pairs, strict=True):
        nodes = {_node(arm): cell for (own, arm), cell in rows.cells.items() if own == pair and cell.mean is not None}
        ids += [trial_id for cell in nodes.values() for trial_id in cell.trial_ids]
        means = [cell.mean for cell in nodes.values() if cell.mean is not None]
        low, high = (min(means), max(means)) if means else (0.0, 1.0)
        places: dict[frozenset[str], tuple[float, int]] = {}
        for size in sorted({len(node) for node in nodes}):
            level = sorted((node for node in nodes if len(node) == size), key=sorted)
            places |= {node: (i - (len(level) - 1) / 2, size) for i, node in enumerate(level)}
        sizes = sorted({len(node) for node in nodes})
        for small, large in itertools.product(nodes, nodes):
            if small < large and sizes.index(len(large)) - sizes.index(len(small)) == 1:
                panel.plot(*zip(places[small], places[large], strict=True), color="#888888", linewidth=0.8, zorder=1)
        for node, (x, y) in places.items():
            mean = nodes[node].mean or 0.0
            shade = 0.15 + 0.7 * (mean - low) / (high - low or 1)
            text = f"{'+'.join(sorted(node)) or 'none'}\n{mean:.2f}"
            box = {"boxstyle": "round,pad=0.4", "facecolor": colormaps["cividis"](shade), "edgecolor": "black"}
            panel.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if shade < 0.45 else "black", bbox=box, zorder=2)
        if places:
            panel.set_xlim(min(x for x, _ in places.values()) - 0.6, max(x for x, _ in places.values()) + 0.6)
            panel.set_ylim(min(sizes) - 0.5, max(sizes) + 0.5)
        panel.set_yticks(sizes)
        panel.set_xticks([])
        panel.grid(visible=False)
        panel.set_ylabel("auxiliary classifiers")
        panel.set_title(pair_label(pair, rows.pairs), fontsize=9)
    if not ids:
        raise NothingToShow("Placement lattice: no trial is complete.")
    caption = f"Test accuracy (per cent, {options.selection}) of each placement; brighter is better; a line leads to a superset."
    name = study.replace("aux-placement", "placement_lattice").replace("-", "_")
    title = f"Placement lattice ({PLACEMENT_STUDIES[study]})"
    return [Drawing(name=name, title=title, caption=caption, figure=figure, trial_ids=tuple(sorted(set(ids))))]
