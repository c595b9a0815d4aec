"""Accuracy over the weight of each distillation term."""

from typing import Any

from analysis.aggregate import Results
from analysis.artefact import Drawing, Options
from analysis.grid import draw_grid


def draw(results: Results, options: Options) -> list[Drawing]:
    """Return a panel per term: accuracy over its weight while the others are 1."""

    def value_of(entry: dict[str, Any]) -> dict[str, float]:
        weights = entry["weights"]
        return {
            f"weight of {name}": weight
            for name, weight in weights.items()
            if name != "task" and all(other == 1 for term, other in weights.items() if term != name)
        }

    return draw_grid(results, options, study="loss-weights", title="Effect of the loss weights", value_of=value_of)
