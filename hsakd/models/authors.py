"""The authors' names: their factories, and a bijection between our state-dict keys and theirs.

Their files hold `backbone.*` and `auxiliary_classifier.*`; a plain network's keys are the backbone's without the prefix. CRD and SSKD
(CIFAR backbones) and torchvision (ImageNet ResNets) use the same keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from hsakd.models.mobilenetv2 import GROUPS
from hsakd.models.network import Classifier, HierarchicalNet

AUTHORS_FACTORIES: Mapping[str, str] = {
    "resnet18": "ResNet18",
    "resnet34": "ResNet34",
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
    "mobilenetv2_half": "mobilenetV2",
    "shufflenet_v1": "ShuffleV1",
    "shufflenet_v2": "ShuffleV2",
}
"""Our name -> the authors' factory of the plain network, where they differ; `_aux` makes it hierarchical."""

_RESIDUAL_BODY = {"body.0": "conv1", "body.1": "bn1", "body.3": "conv2", "body.4": "bn2", "body.6": "conv3", "body.7": "bn3"}
_V2_BASIC_UNIT = {"right.0": "conv1", "right.1": "bn1", "right.3": "conv2", "right.4": "bn2", "right.5": "conv3", "right.6": "bn3"}
_V2_DOWN_UNIT = {
    **{"left.0": "conv1", "left.1": "bn1", "left.2": "conv2", "left.3": "bn2"},
    **{"right.0": "conv3", "right.1": "bn3", "right.3": "conv4", "right.4": "bn4", "right.5": "conv5", "right.6": "bn5"},
}
_CONV_BN_STEM = {"0": "conv1", "1": "bn1"}


@dataclass(frozen=True, kw_only=True, slots=True)
class AuthorsLayout:
    """How one family's modules are called there.

    `inner` renames the first one or two parts of a path inside a block, `first_inner` those of a stage's first block; `neck` and
    `branch_neck` rename the neck's layers ("" is a layer that is the neck itself), `{0}` is l.
    """

    head: str
    stage: str = "layer{0}."
    branch_stage: str = ""
    stem: Mapping[str, str] = field(default_factory=lambda: _CONV_BN_STEM)
    inner: Mapping[str, str] = field(default_factory=dict)
    first_inner: Mapping[str, str] | None = None
    neck: Mapping[str, str] = field(default_factory=dict)
    branch_neck: Mapping[str, str] = field(default_factory=dict)


_LAYOUTS: Mapping[str, AuthorsLayout] = {
    "wrn": AuthorsLayout(
        head="fc",
        stage="block{0}.layer.",
        branch_stage="layer.",
        stem={"": "conv1"},
        inner={"shortcut": "convShortcut"},
        neck={"0": "bn1"},
        branch_neck={"0": "bn{0}"},
    ),
    "cifar_resnet": AuthorsLayout(head="fc", inner={**_RESIDUAL_BODY, "shortcut": "downsample"}),
    "imagenet_resnet": AuthorsLayout(head="fc", inner={**_RESIDUAL_BODY, "shortcut": "downsample"}),
    "cifar_resnet_wide": AuthorsLayout(head="linear", inner=_RESIDUAL_BODY),
    "cifar_resnet_bottleneck": AuthorsLayout(head="linear", inner=_RESIDUAL_BODY),
    "vgg": AuthorsLayout(head="classifier"),
    "mobilenetv2": AuthorsLayout(
        head="classifier",
        stem={"0": "conv1.0", "1": "conv1.1"},
        inner={"body": "conv"},
        neck={"0": "conv2.0", "1": "conv2.1"},
        branch_neck={"0": "conv2_{0}.0", "1": "conv2_{0}.1"},
    ),
    "shufflenet_v1": AuthorsLayout(head="linear"),
    "shufflenet_v2": AuthorsLayout(
        head="linear", inner=_V2_BASIC_UNIT, first_inner=_V2_DOWN_UNIT, neck={"0": "conv2", "1": "bn2"}, branch_neck={}
    ),
}

_MOBILENET_STAGES = ((0, 1), (2,), (3, 4), (5, 6))


def has_authors_layout(network: HierarchicalNet) -> bool:
    """Tell whether the authors' code has this network's family."""
    return network.spec.family in _LAYOUTS


def authors_keys(network: HierarchicalNet) -> dict[str, str]:
    """Return {our key: the authors' key} for the whole network, in the order of the authors' state dict."""
    layout = _LAYOUTS[network.spec.family]
    ranked = []
    for key in network.state_dict():
        part, _, rest = key.partition(".")
        if part == "backbone":
            theirs, rank = _backbone_key(network, layout, rest)
            ranked.append((rank, 0, key, f"backbone.{theirs}"))
        else:
            tap, _, rest = rest.partition(".")
            theirs, rank = _branch_key(network, layout, int(tap), rest)
            ranked.append((rank, int(tap), key, f"auxiliary_classifier.{theirs}"))
    ranked.sort(key=lambda entry: entry[:2])
    return {ours: theirs for _, _, ours, theirs in ranked}


