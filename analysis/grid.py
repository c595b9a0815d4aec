"""Accuracy over one number, a panel per number and a line per pair."""

from collections.abc import Callable
from typing import Any

from analysis.aggregate import Results, pair_label
from analysis.artefact import Drawing, NothingToShow, Options
from analysis.drawing import COLOURS, error_length, line_of, marker_of, new_figure
from analysis.studies import study_rows


def draw_grid(
    results: Results, options: Options, *, study: str, title: str, value_of: Callable[[dict[str, Any]], dict[str, float]]
) -> list[Drawing]:
    """Return the drawing; `value_of` an entry says at which place of which panels it stands.

    Raises:
        NotAsked: the plan has none of the study's trials.
        NothingToShow: no arm has a number, or none varies one number alone.
    """
    rows = study_rows(results, options, study)
    places = {arm: value_of(entry) for arm, entry in rows.first.items()}
    panels = sorted({name for values in places.values() for name in values})
    shown = {place: cell for place, cell in rows.cells.items() if cell.mean is not None}
    if not shown:
        raise NothingToShow(f"Figure {study}: no arm of the study has a number for the selection {options.selection!r} yet.")
    if not panels:
        raise NothingToShow(f"Figure {study}: no trial varies one number alone.")
    figure, axes = new_figure(len(panels))
    pairs = [pair for pair in rows.pairs if any(place[0] == pair for place in shown)]
    for panel, name in zip(axes, panels, strict=True):
        for i, pair in enumerate(pairs):
            mine = [(places[arm].get(name, 0.0), cell) for (own, arm), cell in shown.items() if own == pair]
            points = sorted((place, cell.mean or 0.0, error_length(cell.std)) for place, cell in mine if place > 0)
            look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": marker_of(i), "linestyle": line_of(i)}
            look |= {"capsize": 3, "markersize": 4, "linewidth": 1.2}
            xs, means, stds = zip(*points, strict=True) if points else ((), (), ())
            panel.errorbar(xs, means, yerr=stds, label=pair_label(pair, rows.pairs), **look)
        panel.set_xscale("log")
        ticks = sorted({places[arm][name] for _, arm in shown if places[arm].get(name, 0) > 0})
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.set_xlabel(name)
        panel.set_ylabel(f"test accuracy (per cent, {options.selection})")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="outside upper center", ncols=2)
    ids = tuple(sorted({trial_id for cell in shown.values() for trial_id in cell.trial_ids}))
    caption = f"{title}. Points: mean over seeds; error bars: sample std."
    return [Drawing(name=study.replace("-", "_"), title=title, caption=caption, figure=figure, trial_ids=ids)]
