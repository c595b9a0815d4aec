"""The finite view space of crop-and-flip augmentation, and the rotations t_j; batched, on the images' own device."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


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

    @property
    def identity(self) -> int:
        """The id of the centred, unmirrored view: the image as stored."""
        return (self.padding * self.num_offsets + self.padding) * (2 if self.has_flip else 1)


def apply_views(images: Tensor, views: Tensor, space: ViewSpace) -> Tensor:
    """Crop and mirror each of `images` [B, C, H, W] as its id in `views` [B] says; same shape and dtype, one gather."""
    num_images, channels, height, width = images.shape
    device = images.device
    views = views.to(device, non_blocking=True)
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
    return torch.stack([torch.rot90(images, turns, dims=(2, 3)) for turns in range(num_rotations)], dim=1).flatten(0, 1)
