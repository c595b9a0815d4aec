"""`HierarchicalNet`: a backbone and its auxiliary classifiers. The one forward, and the one builder of c_l."""

from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn

from hsakd.models.backbone import NETWORKS, BackboneSpec, HeightAwareStage, PartInit
from hsakd.models.timm_networks import timm_spec
from hsakd.network_table import TIMM
from hsakd.seeds import seed_of

Initialization = Literal["he", "authors"]


class Output(NamedTuple):
    """What a network says of R rows: class logits, the joint logits of the computed branches in rising order, all L tapped maps, and
    the embedding, which is what the backbone's linear layer reads.
    """

    logits: Tensor  # [R, N]
    joint_logits: tuple[Tensor, ...]  # [R, M*N] each; joint class k = y*M + j
    features: tuple[Tensor, ...]  # [R, C_l, H_l, W_l] each
    embedding: Tensor  # [R, C]

    @classmethod
    def nothing(cls, rows: Tensor) -> "Output":
        """Return what stands for a network that nobody reads: no logits, maps or embedding [R, 0]."""
        return cls(logits=rows.new_empty(len(rows), 0), joint_logits=(), features=(), embedding=rows.new_empty(len(rows), 0))


class Classifier(nn.Module):
    """Stages, neck, global average pooling, linear layer: the backbone's tail and every auxiliary classifier alike."""

    def __init__(self, stages: nn.ModuleList, neck: nn.Module, in_channels: int, num_outputs: int) -> None:
        super().__init__()
        self.stages = stages
        self.neck = neck
        self.head = nn.Linear(in_channels, num_outputs)

    def embed(self, maps: Tensor) -> Tensor:
        """Return the pooled maps [R, C] of the last stage's maps: what the linear layer reads."""
        embedding: Tensor = self.neck(maps).mean(dim=(2, 3))
        return embedding

    def classify(self, maps: Tensor) -> Tensor:
        """Return logits [R, num_outputs] of the last stage's maps."""
        logits: Tensor = self.head(self.embed(maps))
        return logits

    def forward(self, maps: Tensor) -> Tensor:
        for stage in self.stages:
            maps = stage(maps)
        return self.classify(maps)


