"""Resized crops against torchvision's, image by image."""

from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2.functional import horizontal_flip, resized_crop

import hsakd.devices
from hsakd.data.views import ResizedCrops, apply_views
from hsakd.devices import sent


@pytest.mark.parametrize(("kind", "pins"), [("cuda", 1), ("cpu", 0), ("meta", 0)])
def test_what_a_gpu_is_sent_is_pinned_first(monkeypatch: pytest.MonkeyPatch, kind: str, pins: int) -> None:
    calls: list[tuple[str, object]] = []  # there is no GPU here to send to
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append(("pin", self)) or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking: calls.append(("to", (device.type, non_blocking))) or self)
    sent(torch.arange(3), torch.device(kind))
    assert [name for name, _ in calls] == ["pin"] * pins + ["to"]
    assert calls[-1][1] == (kind, True)


def test_nothing_is_sent_to_a_device_in_another_way() -> None:
    root = Path(hsakd.devices.__file__).parent
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if "non_blocking" in path.read_text()}
    assert found == {"devices.py", "training/detection.py"}  # whose loader pins all it gives


@pytest.mark.parametrize(("side", "size"), [(96, 32), (28, 28), (16, 32)])
def test_resized_crops_are_torchvisions(side: int, size: int) -> None:
    images = torch.randint(256, (50, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    space, views = ResizedCrops(size), torch.randint(2**31, (50,), generator=torch.Generator().manual_seed(1))
    boxes, flips = space.boxes(views, side, side)
    assert 10 < int(flips.sum()) < 40
    expected = []
    for image, box, flip in zip(images, boxes.int().tolist(), flips.tolist(), strict=True):
        crop = resized_crop(image.float(), *box, [size, size], antialias=True)
        expected.append(horizontal_flip(crop) if flip else crop)
    difference = (apply_views(images, views, space).float() - torch.stack(expected)).abs()
    assert difference.max() <= 0.51  # rounding to uint8


def test_boxes_are_distributed_as_torchvisions() -> None:
    num, side = 4000, 96
    boxes, flips = ResizedCrops(32).boxes(torch.randperm(num) * 1000, side, side)
    torch.manual_seed(0)
    image, theirs = torch.zeros(1, side, side), RandomResizedCrop(32)
    drawn = [theirs.make_params([image]) for _ in range(num)]
    expected = torch.tensor([[row["top"], row["left"], row["height"], row["width"]] for row in drawn]).double()
    assert torch.equal(boxes, boxes.round())
    assert (boxes >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= side).all()
    spread = expected.std(dim=0) * (2 / num) ** 0.5
    assert ((boxes.mean(dim=0) - expected.mean(dim=0)).abs() < 4 * spread).all()
    assert torch.allclose(boxes.std(dim=0), expected.std(dim=0), rtol=0.06)
    assert abs(flips.double().mean().item() - 0.5) < 0.04


def test_a_view_is_the_same_for_ever_and_on_the_meta_device() -> None:
    space = ResizedCrops(8)
    boxes, flips = space.boxes(torch.tensor([0, 1, 2**31 - 1]), 16, 16)
    again = space.boxes(torch.tensor([2**31 - 1, 0]), 16, 16)
    assert torch.equal(boxes[[2, 0]], again[0])
    assert torch.equal(flips[[2, 0]], again[1])
    assert boxes.tolist() == [list(map(float, row)) for row in PINNED]
    images = torch.zeros(3, 1, 16, 16, dtype=torch.uint8, device="meta")
    assert apply_views(images, torch.arange(3), space).shape == (3, 1, 8, 8)


PINNED = [[0, 1, 15, 15], [2, 0, 13, 16], [4, 2, 11, 9]]
