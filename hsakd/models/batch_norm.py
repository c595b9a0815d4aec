"""Batch normalization whose batch statistics keep their digits in channels-last float32 on CPUs, too."""

from typing import Any

import torch
from torch import Tensor, nn

MOST_PARTS = 16
LEAST_VALUES = 512  # of a channel in a part; fewer are added up well enough, and each part costs some microseconds


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's, with statistics taken in parts where PyTorch's are inexact: maps [R, C, H, W] in training, channels last, float32, CPU.

    There, PyTorch adds up a channel's R*H*W values one after another in float32 (in NCHW it sums in float64), which costs the losses
    of ShuffleNets two digits. Up to 16 parts, merged in float64, give most of them back for 1 to 10 % of a step.
    """

    def forward(self, maps: Tensor) -> Tensor:
        normalized: Tensor
        if not self.training or torch.compiler.is_compiling() or not _sums_inexactly(maps):
            return super().forward(maps)
        mean, variance = batch_statistics(maps.detach())
        if self.track_running_stats:
            self._keep(mean, variance, maps.numel() // maps.shape[1])
        normalized = _Normalize.apply(maps, self.weight, self.bias, mean, variance, self.eps)
        return normalized

    def _keep(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics towards a batch's [C] of `count` values a channel."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


def batch_statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance [C] of channels-last maps [R, C, H, W], taken in parts."""
    rows, channels, height, width = maps.shape
    num_lines = rows * height
    size = -(-num_lines // min(MOST_PARTS, max(1, num_lines * width // LEAST_VALUES)))
    parts = torch.split(maps.permute(0, 2, 3, 1).reshape(num_lines, 1, width, channels).permute(0, 3, 1, 2), size)
    means, variances = zip(*(torch.batch_norm_update_stats(part, None, None, 0.0) for part in parts), strict=True)
    if len(parts) == 1:
        return means[0], variances[0]
    shares = torch.full((1, len(parts)), size / num_lines, dtype=torch.float64)
    shares[0, -1] = len(parts[-1]) / num_lines
    moments = torch.stack(means).double()
    mean = shares @ moments
    variance = shares @ moments.square_().add_(torch.stack(variances)) - mean.square()
    return mean[0].float(), variance[0].float()


def _sums_inexactly(maps: Tensor) -> bool:
    is_channels_last = maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
    return is_channels_last and maps.device.type == "cpu" and maps.dtype == torch.float32


class _Normalize(torch.autograd.Function):
    """Normalize by given batch statistics; the gradient is batch normalization's in training."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(maps, weight, mean, (variance + eps).rsqrt())
        ctx.eps = eps
        normalized: Tensor = torch.native_batch_norm(maps, weight, bias, mean, variance, False, 0.0, eps)[0]
        return normalized

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, mean, inverse_std = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.native_batch_norm_backward(*gradients, maps, weight, None, None, mean, inverse_std, True, ctx.eps, wanted)
        return (*found, None, None, None)
