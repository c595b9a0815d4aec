"""Accuracy over the weights of the distillation terms."""

from typing import Any

from analysis.aggregate import Results
from analysis.artefact import Options
from analysis.studies import study_table
from analysis.table import Table


def build(results: Results, options: Options) -> list[Table]:
    """Return the grid of weights; gains are over all weights 1."""
    entries = results.rows(purpose="report", study="loss-weights")
    ones = [entry["method"] for entry in entries.to_dict("records") if entry["weights"] and set(entry["weights"].values()) == {1.0}]
    base = str(ones[0]) if ones else None

    def order(entry: dict[str, Any]) -> tuple[tuple[str, float], ...]:
        return tuple(entry["weights"].items())

    return [study_table(results, options, study="loss-weights", title="Effect of the loss weights", order=order, base=base)]
