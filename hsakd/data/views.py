"""View spaces (shifted crops and flips; random resized crops) and the rotations t_j; batched, on the images' own device."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from hsakd.devices import sent


class Batch(NamedTuple):
    """B augmented, normalized images; `indices` and `views` name each one for ever (within its data set and view space)."""

    indices: Tensor  # [B] int64, into the training images; on the CPU
    views: Tensor  # [B] int64; on the CPU
    images: Tensor  # [B, 3, H, W] float
    labels: Tensor  # [B] int64


@dataclass(frozen=True, slots=True)
class ViewSpace:
    """All crops of an image padded by `padding` zero pixels, each as it is and, with `has_flip`, mirrored.

    A view id is (top * (2*padding + 1) + left) * (1 or 2) + flip. CIFAR: padding 4 and flip, 162 views.
    """

    padding: int
    has_flip: bool

    @property
    def num_offsets(self) -> int:
        """Crop positions along one axis."""
        return 2 * self.padding + 1

    @property
    def num_views(self) -> int:
        """Size of the view space."""
        return self.num_offsets**2 * (2 if self.has_flip else 1)


CROP_AREA = (0.08, 1.0)  # of the image; Szegedy et al. 2015, the default of torchvision's RandomResizedCrop
CROP_RATIO = (3 / 4, 4 / 3)  # width over height
CROP_ATTEMPTS = 10
DRAWS = 4 * CROP_ATTEMPTS + 1  # uniform numbers behind a view: area, ratio, top and left of each attempt, then the flip


@dataclass(frozen=True, slots=True)
class ResizedCrops:
    """Random crops of a random area and ratio, resized to `size` pixels (bilinear, antialiased), mirrored half the time.

    A view id seeds the numbers of its crop, so that an id names a view for ever, as in `ViewSpace`; there are 2^31 of them.
    """

    size: int
    num_views: int = 2**31

    def boxes(self, views: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the boxes [B, 4] (top, left, height, width; whole pixels, as float64) and the flips [B] of view ids [B], on the CPU."""
        drawn = _uniforms(views.cpu(), DRAWS)
        attempts = drawn[:, :-1].view(-1, CROP_ATTEMPTS, 4)
        area = height * width * (CROP_AREA[0] + attempts[..., 0] * (CROP_AREA[1] - CROP_AREA[0]))
        low, high = (math.log(ratio) for ratio in CROP_RATIO)
        ratio = (low + attempts[..., 1] * (high - low)).exp()
        wide, tall = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
        top = (attempts[..., 2] * (height - tall + 1)).floor()
        left = (attempts[..., 3] * (width - wide + 1)).floor()
        boxes = torch.stack([top, left, tall, wide], dim=-1)
        first = fits.int().argmax(dim=1)
        chosen = boxes[torch.arange(len(boxes)), first]
        tall_side = min(height, round(width / CROP_RATIO[0]))  # where no attempt fits: the middle, as near to the image's ratio as accepted
        wide_side = min(width, round(height * CROP_RATIO[1]))
        middle = ((height - tall_side) // 2, (width - wide_side) // 2, tall_side, wide_side)
        return torch.where(fits.any(dim=1)[:, None], chosen, torch.tensor(middle, dtype=chosen.dtype)), drawn[:, -1] < 0.5

    def apply(self, images: Tensor, views: Tensor) -> Tensor:
        """Return the uint8 views [B, C, size, size] of uint8 images [B, C, H, W] (square)."""
        height, width = images.shape[-2:]
        boxes, flips = (sent(part, images.device) for part in self.boxes(views, height, width))
        rows = _resizing_weights(boxes[:, 0], boxes[:, 2], height, self.size)
        columns = _resizing_weights(boxes[:, 1], boxes[:, 3], width, self.size)
        columns = torch.where(flips[:, None, None], columns.flip(1), columns)
        cropped = torch.einsum("bth,bchw,bsw->bcts", rows, images.float(), columns)
        return cropped.round().clamp(0, 255).to(torch.uint8)


def _resizing_weights(start: Tensor, length: Tensor, num_pixels: int, size: int) -> Tensor:
    """Return the matrices [B, size, num_pixels] that cut `length` [B] pixels from `start` [B] on and resize them to `size`.

    Triangle filter, stretched where pixels get fewer: what PIL and PyTorch do with antialiasing.
    """
    scale = (length / size)[:, None, None]
    width = scale.clamp(min=1.0)
    centres = start[:, None, None] + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale  # [B, size, 1]
    pixels = torch.arange(num_pixels, device=start.device) + 0.5
    inside = (pixels > start[:, None, None]) & (pixels < (start + length)[:, None, None])
    weights = (1 - ((pixels - centres) / width).abs()).clamp(min=0) * inside
    normalized: Tensor = weights / weights.sum(dim=-1, keepdim=True)
    return normalized.float()


def _uniforms(seeds: Tensor, count: int) -> Tensor:
    """Return `count` numbers in [0, 1) for each of `seeds` [B] (below 2^31), float64 [B, count], by SplitMix64 (Steele et al. 2014)."""
    state = (seeds[:, None] * 2**20 + torch.arange(1, count + 1)) * _GOLDEN
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        state = (state ^ _shift_right(state, shift)) * factor
    return _shift_right(state ^ _shift_right(state, 31), 11).double() / 2**53


_GOLDEN, _MIX_1, _MIX_2 = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))  # as signed int64


