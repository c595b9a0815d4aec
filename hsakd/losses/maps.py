"""Bringing student maps to the teacher's shape, or both to one size."""

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

Shape = tuple[int, int, int]  # (C, H, W)


def pooled_to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps [B, C, H, W] at the smaller of their sizes, the larger one average-pooled (CRD's rule for AT and VID)."""
    size = min(student.shape[-1], teacher.shape[-1])
    return _pooled(student, size), _pooled(teacher, size)


def _pooled(maps: Tensor, size: int) -> Tensor:
    return maps if maps.shape[-1] == size else adaptive_avg_pool2d(maps, size)


def convolutional_regressor(student: Shape, teacher: Shape, *, uses_relu: bool) -> nn.Sequential:
    """Return CRD's regressor for hints and activation boundaries: a convolution to the teacher's shape, BN, and a ReLU if asked for.

    Its kernel follows from the sizes: 3 with stride 2 where the student's maps are twice as large, 1 + their difference where they are
    larger or equal, transposed where they are smaller (models/util.py of CRD's repository).

    Raises:
        ValueError: the teacher's maps are larger by something else than a power of 2.
    """
    from torchdistill.models.adaptation import ConvReg

    channels, out_channels, size, target = student[0], teacher[0], student[1], teacher[1]
    if size >= target:
        kernel, stride, padding = (3, 2, 1) if size == 2 * target else (1 + size - target, 1, 0)
        regressor: nn.Sequential = ConvReg(channels, out_channels, kernel_size=kernel, stride=stride, padding=padding, uses_relu=uses_relu)
        return regressor
    ratio = target // size
    if size * ratio != target or ratio % 2:
        raise ValueError(f"student maps are {size} pixels wide; accepted for a teacher's {target}: larger ones, or half, a quarter, ...")
    widen = nn.ConvTranspose2d(channels, out_channels, 2 * ratio, stride=ratio, padding=ratio // 2)
    return nn.Sequential(widen, nn.BatchNorm2d(out_channels), *([nn.ReLU()] if uses_relu else []))
