"""All placements of auxiliary classifiers, ordered by inclusion."""

import itertools

from matplotlib import colormaps

from analysis.aggregate import Results, for_pair, make_cell, pair_label, pairs_of
from analysis.artefact import Drawing, NotAsked, NothingToShow, Options
from analysis.drawing import new_figure


def _widest_level(arms: set[str]) -> int:
    """Return how many placements have the same number of classifiers, at most."""
    sizes = [0 if arm == "none" else arm.count("+") + 1 for arm in arms]
    return max(sizes.count(size) for size in sizes)


def draw(results: Results, options: Options) -> list[Drawing]:
    """Return a panel per pair: a node per placement, its accuracy in it, a line where one classifier is added."""
    entries = results.rows(purpose="report", study="aux-placement")
    pairs = pairs_of(entries)
    if not pairs:
        raise NotAsked("Placement lattice: the folder's plan has no aux-placement trials.")
    widest = max(_widest_level(set(for_pair(entries, pair)["method"])) for pair in pairs)
    figure, axes = new_figure(len(pairs), height=3.8, width=max(4.6, 0.95 * widest))
    ids: list[str] = []
    for panel, pair in zip(axes, pairs, strict=True):
        mine = for_pair(entries, pair)
        nodes = {}
        for arm, group in mine.groupby("method"):
            cell = make_cell(group, selection=options.selection, where=str(arm), notes=[], force=options.force)
            if cell.mean is not None:
                nodes[frozenset(() if arm == "none" else str(arm).split("+"))] = cell
                ids += cell.trial_ids
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
        panel.set_title(pair_label(pair, pairs), fontsize=9)
    if not ids:
        raise NothingToShow("Placement lattice: no trial is complete.")
    caption = f"Test accuracy (per cent, {options.selection}) of each placement; brighter is better; a line leads to a superset."
    return [Drawing(name="placement_lattice", title="Placement lattice", caption=caption, figure=figure, trial_ids=tuple(sorted(set(ids))))]
