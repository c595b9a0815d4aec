"""Weight files of the field into our networks, and ours out: formats are recognized by content, nothing is executed, wrong files fail.

`authors_keys.json.gz` lists the tensors of the authors' networks in state_dict order; within backbone, extractor, neck and fc our modules
register theirs in the same order, so the mapping is by position, checked by shape.
"""

import gzip
import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hsakd.models.network import HierarchicalNet
from hsakd.records import replacing

Origin = Literal["hsakd", "crd", "sskd"]
OUR_FORMAT = "hsakd-sweeper"
AUTHORS_NAMES = {
    "resnet50": "ResNet50",
    "resnet18": "ResNet18",
    "resnet34": "ResNet34",
    "mobilenetv2_half": "mobilenetV2",
    "mobilenetv2_half_s2": "mobilenetV2",
    "shufflenet_v1": "ShuffleV1",
    "shufflenet_v2": "ShuffleV2",
}
MOBILENET_OF_ORIGIN = {"hsakd": "mobilenetv2_half", "crd": "mobilenetv2_half_s2", "sskd": "mobilenetv2_half_s2"}


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What `load_weights` did: the recognized format, our names of what was loaded, is missing in the file, or was not needed from it."""

    format: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def is_backbone_only(self) -> bool:
        """Whether no auxiliary classifier was loaded."""
        return not any(name.startswith("auxiliary_classifiers") for name in self.loaded)


def load_weights(network: HierarchicalNet, source: str | Path | Mapping[str, object], *, origin: Origin | None = None) -> LoadReport:
    """Load a weights file (or what `torch.load` returned of one) into `network`.

    Recognized: ours (safetensors), the authors' (`net`), CRD's (`model`), SSKD's (`state_dict`), torchvision's and plain state dicts in the
    authors' key names. `origin` states where a plain file is from, which decides between the two MobileNetV2. Absent
    `num_batches_tracked` are tolerated; a backbone-only file loads the backbone, and the report says so.

    Raises:
        ValueError: not a weights file, or one of another architecture or class count; the first differing key and both shapes are named.
    """
    content, metadata = (source, {}) if isinstance(source, Mapping) else _read(Path(source))
    label = "state dict" if isinstance(source, Mapping) else Path(source).name
    kind, tensors = _recognize(content, metadata, label)
    names = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if kind == "ours":
        if metadata.get("network", network.name) != network.name:
            raise ValueError(f"{label} holds network {metadata['network']!r}; accepted here: {network.name!r}")
    else:
        if kind == "crd":
            names = {re.sub(r"^classifier\.0\.", "classifier.", name): tensor for name, tensor in names.items()}
        if any(name.startswith("auxiliary_classifier.") for name in names) and kind == "plain":
            kind = "hsakd"
        _check_mobilenet(network.name, origin or kind, label)
        names = _to_our_names(network, names, label)
    own = network.state_dict()
    with_branches = any(name.startswith("auxiliary_classifiers.") for name in names)
    ignored = tuple(name for name in names if name not in own and _is_absent_branch(name, network))
    for name, tensor in names.items():
        if name not in own and name not in ignored:
            raise ValueError(f"{label}: unexpected {name!r} of shape {tuple(tensor.shape)}; {network.name} has no such tensor")
        if name in own and own[name].shape != tensor.shape:
            raise ValueError(f"{label}: {name!r} has shape {tuple(tensor.shape)}; {network.name} needs {tuple(own[name].shape)}")
    wanted = [name for name in own if with_branches or name.startswith("backbone.")]
    lacking = [name for name in wanted if name not in names and not name.endswith("num_batches_tracked")]
    if lacking:
        raise ValueError(f"{label}: no tensor for {lacking[0]!r} of shape {tuple(own[lacking[0]].shape)}, which {network.name} needs")
    loaded = {name: tensor for name, tensor in names.items() if name in own}
    network.load_state_dict(loaded, strict=False)
    return LoadReport(format=kind, loaded=tuple(loaded), missing=tuple(name for name in own if name not in loaded), ignored=ignored)


def weights_sha256(network: HierarchicalNet) -> str:
    """Return the digest of all tensors' names, shapes and bytes (a file's own bytes vary with the order of its metadata)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_weights(network: HierarchicalNet, file: str | Path, layout: Literal["ours", "hsakd"] = "hsakd") -> None:
    """Write the weights atomically: "ours" as safetensors with the network's name, "hsakd" as a file that the authors' code could load."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with replacing(Path(file)) as temporary:
        if layout == "ours":
            metadata = {"format": OUR_FORMAT, "network": network.name, "num_classes": str(network.num_classes)}
            save_file(state, temporary, metadata=metadata)
        else:
            theirs = dict(zip(_our_order(network), authors_keys(network), strict=True))
            ordered = {theirs[name]: state[name] for name in _our_order(network)}
            in_order = {key: ordered[key] for key in authors_keys(network)}
            torch.save({"net": in_order, "acc": 0.0, "epoch": 0}, temporary)


def _read(path: Path) -> tuple[Mapping[str, object], dict[str, str]]:
    """Return a file's content and metadata; raises ValueError naming the file where it is not weights."""
    try:
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:9] == b"{"
        if is_safetensors:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
            return load_file(path), metadata
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; accepted: a weights file") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path.name} is not a weights file that can be read without executing it: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}; accepted: a dict of tensors, or one with net, model or state_dict")
    return content, {}


