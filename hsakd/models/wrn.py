"""Wide residual networks (Zagoruyko and Komodakis 2016): pre-activation blocks, so the taps are raw residual sums."""

from functools import partial

from torch import Tensor, nn

from hsakd.models.backbone import NETWORKS, BackboneSpec, PartInit, conv, residual_stages
from hsakd.models.batch_norm import BatchNorm2d


class PreActivationBlock(nn.Module):
    """BN, ReLU, 3x3, BN, ReLU, 3x3; where widths differ the shortcut is a bare 1x1 convolution of the activated input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3, stride=stride)
        self.bn2 = BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        activated = self.bn1(maps).relu_()
        shortcut: Tensor = maps if self.shortcut is None else self.shortcut(activated)
        residual: Tensor = self.conv2(self.bn2(self.conv1(activated)).relu_())
        return shortcut + residual


def wrn(depth: int, widening: int) -> BackboneSpec:
    """WRN-depth-widening with (depth - 4) / 6 blocks a stage."""
    widths = (16 * widening, 32 * widening, 64 * widening)
    return BackboneSpec(
        family="wrn",
        stem=lambda: conv(3, 16, 3),
        stem_channels=16,
        stages=residual_stages(PreActivationBlock, widths, ((depth - 4) // 6,) * 3),
        neck=lambda: nn.Sequential(BatchNorm2d(widths[-1]), nn.ReLU(inplace=True)),
        out_channels=widths[-1],
        backbone_init=PartInit(conv="he", zero_bias=True),
        branch_init=PartInit(conv="he", zero_bias=True),
    )


for _depth, _widening in ((40, 2), (40, 1), (16, 2), (16, 1), (28, 10), (16, 4), (28, 2)):
    NETWORKS.register(f"wrn_{_depth}_{_widening}")(partial(wrn, _depth, _widening))