class Backbone(Classifier):
    """Stem, then a classifier whose stages' outputs are the taps."""

    def __init__(self, spec: BackboneSpec, num_classes: int) -> None:
        widths = (spec.stem_channels, *(stage.out_channels for stage in spec.stages))
        own_stages = spec.stages if spec.extractor is None else ()
        stages = nn.ModuleList(stage.build(widths[index], downsample=True) for index, stage in enumerate(own_stages))
        super().__init__(stages, spec.neck(), spec.out_channels, num_classes)
        self.stem = spec.stem()
        self.extractor = None if spec.extractor is None else spec.extractor()

    def stage_maps(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of all L stages."""
        if self.extractor is not None:
            extracted: tuple[Tensor, ...] = self.extractor(rows)
            return extracted
        maps, outputs = self.stem(rows), []
        for stage in self.stages:
            maps = stage(maps, rows.shape[2]) if isinstance(stage, HeightAwareStage) else stage(maps)
            outputs.append(maps)
        return tuple(outputs)


def _name_state_dict(network: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Leave the network's name in a state dict's metadata: MobileNetV2's two stem strides have equal keys and shapes."""
    del state, prefix
    assert isinstance(network, HierarchicalNet)
    metadata["network"] = network.name


class HierarchicalNet(nn.Module):
    """A backbone with auxiliary classifiers c_l at `taps`, in M rotations.

    c_l is a fresh copy of stages l+1..L, the backbone's own neck, global pooling and a linear layer of width M*N; c_L is the last stage
    again without downsampling (section 3.2 of the paper, appendix of the authors' code).

    Raises:
        ValueError: a tap is not one of the network's stages, or they don't rise.
    """

    def __init__(self, name: str, spec: BackboneSpec, *, num_classes: int, num_rotations: int, taps: tuple[int, ...] | None) -> None:
        super().__init__()
        num_stages = len(spec.stages)
        self.taps = tuple(range(1, num_stages + 1)) if taps is None else tuple(taps)
        if list(self.taps) != sorted(set(self.taps) & set(range(1, num_stages + 1))):
            raise ValueError(f"taps is {self.taps}; accepted for {name}: rising stage numbers from 1 to {num_stages}")
        self.name, self.spec = name, spec
        self.num_classes, self.num_rotations, self.num_branches = num_classes, num_rotations, num_stages
        self.is_frozen = False
        self.peer: HierarchicalNet | None = None  # in online mutual distillation: trained with this network, never part of its forward
        self.backbone = Backbone(spec, num_classes)
        self.auxiliary_classifiers = nn.ModuleDict({str(tap): self._auxiliary_classifier(tap) for tap in self.taps})
        self.register_state_dict_post_hook(_name_state_dict)  # type: ignore[no-untyped-call]

    @classmethod
    def on_meta(
        cls, name: str, *, num_classes: int, num_rotations: int = 4, taps: tuple[int, ...] | None = None, spec: BackboneSpec | None = None
    ) -> Self:
        """Return the network without memory: for counting, shapes and keys."""
        with torch.device("meta"):
            return cls(name, spec or find_spec(name), num_classes=num_classes, num_rotations=num_rotations, taps=taps)

    def _auxiliary_classifier(self, tap: int) -> Classifier:
        spec = self.spec
        width = spec.stages[tap - 1].out_channels
        if tap == len(spec.stages):
            stages = [spec.stages[-1].build(width, downsample=False)]
        else:
            widths = [stage.out_channels for stage in spec.stages]
            stages = [spec.stages[index].build(widths[index - 1], downsample=True) for index in range(tap, len(spec.stages))]
        return Classifier(nn.ModuleList(stages), spec.neck(), spec.out_channels, self.num_rotations * self.num_classes)

    def freeze_backbone(self, *, trains_head: bool = False) -> None:
        """Keep the backbone as it is from now on: no gradient, eval mode even while the branches train, nothing sent into it.

        With `trains_head` its linear layer is trained (a linear probe).
        """
        self.is_frozen = True
        self.backbone.requires_grad_(False)
        self.backbone.head.requires_grad_(trains_head)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self

    def forward(self, rows: Tensor, *, branches: tuple[int, ...] | None = None) -> Output:
        """Classify rows [R, 3, H, W]; `branches` are the taps to compute (None: all that exist)."""
        maps = self.backbone.stage_maps(rows)
        features = tuple(map_.detach() for map_ in maps) if self.is_frozen else maps
        chosen = self.taps if branches is None else branches
        joint_logits = tuple(self.auxiliary_classifiers[str(tap)](features[tap - 1]) for tap in chosen)
        embedding = self.backbone.embed(maps[-1])
        return Output(logits=self.backbone.head(embedding), joint_logits=joint_logits, features=features, embedding=embedding)


def create_network(
    name: str,
    *,
    num_classes: int,
    num_rotations: int = 4,
    taps: tuple[int, ...] | None = None,
    seed: int = 0,
    initialization: Initialization = "he",
) -> HierarchicalNet:
    """Return a network by its name, with initial weights that depend on (name, module, seed) only, never on which taps exist.

    `taps` are the 1-based stages with an auxiliary classifier (None: all, (): a plain network).

    Raises:
        KeyError: an unknown name; the message lists the known ones.
        ValueError: a tap that the network doesn't have, a class count below 1, an unknown initialization, a timm model that can't be used.
    """
    spec = find_spec(name, seed=seed)
    if num_classes < 1 or num_rotations < 1:
        raise ValueError(f"num_classes is {num_classes}, num_rotations {num_rotations}; accepted: 1 or more")
    if initialization not in get_args(Initialization):
        raise ValueError(f"initialization is {initialization!r}; accepted: {', '.join(get_args(Initialization))}")
    network = HierarchicalNet(name, spec, num_classes=num_classes, num_rotations=num_rotations, taps=taps)
    initialize(network, seed=seed, initialization=initialization)
    return network


def find_spec(name: str, *, seed: int = 0) -> BackboneSpec:
    """Return the stage table of a name: a registered network, or `timm/<model>`."""
    return timm_spec(name, seed_of(name, "extractor", seed)) if name.startswith(TIMM) else NETWORKS[name]()


HE_INIT = PartInit(conv="he", zero_bias=True)


def initialize(network: HierarchicalNet, *, seed: int, initialization: Initialization) -> None:
    """Draw all weights anew, each from a generator of its own.

    "he" is one rule for all: convolutions He-normal by fan-out (of k*k*out channels), BN 1 and 0, linear weights PyTorch's default, all
    biases 0. "authors" follows each family's rule as measured (their families differ by accident).
    """
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not path.startswith("backbone.extractor") and not module.weight.is_meta:
            own = network.spec.backbone_init if path.startswith("backbone") else network.spec.branch_init
            _initialize_layer(module, seed_of(network.name, path, seed), HE_INIT if initialization == "he" else own)


def _initialize_layer(layer: nn.Conv2d | nn.Linear, seed: int, rule: PartInit) -> None:
    generator = torch.Generator().manual_seed(seed)
    bound = layer.weight[0].numel() ** -0.5
    kind = rule.conv if isinstance(layer, nn.Conv2d) else rule.linear
    with torch.no_grad():
        if kind == "he":
            layer.weight.normal_(0, (2 / (layer.weight[0, 0].numel() * layer.weight.shape[0])) ** 0.5, generator=generator)
        elif kind == "normal":
            layer.weight.normal_(0, 0.01, generator=generator)
        else:
            layer.weight.uniform_(-bound, bound, generator=generator)
        if layer.bias is not None:
            if kind == "torch" and not rule.zero_bias:
                layer.bias.uniform_(-bound, bound, generator=generator)
            else:
                layer.bias.zero_()
