"""Beyond the paper: any timm model with stage features, named `timm/<model>`.

timm gives the maps of its last (at most 4) stages. c_l continues from map l with one basic residual block per later stage, of that stage's
width and resolution; c_L adds one block that keeps both. The backbone keeps timm's own initialization, drawn from the seed.
"""

import warnings
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hsakd.models.backbone import BackboneSpec, PartInit, Stage, basic_block
from hsakd.network_table import TIMM

MAX_TAPS = 4
ANY_SIZE: tuple[dict[str, Any], ...] = ({}, {"strict_img_size": False}, {"dynamic_img_size": True})
"""timm's switches for models that are made for images of one size (Swin's, ViT's), tried in this order."""


class TimmExtractor(nn.Module):
    """The feature maps [R, C, H, W] of a timm model, shallow to deep; some (Swin, MambaOut) give [R, H, W, C]."""

    def __init__(self, model: nn.Module, *, ends_in_channels: bool) -> None:
        super().__init__()
        self.model = model
        self.ends_in_channels = ends_in_channels

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        maps = tuple(self.model(rows))
        return tuple(one.permute(0, 3, 1, 2) for one in maps) if self.ends_in_channels else maps


def timm_spec(name: str, seed: int) -> BackboneSpec:
    """Return the spec of `timm/<model>`, its weights drawn from `seed`.

    Raises:
        ValueError: timm isn't installed, has no such model, or the model has no stage features as [R, C, H, W] maps.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"network {name!r} needs timm; install the extra: pip install '.[timm]'") from error
    model_name = name.removeprefix(TIMM)
    if not timm.is_model(model_name):
        near = ", ".join(timm.list_models(f"*{model_name[:6]}*")[:8]) or "see timm.list_models()"
        raise ValueError(f"network {name!r}: timm has no model {model_name!r}; known: {near}")

    def create(**options: Any) -> Any:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            return timm.create_model(model_name, pretrained=False, features_only=True, **options)

    problem: Exception | None = None
    for switches in ANY_SIZE:
        try:
            with torch.device("meta"):
                num_maps = len(create(**switches).feature_info)
            options = {"out_indices": tuple(range(max(0, num_maps - MAX_TAPS), num_maps)), **switches}
            model = create(**options)
            channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
            with torch.no_grad():
                shapes = [tuple(one.shape) for one in model.eval()(torch.zeros(1, 3, 64, 64))]
            break
        except Exception as error:
            problem = problem or error
    else:
        raise ValueError(f"network {name!r}: no stage features at 64 px ({problem})") from problem
    channel_axis = next((axis for axis in (1, 3) if [shape[axis:][:1] for shape in shapes] == [(width,) for width in channels]), None)
    if channel_axis is None or any(len(shape) != 4 for shape in shapes):
        raise ValueError(f"network {name!r}: its stage features aren't maps of {tuple(channels)} channels, but {shapes}")

    def stage(width: int, stride: int) -> Stage:
        def build(in_channels: int, *, downsample: bool) -> nn.Module:
            return nn.Sequential(basic_block(in_channels, width, stride if downsample else 1))

        return Stage(build=build, out_channels=width)

    strides = (1, *(max(1, later // earlier) for earlier, later in pairwise(reductions)))
    return BackboneSpec(
        family="timm",
        stem=nn.Identity,
        stem_channels=3,
        stages=tuple(stage(width, stride) for width, stride in zip(channels, strides, strict=True)),
        neck=nn.Identity,
        out_channels=channels[-1],
        backbone_init=PartInit(conv="torch"),
        branch_init=PartInit(conv="he", zero_bias=True),
        extractor=lambda: TimmExtractor(create(**options), ends_in_channels=channel_axis == 3),
    )
