"""ShuffleNetV1 (g = 3, Zhang et al. 2018) and ShuffleNetV2 (1x, Ma et al. 2018) in the distillation literature's CIFAR form."""

import torch
from torch import Tensor, fx, nn

from hsakd.models.backbone import NETWORKS, BackboneSpec, PartInit, Stage, conv, conv_bn_relu
from hsakd.models.batch_norm import BatchNorm2d

V1_GROUPS = 3
V1_STEM_CHANNELS = 24
V1_WIDTHS = (240, 480, 960)
V2_WIDTHS = (116, 232, 464)
V2_NECK_CHANNELS = 1024
UNITS = (4, 8, 4)


@fx.wrap
def shuffle_channels(maps: Tensor, groups: int) -> Tensor:
    """Interleave the channel groups of maps [R, C, H, W], in the memory format they have (converting them costs a sixth of a step)."""
    rows, channels, height, width = maps.shape
    if maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous():
        last = maps.permute(0, 2, 3, 1).view(rows, height, width, groups, channels // groups)
        return last.transpose(3, 4).reshape(rows, height, width, channels).permute(0, 3, 1, 2)
    return maps.view(rows, groups, channels // groups, height, width).transpose(1, 2).reshape(rows, channels, height, width)


class V1Unit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3 (ReLU after it, too), grouped 1x1; added to its input, or concatenated with it pooled."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        own_channels = out_channels - in_channels if stride == 2 else out_channels
        middle = own_channels // 4
        self.groups = 1 if in_channels == V1_STEM_CHANNELS else V1_GROUPS
        self.conv1 = conv(in_channels, middle, 1, groups=self.groups)
        self.bn1 = BatchNorm2d(middle)
        self.conv2 = conv(middle, middle, 3, stride=stride, groups=middle)
        self.bn2 = BatchNorm2d(middle)
        self.conv3 = conv(middle, own_channels, 1, groups=V1_GROUPS)
        self.bn3 = BatchNorm2d(own_channels)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, maps: Tensor) -> Tensor:
        result = shuffle_channels(self.bn1(self.conv1(maps)).relu_(), self.groups)
        result = self.bn3(self.conv3(self.bn2(self.conv2(result)).relu_()))
        return (result + maps if self.pool is None else torch.cat([result, self.pool(maps)], dim=1)).relu_()


class V2DownUnit(nn.Module):
    """Both paths see all channels; with stride 1 (c_3's stage) both are kept."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.left = nn.Sequential(
            conv(in_channels, in_channels, 3, stride=stride, groups=in_channels),
            BatchNorm2d(in_channels),
            *conv_bn_relu(in_channels, half, 1),
        )
        self.right = v2_path(in_channels, half, stride)

    def forward(self, maps: Tensor) -> Tensor:
        return shuffle_channels(torch.cat([self.left(maps), self.right(maps)], dim=1), 2)


class V2BasicUnit(nn.Module):
    """The first half of the channels is kept, the second transformed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.right = v2_path(channels // 2, channels // 2, 1)

    def forward(self, maps: Tensor) -> Tensor:
        kept, changed = maps.chunk(2, dim=1)
        return shuffle_channels(torch.cat([kept, self.right(changed)], dim=1), 2)


def v2_path(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """1x1, depthwise 3x3 (no ReLU after it), 1x1."""
    return nn.Sequential(
        *conv_bn_relu(in_channels, out_channels, 1),
        conv(out_channels, out_channels, 3, stride=stride, groups=out_channels),
        BatchNorm2d(out_channels),
        *conv_bn_relu(out_channels, out_channels, 1),
    )


@NETWORKS.register("shufflenet_v1")
def shufflenet_v1() -> BackboneSpec:
    """A 1x1 stem, no max-pool."""

    def stage(width: int, count: int) -> Stage:
        def build(in_channels: int, *, downsample: bool) -> nn.Module:
            first = V1Unit(in_channels, width, 2 if downsample else 1)
            return nn.Sequential(first, *(V1Unit(width, width, 1) for _ in range(count - 1)))

        return Stage(build=build, out_channels=width)

    return BackboneSpec(
        family="shufflenet_v1",
        stem=lambda: conv_bn_relu(3, V1_STEM_CHANNELS, 1),
        stem_channels=V1_STEM_CHANNELS,
        stages=tuple(stage(width, count) for width, count in zip(V1_WIDTHS, UNITS, strict=True)),
        neck=nn.Identity,
        out_channels=V1_WIDTHS[-1],
        backbone_init=PartInit(conv="torch"),
        branch_init=PartInit(conv="he", zero_bias=True),
    )


@NETWORKS.register("shufflenet_v2")
def shufflenet_v2() -> BackboneSpec:
    """A 1x1 stem; a 1x1 convolution to 1,024 channels is the neck."""

    def stage(width: int, count: int) -> Stage:
        def build(in_channels: int, *, downsample: bool) -> nn.Module:
            first = V2DownUnit(in_channels, width, 2 if downsample else 1)
            return nn.Sequential(first, *(V2BasicUnit(width) for _ in range(count - 1)))

        return Stage(build=build, out_channels=width)

    return BackboneSpec(
        family="shufflenet_v2",
        stem=lambda: conv_bn_relu(3, 24, 1),
        stem_channels=24,
        stages=tuple(stage(width, count) for width, count in zip(V2_WIDTHS, UNITS, strict=True)),
        neck=lambda: conv_bn_relu(V2_WIDTHS[-1], V2_NECK_CHANNELS, 1),
        out_channels=V2_NECK_CHANNELS,
        backbone_init=PartInit(conv="torch"),
        branch_init=PartInit(conv="torch"),
        neck_in_extractor=True,
    )
