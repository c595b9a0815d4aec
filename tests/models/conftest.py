"""The golden data's rule weights, and the names under which it knows our networks."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hsakd.models import HierarchicalNet, network_names
from hsakd.models.authors import AUTHORS_FACTORIES
from hsakd.models.checkpoints import load_weights

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def architectures() -> dict[str, Any]:
    return json.loads((GOLDEN / "architectures.json").read_text())["architectures"]


@pytest.fixture(scope="session")
def golden_keys() -> dict[str, list[Any]]:
    with gzip.open(GOLDEN / "state_dict_keys.json.gz", "rt") as file:
        return json.load(file)


@pytest.fixture(scope="session")
def our_names() -> dict[str, str]:
    """The authors' factory (without `_aux`) -> our name."""
    return {AUTHORS_FACTORIES.get(name, name): name for name in network_names()}


@pytest.fixture(scope="session")
def rule_weights(golden_keys: dict[str, list[Any]]) -> Callable[[str], dict[str, torch.Tensor]]:
    """The weights that golden/README's rule gives a network of the authors, under their keys."""

    def draw(factory: str) -> dict[str, torch.Tensor]:
        shapes = {key: shape for key, shape, _ in golden_keys[factory]}
        weights = {}
        for index, key in enumerate(sorted(shapes)):
            generator, shape = np.random.Generator(np.random.PCG64(1000 + index)), shapes[key]
            if key.endswith("num_batches_tracked"):
                weights[key] = torch.zeros(shape, dtype=torch.int64)
                continue
            if key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
                values = generator.uniform(0.5, 1.5, shape)
            elif len(shape) >= 2:
                values = generator.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
            else:
                values = 0.1 * generator.standard_normal(shape)
            weights[key] = torch.from_numpy(np.asarray(values, dtype=np.float32))
        return weights

    return draw


@pytest.fixture(scope="session")
def rule_network(
    rule_weights: Callable[[str], dict[str, torch.Tensor]], our_names: dict[str, str]
) -> Callable[[str, torch.dtype], HierarchicalNet]:
    """A hierarchical network with the rule's weights, through the public loader."""

    def build(factory: str, dtype: torch.dtype) -> HierarchicalNet:
        name = our_names[factory.removesuffix("_aux")]
        network = HierarchicalNet.on_meta(name, num_classes=1000 if "imagenet" in factory else 100).to_empty(device="cpu")
        load_weights(network, rule_weights(factory))
        return network.to(dtype)

    return build
