"""Parameters and multi-adds, counted as the paper's code counts them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hsakd.models.network import HierarchicalNet


class Counts(NamedTuple):
    """A number for the backbone and one per auxiliary classifier (in the order of `taps`)."""

    backbone: int
    branches: tuple[int, ...]

    @property
    def total(self) -> int:
        """Backbone and branches."""
        return self.backbone + sum(self.branches)


def count_parameters(network: HierarchicalNet) -> Counts:
    """Count all parameters."""

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    return Counts(count(network.backbone), tuple(count(branch) for branch in network.auxiliary_classifiers.values()))


def count_multi_adds(network: HierarchicalNet, image_size: int) -> Counts:
    """Count multiply-adds of one row of `image_size` pixels: convolutions and linear layers only, no bias, BN, activation or pooling.

    Nor products of a timm transformer's attention, which have no weights.
    """
    twin = _meta_twin(network)
    totals: dict[str, int] = {}

    def hook_for(part: str) -> object:
        def add(module: nn.Module, _: tuple[Tensor, ...], result: Tensor) -> None:
            assert isinstance(module, nn.Conv2d | nn.Linear)
            width = result.shape[1] if isinstance(module, nn.Conv2d) else result.shape[-1]  # a transformer's linear layers see tokens
            outputs = result.numel() // width
            totals[part] = totals.get(part, 0) + module.weight.numel() * outputs

        return add

    for path, module in twin.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            part = path.split(".")[1] if path.startswith("auxiliary_classifiers") else "backbone"
            module.register_forward_hook(hook_for(part))  # type: ignore[arg-type]
    with torch.no_grad():
        twin(torch.empty(1, 3, image_size, image_size, device="meta"))
    return Counts(totals["backbone"], tuple(totals[str(tap)] for tap in network.taps))


def tap_shapes(network: HierarchicalNet, image_size: int) -> tuple[tuple[int, ...], ...]:
    """Return (C_l, H_l, W_l) of every stage for images of `image_size` pixels."""
    with torch.no_grad():
        output = _meta_twin(network)(torch.empty(1, 3, image_size, image_size, device="meta"))
    return tuple(tuple(feature.shape[1:]) for feature in output.features)


def _meta_twin(network: HierarchicalNet) -> HierarchicalNet:
    twin = HierarchicalNet.on_meta(
        network.name, num_classes=network.num_classes, num_rotations=network.num_rotations, taps=network.taps, spec=network.spec
    )
    return twin.to("meta").eval()
