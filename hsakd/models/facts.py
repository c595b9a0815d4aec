"""Counts a network: what the packaged table holds, and what a timm model needs on the spot."""

import torch

from hsakd.models.counting import count_multi_adds, count_parameters, tap_shapes
from hsakd.models.network import HierarchicalNet
from hsakd.network_table import NetworkFacts


def facts_of(name: str) -> NetworkFacts:
    """Count one network at 32 px and 100 classes (224 px and 1,000 classes for `*_imagenet`)."""
    is_imagenet = name.endswith("_imagenet")
    size, num_classes = (224, 1000) if is_imagenet else (32, 100)
    network = HierarchicalNet.on_meta(name, num_classes=num_classes)
    parameters, multi_adds = count_parameters(network), count_multi_adds(network, size)
    with torch.no_grad():
        shapes = tap_shapes(network, size)
    return NetworkFacts(
        num_classes=num_classes,
        image_size=size,
        parameters=parameters.backbone,
        multi_adds=multi_adds.backbone,
        branch_parameters=parameters.branches,
        branch_multi_adds=multi_adds.branches,
        tap_shapes=tuple((shape[0], shape[1], shape[2]) for shape in shapes),
    )
