"""Bar chart of a study's arms, published bars beside ours."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.aggregate import Results, pair_label
from analysis.artefact import Drawing, NothingToShow, Options
from analysis.drawing import COLOURS, HATCHES, error_length, new_figure
from analysis.studies import Order, study_rows

PANEL_LETTERS = 72  # of the labels' size that fit side by side under a panel


def draw_bars(results: Results, options: Options, *, study: str, published: str | None, title: str, order: Order) -> list[Drawing]:
    """Return one drawing with a panel per pair, of the arms that it has; error bars are sample stds.

    Raises:
        NotAsked: the plan has none of the study's trials.
        NothingToShow: no arm has a number.
    """
    rows = study_rows(results, options, study)
    pairs = rows.pairs
    arms_of = {pair: [arm for arm in rows.arms(order) if (pair, arm) in rows.cells] for pair in pairs}
    if all(cell.mean is None for cell in rows.cells.values()):
        raise NothingToShow(f"Figure {study}: no arm of the study has a number for the selection {options.selection!r} yet.")
    labels_of = {pair: broken_labels(arms) for pair, arms in arms_of.items()}
    is_crowded = any(labels is None for labels in labels_of.values())
    figure, axes = new_figure(len(pairs), height=4.0 if is_crowded else 3.4)
    ids, reasons = list[str](), list[str]()
    for panel, pair in zip(axes, pairs, strict=True):
        arms = arms_of[pair]
        cells = [rows.cell(pair, arm) for arm in arms]
        theirs = {} if published is None else rows.published(published, pair, reasons)
        places = np.arange(len(arms))
        width = 0.4 if theirs else 0.7
        shift = width / 2 if theirs else 0.0
        values = [np.nan if cell.mean is None else cell.mean for cell in cells]
        label = f"measured ({options.selection})"
        look: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.8, "capsize": 3}
        panel.bar(places - shift, values, width, yerr=[error_length(cell.std) for cell in cells], color=COLOURS[0], label=label, **look)
        known = [value for value in values if not np.isnan(value)]
        if theirs:
            means = [theirs[arm].mean if arm in theirs else np.nan for arm in arms]
            stds = [error_length(theirs[arm].std) if arm in theirs else np.nan for arm in arms]
            panel.bar(places + shift, means, width, yerr=stds, color=COLOURS[1], hatch=HATCHES[1], label="published (best-test)", **look)
            known += [value for value in means if not np.isnan(value)]
        for place, cell in zip(places, cells, strict=True):
            ids += cell.trial_ids
            if cell.mean is None and known:
                panel.annotate(cell.text, (place - shift, min(known) - 1), rotation=90, ha="center", fontsize=7)
        if known:
            panel.set_ylim(min(known) - 2, max(known) + 1.6)
        turn: dict[str, Any] = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if is_crowded else {}
        labels = [_short(arm) for arm in arms] if is_crowded else labels_of[pair]
        panel.set_xticks(places, labels, fontsize=7, **turn)
        panel.set_ylabel("test accuracy (per cent)")
        panel.set_title(pair_label(pair, pairs), fontsize=9)
        panel.legend(fontsize=7, loc="upper left")
    caption = " ".join([f"{title}. Bars: mean over seeds; error bars: sample std. The axis does not start at 0.", *reasons])
    return [Drawing(name=study.replace("-", "_"), title=title, caption=caption, figure=figure, trial_ids=tuple(sorted(set(ids))))]


def broken_labels(arms: Sequence[str]) -> list[str] | None:
    """Return the arms' labels, broken before a "+" where they would touch their neighbours; None where they would all the same."""
    width = PANEL_LETTERS // len(arms) - 1
    labels = ["\n".join(_wrapped(_short(arm), width)) for arm in arms]
    return labels if all(len(line) <= width for label in labels for line in label.split("\n")) else None


def _short(arm: str) -> str:
    return arm.replace("task+", "+")


def _wrapped(label: str, width: int) -> list[str]:
    """Return the label in lines of at most `width` letters, but for longer terms, which stand alone."""
    lines = [""]
    for part in re.findall(r"\+?[^+]+", label):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return lines
