"""VGG with batch normalization (Simonyan and Zisserman 2015) in CRD's CIFAR form: convolutions with bias, head on a global average.

Conv groups 0, 1, 2 and 3+4 are the four stages; a stage that downsamples begins with its 2x2 max-pool. So c_4 is two groups deep. As in
the authors' code, the backbone has a fourth max-pool, between groups 3 and 4, where images are exactly 64 pixels high; branches never have.
"""

from functools import partial

from torch import Tensor, fx, nn

from hsakd.models.backbone import NETWORKS, BackboneSpec, HeightAwareStage, PartInit, Stage, conv
from hsakd.models.batch_norm import BatchNorm2d

WIDTHS = (64, 128, 256, 512, 512)
HEIGHT_WITH_FOURTH_POOL = 64


@fx.wrap
def fourth_pool(maps: Tensor, image_height: int | None) -> Tensor:
    """Pool the maps of images that are exactly 64 pixels high; a traced graph decides when it is called, not when it is traced."""
    return nn.functional.max_pool2d(maps, 2) if image_height == HEIGHT_WITH_FOURTH_POOL else maps


class LastGroups(HeightAwareStage):
    """Groups 3 and 4; `split` is the number of layers before group 4."""

    def __init__(self, layers: list[nn.Module], split: int) -> None:
        super().__init__(*layers)
        self.split = split

    def forward(self, maps: Tensor, image_height: int | None = None) -> Tensor:
        for index, layer in enumerate(self):
            if index == self.split:
                maps = fourth_pool(maps, image_height)
            maps = layer(maps)
        return maps


def vgg(convolutions: tuple[int, int, int, int, int], *, has_bn: bool) -> BackboneSpec:
    """`convolutions` per group; the last two groups are one stage."""

    def stage(groups: tuple[int, ...]) -> Stage:
        def build(in_channels: int, *, downsample: bool) -> nn.Module:
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if downsample and groups[0] > 0 else []
            split = 0
            for group in groups:
                split = len(layers)
                for _ in range(convolutions[group]):
                    layers.append(conv(in_channels, WIDTHS[group], 3, bias=True))
                    if has_bn:
                        layers.append(BatchNorm2d(WIDTHS[group]))
                    layers.append(nn.ReLU(inplace=True))
                    in_channels = WIDTHS[group]
            return LastGroups(layers, split) if len(groups) > 1 else nn.Sequential(*layers)

        return Stage(build=build, out_channels=WIDTHS[groups[-1]])

    return BackboneSpec(
        family="vgg",
        stem=nn.Identity,
        stem_channels=3,
        stages=tuple(stage(groups) for groups in ((0,), (1,), (2,), (3, 4))),
        neck=nn.Identity,
        out_channels=512,
        backbone_init=PartInit(conv="he", linear="normal", zero_bias=True),
        branch_init=PartInit(conv="torch"),
    )


for _depth, _convolutions in ((8, (1,) * 5), (11, (1, 1, 2, 2, 2)), (13, (2,) * 5), (16, (2, 2, 3, 3, 3)), (19, (2, 2, 4, 4, 4))):
    NETWORKS.register(f"vgg{_depth}_bn")(partial(vgg, _convolutions, has_bn=True))
    NETWORKS.register(f"vgg{_depth}")(partial(vgg, _convolutions, has_bn=False))
