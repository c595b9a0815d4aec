"""MobileNetV2 at half width (Sandler et al. 2018) in the distillation literature's CIFAR form: expansion 6, plain ReLU, linear taps.

Two networks share every shape: HSAKD's stem has stride 1 (25.7 M multi-adds), CRD's and SSKD's stride 2 (6.5 M).
"""

from functools import partial

from torch import Tensor, nn

from hsakd.models.backbone import NETWORKS, BackboneSpec, PartInit, Stage, conv, conv_bn_relu
from hsakd.models.batch_norm import BatchNorm2d

GROUPS = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
"""Expansion, output channels, repeats, stride of each group."""

NUM_CHANNELS = 1280


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1; skip connection where neither width nor resolution change."""

    def __init__(self, in_channels: int, out_channels: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.is_residual = stride == 1 and in_channels == out_channels
        self.body = nn.Sequential(
            *conv_bn_relu(in_channels, hidden, 1),
            conv(hidden, hidden, 3, stride=stride, groups=hidden),
            BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            conv(hidden, out_channels, 1),
            BatchNorm2d(out_channels),
        )

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.body(maps)
        return maps + result if self.is_residual else result


def mobilenetv2_half(stem_stride: int) -> BackboneSpec:
    """The half-width network with a stem of this stride."""

    def stage(groups: tuple[int, ...]) -> Stage:
        def build(in_channels: int, *, downsample: bool) -> nn.Module:
            blocks = []
            for expansion, out_channels, repeats, stride in (GROUPS[group] for group in groups):
                for index in range(repeats):
                    block_stride = stride if index == 0 and downsample else 1
                    blocks.append(InvertedResidual(in_channels, out_channels, expansion=expansion, stride=block_stride))
                    in_channels = out_channels
            return nn.Sequential(*blocks)

        return Stage(build=build, out_channels=GROUPS[groups[-1]][1])

    init = PartInit(conv="he", linear="normal", zero_bias=True)
    return BackboneSpec(
        family="mobilenetv2",
        stem=lambda: conv_bn_relu(3, 16, 3, stride=stem_stride),
        stem_channels=16,
        stages=tuple(stage(groups) for groups in ((0, 1), (2,), (3, 4), (5, 6))),
        neck=lambda: conv_bn_relu(GROUPS[-1][1], NUM_CHANNELS, 1),
        out_channels=NUM_CHANNELS,
        backbone_init=init,
        branch_init=init,
    )


NETWORKS.register("mobilenetv2_half")(partial(mobilenetv2_half, 1))
NETWORKS.register("mobilenetv2_half_s2")(partial(mobilenetv2_half, 2))
