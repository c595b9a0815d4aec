"""Batch normalization in channels-last float32 against PyTorch's in float64."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hsakd.models.batch_norm import LEAST_VALUES, MOST_PARTS, BatchNorm2d
from hsakd.training.team import without_running_statistics


def spread_maps(rows: int, height: int) -> Tensor:
    """Return maps [R, 24, H, H] whose channels' means are far larger than their standard deviations."""
    generator = torch.Generator().manual_seed(0)
    noise, means = (torch.randn(shape, generator=generator) for shape in ((rows, 24, height, height), (1, 24, 1, 1)))
    return (0.02 * noise + 3 * means).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("rows", "height"), [(64, 16), (7, 16), (3, 4), (2, 1)])
def test_channels_last_statistics_and_gradients_are_those_of_float64(rows: int, height: int) -> None:
    maps = spread_maps(rows, height)
    ours = BatchNorm2d(24)
    nn.init.uniform_(ours.weight)
    nn.init.normal_(ours.bias)
    exact = nn.BatchNorm2d(24).double()
    exact.load_state_dict(copy.deepcopy(ours.state_dict()))
    given, expected = maps.clone().requires_grad_(), maps.double().contiguous().requires_grad_()
    upstream = torch.randn(maps.shape, generator=torch.Generator().manual_seed(1))
    result, reference = ours(given), exact(expected)
    result.backward(upstream)
    reference.backward(upstream.double())
    torch.testing.assert_close(result.double(), reference, rtol=0, atol=2e-4)
    assert given.grad is not None
    assert expected.grad is not None
    scale = expected.grad.abs().max()
    torch.testing.assert_close(given.grad.double() / scale, expected.grad / scale, rtol=0, atol=2e-4)
    for own, other in ((ours.weight, exact.weight), (ours.bias, exact.bias)):
        torch.testing.assert_close(own.grad.double(), other.grad, rtol=2e-4, atol=2e-4 * rows * height)
    for name, value in exact.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name].double(), value.double(), rtol=1e-5, atol=1e-6, msg=name)


def test_large_maps_are_taken_in_parts_and_small_ones_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = torch.batch_norm_update_stats, []

    def noting(part: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        parts.append(part)
        return whole(part, *arguments)

    monkeypatch.setattr(torch, "batch_norm_update_stats", noting)
    for (rows, height), count in {(64, 16): MOST_PARTS, (7, 16): 7 * 16 * 16 // LEAST_VALUES + 1, (3, 4): 1}.items():
        parts.clear()
        BatchNorm2d(24)(spread_maps(rows, height))
        assert abs(len(parts) - count) <= 1
        assert sum(part[:, 0].numel() for part in parts) == rows * height * height


def test_evaluation_uses_the_running_statistics() -> None:
    layer = BatchNorm2d(24)
    maps = spread_maps(4, 4)
    layer(maps)
    before = copy.deepcopy(layer.state_dict())
    reference = nn.BatchNorm2d(24).eval()
    reference.load_state_dict(before)
    assert torch.equal(layer.eval()(maps), reference(maps))
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in before.items())


def test_running_statistics_that_are_not_tracked_stay_as_they_are() -> None:
    layer = BatchNorm2d(24)
    before = copy.deepcopy(layer.state_dict())
    with without_running_statistics(layer):
        result = layer(spread_maps(4, 16))
    assert result.mean(dim=(0, 2, 3)).abs().max() < 1e-2  # the batch's own are used
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in before.items())
