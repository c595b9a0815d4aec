"""Accuracy over the temperature."""

from analysis.aggregate import Results
from analysis.artefact import Drawing, Options
from analysis.grid import draw_grid


def draw(results: Results, options: Options) -> list[Drawing]:
    """Return accuracy over the temperature, a line per pair."""
    return draw_grid(
        results,
        options,
        study="temperature",
        title="Effect of the temperature",
        value_of=lambda entry: {"temperature": entry["temperature"]},
    )
