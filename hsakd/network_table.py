"""Facts about every network, importable without torch: names, multi-adds, branches. A test compares it with the networks."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TIMM = "timm/"  # of names of models that timm has: none of the table's
TABLE_FILE = Path(__file__).with_name("network_table.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkFacts:
    """Parameters and multi-adds of one row of 32x32 pixels (224x224 for `*_imagenet`), backbone and per branch, at `num_classes`."""

    num_classes: int
    image_size: int
    parameters: int
    multi_adds: int
    branch_parameters: tuple[int, ...]
    branch_multi_adds: tuple[int, ...]
    tap_shapes: tuple[tuple[int, int, int], ...]

    @property
    def num_branches(self) -> int:
        """L."""
        return len(self.branch_multi_adds)


@cache
def network_table() -> dict[str, NetworkFacts]:
    """Return the facts by network name."""
    rows = json.loads(TABLE_FILE.read_text())
    return {
        name: NetworkFacts(
            **{
                **row,
                "branch_parameters": tuple(row["branch_parameters"]),
                "branch_multi_adds": tuple(row["branch_multi_adds"]),
                "tap_shapes": tuple(tuple(shape) for shape in row["tap_shapes"]),
            }
        )
        for name, row in rows.items()
    }
