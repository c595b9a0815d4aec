"""A backbone is data: a stem, a table of stages, a neck and a head; every family is one such table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

from hsakd.models.batch_norm import BatchNorm2d
from hsakd.models.strided_depthwise import StridedDepthwiseConv2d
from hsakd.registry import Registry


class StageBuilder(Protocol):
    """Makes a stage for an input of `in_channels`; with `downsample` False it keeps the resolution (c_L's stage)."""

    def __call__(self, in_channels: int, *, downsample: bool) -> nn.Module: ...


class HeightAwareStage(nn.Sequential):
    """A stage that does something else in a backbone for images of some height [pixels]; branches call it without."""

    def forward(self, maps: Tensor, image_height: int | None = None) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One row of the stage table: how to build the stage, and the width of its output, the tap of c_l."""

    build: StageBuilder
    out_channels: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PartInit:
    """The authors' initialization of one part (backbone or branches) of a family, as measured.

    `conv` is He-normal by fan-out or PyTorch's default; `linear` is PyTorch's default or N(0, 0.01); `zero_bias` zeroes linear biases.
    """

    conv: Literal["he", "torch"]
    linear: Literal["torch", "normal"] = "torch"
    zero_bias: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneSpec:
    """A whole backbone: `stem()` gives `stem_channels` maps, `neck()` stands between the last stage and global pooling.

    `neck_in_extractor` tells where the authors' files keep a branch's neck (ShuffleNetV2: inside, others: outside);
    `prefers_channels_last` is the family's measured preference on CPUs (all so far). `extractor`, if there is one, stands for stem and
    stages in the backbone (a timm model): rows -> the maps of all stages.
    """

    family: str
    stem: Callable[[], nn.Module]
    stem_channels: int
    stages: tuple[Stage, ...]
    neck: Callable[[], nn.Module]
    out_channels: int
    backbone_init: PartInit
    branch_init: PartInit
    neck_in_extractor: bool = False
    prefers_channels_last: bool = True
    extractor: Callable[[], nn.Module] | None = None


SpecFactory = Callable[[], BackboneSpec]
NETWORKS: Registry[SpecFactory] = Registry("network")


def conv(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """Return a convolution with "same" padding."""
    is_strided_depthwise = stride > 1 and groups == in_channels == out_channels
    build = StridedDepthwiseConv2d if is_strided_depthwise else nn.Conv2d
    return build(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias)


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    """Return convolution, batch normalization, ReLU (in place, here and elsewhere: nobody else reads what it overwrites)."""
    return nn.Sequential(conv(in_channels, out_channels, kernel, stride=stride), BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def repeat_blocks(
    block: Callable[[int, int, int], nn.Module], in_channels: int, out_channels: int, count: int, stride: int
) -> nn.Sequential:
    """Return `count` blocks (in, out, stride); the first changes width and resolution."""
    return nn.Sequential(*(block(in_channels if i == 0 else out_channels, out_channels, stride if i == 0 else 1) for i in range(count)))


class Residual(nn.Module):
    """x -> activation(body(x) + shortcut(x)); post-activation."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, maps: Tensor) -> Tensor:
        summed: Tensor = self.body(maps) + self.shortcut(maps)
        return summed.relu_()


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the identity, or a 1x1 convolution with BN where width or resolution change."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv(in_channels, out_channels, 1, stride=stride), BatchNorm2d(out_channels))


def basic_block(in_channels: int, out_channels: int, stride: int) -> Residual:
    """Two 3x3 convolutions (He et al. 2016)."""
    body = nn.Sequential(
        *conv_bn_relu(in_channels, out_channels, 3, stride=stride), conv(out_channels, out_channels, 3), BatchNorm2d(out_channels)
    )
    return Residual(body, projection(in_channels, out_channels, stride))


def bottleneck_block(in_channels: int, out_channels: int, stride: int) -> Residual:
    """1x1, 3x3 (strided), 1x1 with an expansion of 4 (He et al. 2016)."""
    width = out_channels // 4
    body = nn.Sequential(
        *conv_bn_relu(in_channels, width, 1),
        *conv_bn_relu(width, width, 3, stride=stride),
        conv(width, out_channels, 1),
        BatchNorm2d(out_channels),
    )
    return Residual(body, projection(in_channels, out_channels, stride))


def residual_stages(block: Callable[[int, int, int], nn.Module], widths: tuple[int, ...], counts: tuple[int, ...]) -> tuple[Stage, ...]:
    """Return stages of `counts` blocks; all but the first downsample by 2."""

    def stage(index: int, width: int, count: int) -> Stage:
        def build(in_channels: int, *, downsample: bool) -> nn.Module:
            return repeat_blocks(block, in_channels, width, count, 2 if downsample and index > 0 else 1)

        return Stage(build=build, out_channels=width)

    return tuple(stage(index, width, count) for index, (width, count) in enumerate(zip(widths, counts, strict=True)))
