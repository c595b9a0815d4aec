"""ResNets: CIFAR (3 stages of basic blocks, depth 6n+2), CIFAR-sized ResNet-18/34/50, ImageNet ResNet-18/34/50."""

from functools import partial

from torch import nn

from hsakd.models.backbone import NETWORKS, BackboneSpec, PartInit, basic_block, bottleneck_block, conv_bn_relu, residual_stages


def cifar_resnet(depth: int, widths: tuple[int, int, int, int]) -> BackboneSpec:
    """`widths` are the stem's and the three stages' channels."""
    count = (depth - 2) // 6
    return BackboneSpec(
        family="cifar_resnet",
        stem=lambda: conv_bn_relu(3, widths[0], 3),
        stem_channels=widths[0],
        stages=residual_stages(basic_block, widths[1:], (count,) * 3),
        neck=nn.Identity,
        out_channels=widths[3],
        backbone_init=PartInit(conv="he"),
        branch_init=PartInit(conv="he", zero_bias=True),
    )


def wide_stem_resnet(counts: tuple[int, int, int, int], *, has_bottlenecks: bool, is_imagenet: bool) -> BackboneSpec:
    """Four stages; the ImageNet stem is a strided 7x7 convolution and a max-pool, the CIFAR stem one 3x3 convolution."""
    expansion = 4 if has_bottlenecks else 1
    widths = tuple(expansion * width for width in (64, 128, 256, 512))

    def stem() -> nn.Module:
        if is_imagenet:
            return nn.Sequential(*conv_bn_relu(3, 64, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
        return conv_bn_relu(3, 64, 3)

    return BackboneSpec(
        family="imagenet_resnet" if is_imagenet else "cifar_resnet_bottleneck" if has_bottlenecks else "cifar_resnet_wide",
        stem=stem,
        stem_channels=64,
        stages=residual_stages(bottleneck_block if has_bottlenecks else basic_block, widths, counts),
        neck=nn.Identity,
        out_channels=widths[-1],
        backbone_init=PartInit(conv="he"),
        branch_init=PartInit(conv="he"),
    )


for _depth in (8, 14, 20, 32, 44, 56, 110):
    NETWORKS.register(f"resnet{_depth}")(partial(cifar_resnet, _depth, (16, 16, 32, 64)))
for _depth in (8, 32):
    NETWORKS.register(f"resnet{_depth}x4")(partial(cifar_resnet, _depth, (32, 64, 128, 256)))
NETWORKS.register("resnet14x05")(partial(cifar_resnet, 14, (8, 8, 16, 32)))
NETWORKS.register("resnet20x05")(partial(cifar_resnet, 20, (8, 8, 16, 32)))
NETWORKS.register("resnet20x0375")(partial(cifar_resnet, 20, (6, 6, 12, 24)))
NETWORKS.register("resnet8_half")(partial(cifar_resnet, 8, (8, 8, 16, 32)))  # for CPU studies: not in the literature

_COUNTS = (
    ("18", (2, 2, 2, 2), False),
    ("34", (3, 4, 6, 3), False),
    ("50", (3, 4, 6, 3), True),
    ("101", (3, 4, 23, 3), True),
    ("152", (3, 8, 36, 3), True),
)
for _name, _counts, _has_bottlenecks in _COUNTS:
    NETWORKS.register(f"resnet{_name}")(partial(wide_stem_resnet, _counts, has_bottlenecks=_has_bottlenecks, is_imagenet=False))
for _name, _counts, _has_bottlenecks in _COUNTS[:3]:
    NETWORKS.register(f"resnet{_name}_imagenet")(partial(wide_stem_resnet, _counts, has_bottlenecks=_has_bottlenecks, is_imagenet=True))
