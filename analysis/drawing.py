"""How figures look and are saved: colours and hatches that survive print and colour blindness, and the same bytes each time."""

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.artefact import Drawing

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")  # Okabe and Ito
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++", "oo", "--")
MARKERS = "osD^vPX*"
SETTING_WIDTH = 80  # letters of its line
LINES = ("-", "--", "-.", ":")


def marker_of(number: int) -> str:
    """Return a marker that differs from the last one of the same colour, however many methods a figure has."""
    return MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


def line_of(number: int) -> str:
    """Return a line style that differs from the last one of the same colour."""
    return LINES[(number + number // len(COLOURS)) % len(LINES)]


def error_length(std: float | None) -> float:
    """Return the length of an error bar: without a std it is not a number, so nothing is drawn, no cap either."""
    return math.nan if std is None else std


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Return places for labels of `values`, in the values' order, at least `gap` apart; labels that would touch are centred on theirs."""
    blocks: list[list[float]] = []
    for value in sorted(values):
        block = [value]
        while blocks and fmean(block) - fmean(blocks[-1]) < (len(block) + len(blocks[-1])) / 2 * gap:
            block = blocks.pop() + block
        blocks.append(block)
    places = [fmean(block) + (i - (len(block) - 1) / 2) * gap for block in blocks for i in range(len(block))]
    found = [0.0] * len(values)
    for place, number in zip(places, sorted(range(len(values)), key=lambda number: values[number]), strict=True):
        found[number] = place
    return found


def new_figure(num_panels: int = 1, *, height: float = 3.4, width: float = 4.6, grid: Literal["x", "y"] = "y") -> tuple[Figure, list[Axes]]:
    """Return a figure with `num_panels` axes, two in a row, and grid lines at the ticks of one axis."""
    columns = min(2, num_panels)
    rows = -(-num_panels // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(num_panels)]
    for panel in axes:
        panel.grid(axis=grid, color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def with_setting(drawing: Drawing, setting: str) -> Drawing:
    """Return the drawing with the setting of its trials under the axes and in the caption."""
    if not setting:
        return drawing
    drawing.figure.supxlabel("\n".join(textwrap.wrap(setting, SETTING_WIDTH)), fontsize=6, color="#555555")
    return replace(drawing, caption=f"{drawing.caption} Trained on {setting}.")


def rendered(figure: Figure, kind: str) -> bytes:
    """Return the figure as "svg" or "png", without dates or random ids."""
    text = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "hsakd", "svg.fonttype": "path"}):
        figure.savefig(text, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return text.getvalue()