def _backbone_key(network: HierarchicalNet, layout: AuthorsLayout, key: str) -> tuple[str, int]:
    kind, _, rest = key.partition(".")
    if kind == "stem":
        return _renamed(layout.stem, rest), 0
    if kind == "neck":
        return _renamed(layout.neck, rest), 2
    if kind == "head":
        return f"{layout.head}.{rest}", 3
    stage_text, block_text, inner = rest.split(".", 2)
    stage, block = int(stage_text), int(block_text)
    if network.spec.family == "vgg":
        group, layer = _vgg_position(network.backbone.stages[stage], block, is_last=stage == network.num_branches - 1)[:2]
        return f"block{stage + group}.{layer}.{inner}", 1
    if network.spec.family == "mobilenetv2":
        group, block = _mobilenet_position(stage, block)
        return f"blocks.{_MOBILENET_STAGES[stage][group]}.{block}.{_inner(layout, block, inner)}", 1
    return f"{layout.stage.format(stage + 1)}{block}.{_inner(layout, block, inner)}", 1


def _branch_key(network: HierarchicalNet, layout: AuthorsLayout, tap: int, key: str) -> tuple[str, int]:
    kind, _, rest = key.partition(".")
    classifier = network.auxiliary_classifiers[str(tap)]
    assert isinstance(classifier, Classifier)
    stages = list(classifier.stages.children())
    if kind == "neck" and network.spec.neck_in_extractor:
        layer, _, leaf = rest.partition(".")
        return f"block_extractor{tap}.{len(stages) + int(layer)}.{leaf}", 4
    if kind == "neck":
        return _renamed(layout.branch_neck, rest).format(tap), 5
    if kind == "head":
        return f"fc{tap}.{rest}", 6
    index_text, block_text, inner = rest.split(".", 2)
    index, block = int(index_text), int(block_text)
    num_stages = network.num_branches
    backbone_stage = min(tap + index, num_stages - 1)
    position = index
    if network.spec.family == "vgg":
        # There each group is followed by a ReLU of its own, and preceded by its pool, as siblings in one Sequential.
        earlier = sum(_vgg_siblings(stage) for stage in stages[:index])
        group, position, has_pool = _vgg_position(stages[index], block, is_last=backbone_stage == num_stages - 1)
        return f"block_extractor{tap}.{earlier + has_pool + 2 * group}.{position}.{inner}", 4
    if network.spec.family == "mobilenetv2":
        group, block = _mobilenet_position(backbone_stage, block)
        position = sum(len(_MOBILENET_STAGES[tap + earlier]) for earlier in range(index)) + group
    return f"block_extractor{tap}.{position}.{layout.branch_stage}{block}.{_inner(layout, block, inner)}", 4


def _inner(layout: AuthorsLayout, block: int, path: str) -> str:
    return _renamed(layout.first_inner if block == 0 and layout.first_inner is not None else layout.inner, path)


def _renamed(names: Mapping[str, str], path: str) -> str:
    """Replace the longest known prefix of a dotted path."""
    parts = path.split(".")
    for length in (2, 1):
        prefix = ".".join(parts[:length])
        if prefix in names:
            return ".".join((names[prefix], *parts[length:]))
    return f"{names['']}.{path}" if "" in names else path


def _vgg_position(stage: nn.Module, layer: int, *, is_last: bool) -> tuple[int, int, int]:
    """Return (group within the stage, layer within the group, 1 if the stage begins with a pool)."""
    layers = list(stage.children())
    has_pool = int(isinstance(layers[0], nn.MaxPool2d))
    group, position = divmod(layer - has_pool, (len(layers) - has_pool) // (2 if is_last else 1))
    return group, position, has_pool


def _vgg_siblings(stage: nn.Module) -> int:
    """Return how many siblings (pool, group, ReLU) the authors make of a stage that isn't the last."""
    return 2 + int(isinstance(next(stage.children()), nn.MaxPool2d))


def _mobilenet_position(stage: int, block: int) -> tuple[int, int]:
    """Return (group within the stage, block within the group)."""
    for group, group_number in enumerate(_MOBILENET_STAGES[stage]):
        repeats = GROUPS[group_number][2]
        if block < repeats:
            return group, block
        block -= repeats
    raise AssertionError("a block beyond the stage's last group")