def _shift_right(values: Tensor, count: int) -> Tensor:
    """Shift as if the int64 values were unsigned."""
    shifted: Tensor = (values >> count) & (2 ** (64 - count) - 1)
    return shifted


Views = ViewSpace | ResizedCrops


def apply_views(images: Tensor, views: Tensor, space: Views) -> Tensor:
    """Return the view of each of `images` [B, C, H, W] that its id in `views` [B] names; same dtype, on the images' device."""
    if isinstance(space, ResizedCrops):
        return space.apply(images, views)
    num_images, channels, height, width = images.shape
    device = images.device
    views = sent(views, device)
    crops = views.div(2, rounding_mode="floor") if space.has_flip else views
    top, left = crops.div(space.num_offsets, rounding_mode="floor"), crops.remainder(space.num_offsets)
    rows = top[:, None] + torch.arange(height, device=device)  # [B, H]
    columns = torch.arange(width, device=device).expand(num_images, width)  # [B, W]
    if space.has_flip:
        columns = torch.where(views.remainder(2).bool()[:, None], width - 1 - columns, columns)
    columns = columns + left[:, None]
    padded = pad(images, (space.padding,) * 4)
    return padded[
        torch.arange(num_images, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn uint8 images [B, C, H, W] into normalized floats [B, 3, H, W]; a single grey channel is repeated.

    `mean` and `std` are of the 0..1 range, one per channel.
    """
    scale, shift = _affine(mean, std, dtype, images.device)
    values = images.to(dtype) * scale - shift
    return values.expand(-1, 3, -1, -1) if values.shape[1] == 1 else values


@lru_cache(maxsize=16)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return scale and shift [1, C, 1, 1], made once per device, since making them copies from the host."""
    shape = (1, len(mean), 1, 1)
    scale = torch.tensor([1 / (255 * value) for value in std], dtype=dtype, device=device).view(shape)
    return scale, torch.tensor([m / s for m, s in zip(mean, std, strict=True)], dtype=dtype, device=device).view(shape)


def rotate_rows(images: Tensor, num_rotations: int) -> Tensor:
    """Return rows [B*M, C, H, W]: row M*b + j is image b turned j quarter turns counter-clockwise (square images)."""
    if num_rotations == 1:
        return images
    return torch.stack([torch.rot90(images, turns, dims=(2, 3)) for turns in range(num_rotations)], dim=1).flatten(0, 1)