def _recognize(content: Mapping[str, object], metadata: Mapping[str, str], label: str) -> tuple[str, dict[str, Tensor]]:
    kinds = {"net": "hsakd", "model": "crd", "state_dict": "sskd"}
    key = next((name for name in kinds if isinstance(content.get(name), Mapping)), None)
    inner = content[key] if key is not None else content
    assert isinstance(inner, Mapping)
    tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) != len(inner):
        raise ValueError(f"{label} holds no state dict; accepted: tensors by name, or one of them under net, model or state_dict")
    if key is not None:
        return kinds[key], tensors
    ours = metadata.get("format") == OUR_FORMAT or any(name.startswith("backbone.head.") for name in tensors)
    return ("ours" if ours else "plain"), tensors


def _check_mobilenet(name: str, origin: str, label: str) -> None:
    """A stride-2 file fits the stride-1 network's shapes: only its origin tells them apart."""
    if name not in MOBILENET_OF_ORIGIN.values():
        return
    if origin not in MOBILENET_OF_ORIGIN:
        raise ValueError(
            f"{label}: a plain MobileNetV2 file fits both mobilenetv2_half and mobilenetv2_half_s2; "
            f"state its origin, one of {', '.join(MOBILENET_OF_ORIGIN)}"
        )
    if MOBILENET_OF_ORIGIN[origin] != name:
        raise ValueError(f"{label}: MobileNetV2 files of origin {origin!r} are {MOBILENET_OF_ORIGIN[origin]}, not {name}")


@cache
def _key_table() -> dict[str, list[list[object]]]:
    table = json.loads(gzip.decompress(files("hsakd.models").joinpath("authors_keys.json.gz").read_bytes()))
    return {name: entry for name, entry in table.get("keys", table).items() if isinstance(entry, list)}


def authors_keys(network: HierarchicalNet) -> list[str]:
    """Return the authors' names of `network`'s tensors, in the order of `_our_order`; raises ValueError for networks they don't have."""
    name = AUTHORS_NAMES.get(network.name, network.name)
    table = _key_table()
    if f"{name}_aux" in table:
        keys = [str(key[0]) for key in table[f"{name}_aux"]]
    elif name in table:
        keys = [f"backbone.{key[0]}" for key in table[name]]
    else:
        raise ValueError(f"the authors have no network {network.name!r}; accepted layout: ours")
    return [key for key in keys if key.startswith("backbone.") or _tap_of(key) in network.taps]


def _tap_of(key: str) -> int:
    match = re.match(r"auxiliary_classifier\.(?:block_extractor|bn|conv2_|fc)(\d+)\.", key)
    assert match is not None, key
    return int(match[1])


def _our_order(network: HierarchicalNet) -> list[str]:
    """Return our tensor names in the authors' order."""

    def names(prefix: str, module: nn.Module) -> list[str]:
        return [f"{prefix}.{name}" for name in module.state_dict()]

    backbone = network.backbone
    parts = (("stem", backbone.stem), ("stages", backbone.stages), ("neck", backbone.neck), ("head", backbone.head))
    order = [name for part, module in parts for name in names(f"backbone.{part}", module)]
    branches = [(f"auxiliary_classifiers.{tap}", network.auxiliary_classifiers[str(tap)]) for tap in network.taps]
    necks: list[str] = []
    for prefix, branch in branches:
        order += names(f"{prefix}.stages", branch.get_submodule("stages"))
        neck = names(f"{prefix}.neck", branch.get_submodule("neck"))
        order, necks = (order + neck, necks) if network.spec.neck_in_extractor else (order, necks + neck)
    return order + necks + [name for prefix, branch in branches for name in names(f"{prefix}.head", branch.get_submodule("head"))]


def _to_our_names(network: HierarchicalNet, tensors: dict[str, Tensor], label: str) -> dict[str, Tensor]:
    """Rename a dict in the authors' key names; unknown keys keep theirs and are refused by the caller."""
    if not any(name.startswith(("backbone.", "auxiliary_classifier.")) for name in tensors):
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    theirs, ours = authors_keys(network), _our_order(network)
    assert len(theirs) == len(ours), (network.name, len(theirs), len(ours))
    renamed = dict(zip(theirs, ours, strict=True))
    result = {}
    for name, tensor in tensors.items():
        if name in renamed:
            result[renamed[name]] = tensor
        elif name.startswith("auxiliary_classifier.") and _matches_absent_tap(name, network):
            result[f"auxiliary_classifiers.{_tap_of(name)}.{name}"] = tensor
        else:
            first = next((key for key in theirs if key not in tensors), None)
            wanted = f"; {network.name} needs {first!r}" if first is not None else f"; {network.name} has no such tensor"
            raise ValueError(f"{label}: unexpected {name!r} of shape {tuple(tensor.shape)}{wanted}")
    return result


def _matches_absent_tap(name: str, network: HierarchicalNet) -> bool:
    match = re.match(r"auxiliary_classifier\.\D*?2?_?(\d+)\.", name)
    return match is not None and _tap_of(name) not in network.taps and _tap_of(name) <= network.num_branches


def _is_absent_branch(name: str, network: HierarchicalNet) -> bool:
    match = re.match(r"auxiliary_classifiers\.(\d+)\.", name)
    return match is not None and int(match[1]) not in network.taps and int(match[1]) <= network.num_branches
