"""Accuracy over one number, a panel per number and a line per pair."""

from collections.abc import Callable
from typing import Any

from analysis.aggregate import SELECTIONS, Results, for_pair, pair_label, pairs_of, records_of
from analysis.artefact import Drawing, NotAsked, NothingToShow, Options
from analysis.drawing import COLOURS, LINES, MARKERS, new_figure
from analysis.inference import summarize


def draw_grid(
    results: Results, options: Options, *, study: str, title: str, value_of: Callable[[dict[str, Any]], dict[str, float]]
) -> list[Drawing]:
    """Return the drawing; `value_of` an entry says at which place of which panels it stands."""
    entries = results.rows(purpose="report", study=study)
    if entries.empty:
        raise NotAsked(f"Figure {study}: the folder's plan has none of its trials.")
    column = SELECTIONS[options.selection]
    entries = entries[(entries["status"] == "complete") & entries[column].notna()]
    if entries.empty:
        raise NothingToShow(f"Figure {study}: the folder has no complete trial of the study.")
    pairs = pairs_of(entries)
    panels = sorted({name for entry in records_of(entries) for name in value_of(entry)})
    if not panels:
        raise NothingToShow(f"Figure {study}: no trial varies one number alone.")
    figure, axes = new_figure(len(panels))
    for panel, name in zip(axes, panels, strict=True):
        for i, pair in enumerate(pairs):
            found: dict[float, list[float]] = {}
            for entry in records_of(for_pair(entries, pair)):
                values = value_of(entry)
                if name in values:
                    found.setdefault(float(values[name]), []).append(float(entry[column]))
            places = sorted(place for place in found if place > 0)
            summaries = [summarize(found[place]) for place in places]
            look: dict[str, Any] = {"color": COLOURS[i % 8], "marker": MARKERS[i % 8], "linestyle": LINES[i % 4]}
            means, stds = [item.mean for item in summaries], [item.std or 0.0 for item in summaries]
            panel.errorbar(places, means, yerr=stds, capsize=3, markersize=4, linewidth=1.2, label=pair_label(pair, pairs), **look)
        panel.set_xscale("log")
        ticks = sorted({value_of(entry)[name] for entry in records_of(entries) if value_of(entry).get(name, 0) > 0})
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.set_xlabel(name)
        panel.set_ylabel(f"test accuracy (per cent, {options.selection})")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=2)
    ids = tuple(sorted(set(entries["trial_id"])))
    caption = f"{title}. Points: mean over seeds; error bars: sample std."
    return [Drawing(name=study.replace("-", "_"), title=title, caption=caption, figure=figure, trial_ids=ids)]
