"""How terms call torchdistill's losses, which read maps from dictionaries of hooked modules."""

from types import ModuleType
from typing import Any

from torch import Tensor

LIBRARY = "torchdistill"
Hooked = dict[str, dict[str, Any]]


def mid_level_losses() -> ModuleType:
    """Return torchdistill's losses of outputs and maps; imported when first used, since the library is an optional extra."""
    from torchdistill.losses import mid_level

    module: ModuleType = mid_level
    return module


def hooked(*outputs: Tensor | tuple[Tensor, ...]) -> Hooked:
    """Return outputs as torchdistill's hooks would have kept them, under the paths "0", "1", ..."""
    return {str(index): {"output": output} for index, output in enumerate(outputs)}


def hooked_pairs(count: int, weights: tuple[float, ...] | None = None) -> dict[str, dict[str, Any]]:
    """Return the table by which a loss of several pairs of maps finds them in `hooked`."""
    place = [{"path": str(index), "io": "output"} for index in range(count)]
    return {str(i): {"student": place[i], "teacher": place[i], "weight": 1 if weights is None else weights[i]} for i in range(count)}
