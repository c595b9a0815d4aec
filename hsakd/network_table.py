"""Facts about every network, without torch: what a trial costs is known before anything is built.

`python -m hsakd.models --write-table` writes the JSON beside this file; a test holds them together.
"""

import json
from dataclasses import dataclass
from pathlib import Path

TABLE_FILE = Path(__file__).with_suffix(".json")
TABLE_IMAGE_SIZE = 32
TABLE_NUM_CLASSES = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkFacts:
    """Counts at 32 px, 100 classes, 4 rotations; `branch_*` have one number per auxiliary classifier c_1..c_L."""

    family: str
    num_branches: int
    parameters: int
    branch_parameters: tuple[int, ...]
    multi_adds: int
    branch_multi_adds: tuple[int, ...]
    tap_shapes: tuple[tuple[int, ...], ...]


def read_network_table(file: Path = TABLE_FILE) -> dict[str, NetworkFacts]:
    """Return the facts of every network by its name."""
    return {
        name: NetworkFacts(**{key: _tuples(value) for key, value in row.items()})  # type: ignore[arg-type]
        for name, row in json.loads(file.read_text()).items()
    }


def _tuples(value: object) -> object:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


NETWORK_TABLE: dict[str, NetworkFacts] = read_network_table()
