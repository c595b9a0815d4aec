"""Strided depthwise convolutions under a CPU's autocast: float32's digits, autocast's type."""

import pytest
import torch
from torch import nn

from hsakd.models import create_network
from hsakd.models.strided_depthwise import StridedDepthwiseConv2d


def test_under_autocast_values_and_gradients_are_those_of_float32() -> None:
    layer = StridedDepthwiseConv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False)
    maps = torch.randn(4, 8, 10, 10, generator=torch.Generator().manual_seed(0)).bfloat16()
    given, expected = maps.clone().requires_grad_(), maps.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(given)
    assert result.dtype == torch.bfloat16
    reference = layer(expected)
    assert torch.equal(result, reference.bfloat16())
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    (weight_gradient,) = torch.autograd.grad(result, layer.weight, upstream, retain_graph=True)
    (expected_weight_gradient,) = torch.autograd.grad(reference, layer.weight, upstream.float(), retain_graph=True)
    assert torch.equal(weight_gradient, expected_weight_gradient)
    result.backward(upstream)
    reference.backward(upstream.float())
    assert given.grad is not None
    assert expected.grad is not None
    assert torch.equal(given.grad, expected.grad.bfloat16())


@pytest.mark.parametrize("name", ["mobilenetv2_half", "shufflenet_v1", "shufflenet_v2"])
def test_every_strided_depthwise_convolution_of_the_networks_is_one(name: str) -> None:
    layers = [module for module in create_network(name, num_classes=10).modules() if isinstance(module, nn.Conv2d)]
    strided = [layer for layer in layers if layer.groups == layer.in_channels and layer.stride != (1, 1)]
    assert strided
    assert all(isinstance(layer, StridedDepthwiseConv2d) for layer in strided)
