"""Reading the field's weight files into our networks, and writing ours.

A file's format is recognized by its content: ours (safetensors with the network's name), the authors' (`net`), CRD's (`model`), SSKD's
(`state_dict`), torchvision's and plain state dicts in the authors' key names. Pickles are read with `weights_only=True`: one that holds
anything but weights is refused without being executed.
"""

import hashlib
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hsakd.models.authors import authors_keys, has_authors_layout
from hsakd.models.network import HierarchicalNet

Origin = Literal["ours", "hsakd", "crd", "sskd", "torchvision", "plain"]
Layout = Literal["ours", "hsakd"]

HEAD = "backbone.head."
_WRAPPERS: Mapping[str, Origin] = {"net": "hsakd", "model": "crd", "state_dict": "sskd"}
_MOBILENETS: Mapping[str, str] = {"hsakd": "mobilenetv2_half", "crd": "mobilenetv2_half_s2", "sskd": "mobilenetv2_half_s2"}
"""Who uses which stem stride: the state dicts can't tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What `load_weights` did.

    `loaded` and `missing` are our names: `missing` are tensors that the file doesn't have (auxiliary classifiers of a backbone-only file,
    `num_batches_tracked`); `ignored` are auxiliary classifiers of the file that the network was built without.
    """

    format: Origin
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def is_backbone_only(self) -> bool:
        """Whether no auxiliary classifier was loaded."""
        return not any(name.startswith("auxiliary_classifiers.") for name in self.loaded)

    def __str__(self) -> str:
        left_out = f", without {len(self.missing)} tensors that the file lacks" if self.missing else ""
        return f"{'backbone' if self.is_backbone_only else 'network'} loaded, format {self.format!r}: {len(self.loaded)} tensors{left_out}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Weights:
    tensors: dict[str, Tensor]
    origin: Origin
    network: str | None


def load_weights(
    network: HierarchicalNet,
    source: str | os.PathLike[str] | Mapping[str, object],
    *,
    origin: Origin | None = None,
    with_head: bool = True,
) -> LoadReport:
    """Load a weights file, or a state dict, into `network`; a backbone-only file loads the backbone and says so.

    Without `with_head` the backbone's linear layer stays as it is: the file's may be of another class count.

    `origin` states where a file comes from when its content can't tell: MobileNetV2 of the authors (stem stride 1) and of CRD and SSKD
    (stride 2) have the same keys and shapes.

    Raises:
        ValueError: no such file, not a weights file, truncated, of another network or class count; the message names the first differing
            key and both shapes. The network is unchanged.
    """
    label = "state dict" if isinstance(source, Mapping) else str(Path(source))
    weights = _unwrap(source, label) if isinstance(source, Mapping) else _read(Path(source))
    is_file = not isinstance(source, Mapping)
    weights = _Weights(tensors=weights.tensors, origin=origin or weights.origin, network=weights.network)
    if weights.network is not None and weights.network != network.name:
        raise ValueError(f"{label}: holds {weights.network}, not {network.name}")
    given, is_ours = _in_our_keys(network, weights.tensors, label)
    if not with_head:
        given = {key: tensor for key, tensor in given.items() if not key.startswith(HEAD)}
    if network.spec.family == "mobilenetv2" and weights.network is None:
        stated = weights.origin if not is_ours or is_file else "ours"
        _check_mobilenet(network.name, label, origin or stated, has_branches=any(key.startswith("auxiliary") for key in given))
    return _load(network, given, label, "ours" if is_ours and origin is None else _format(network, weights.origin), with_head=with_head)


def _format(network: HierarchicalNet, origin: Origin) -> Origin:
    return "torchvision" if origin == "plain" and network.spec.family == "imagenet_resnet" else origin


def _check_mobilenet(name: str, label: str, origin: Origin, *, has_branches: bool) -> None:
    if origin == "ours":
        return
    if origin == "plain" and has_branches:
        origin = "hsakd"  # CRD and SSKD have no auxiliary classifiers under these names
    expected = _MOBILENETS.get(origin)
    if expected is None:
        raise ValueError(
            f"{label}: the stem's stride can't be told from these weights (mobilenetv2_half has 1, mobilenetv2_half_s2 has 2); "
            "say where they come from: origin='hsakd' (stride 1), 'crd' or 'sskd' (stride 2), or 'ours'"
        )
    if expected != name:
        raise ValueError(f"{label}: {origin} weights of MobileNetV2 are {expected}, not {name} (the stem's stride differs)")


def _load(network: HierarchicalNet, given: dict[str, Tensor], label: str, origin: Origin, *, with_head: bool) -> LoadReport:
    expected = network.state_dict()
    order = list(authors_keys(network)) if has_authors_layout(network) else list(expected)
    has_branches = any(key.startswith("auxiliary_classifiers.") for key in given)
    wanted = [key for key in order if (has_branches or key.startswith("backbone.")) and (with_head or not key.startswith(HEAD))]
    present_branches = tuple(f"auxiliary_classifiers.{tap}." for tap in network.taps)
    ignored = tuple(key for key in given if key.startswith("auxiliary_classifiers.") and not key.startswith(present_branches))

    def refuse(key: str) -> ValueError:
        there = tuple(given[key].shape) if key in given else "nothing"
        here = tuple(expected[key].shape) if key in expected else "nothing"
        text = f"{network.name} with {network.num_classes} classes and {network.num_rotations} rotations"
        return ValueError(f"{label}: first difference at {key!r}: the file has {there}, {text} has {here}")

    for key in wanted:
        if key not in given and key.endswith("num_batches_tracked"):
            continue
        if key not in given or given[key].shape != expected[key].shape:
            raise refuse(key)
        if given[key].is_floating_point() != expected[key].is_floating_point():
            raise ValueError(f"{label}: {key!r} is {given[key].dtype}, {network.name} has {expected[key].dtype}")
    for key in given:
        if key not in expected and key not in ignored:
            raise refuse(key)
    chosen = {key: given[key] for key in wanted if key in given}
    network.load_state_dict(chosen, strict=False)
    return LoadReport(
        format=origin,
        loaded=tuple(chosen),
        missing=tuple(key for key in order if key not in chosen),
        ignored=ignored,
    )


def _in_our_keys(network: HierarchicalNet, tensors: dict[str, Tensor], label: str) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors under our keys, and whether they were ours already; keys that mean nothing here stay as they are."""
    if any(key.startswith(("auxiliary_classifiers.", "backbone.stages.", "backbone.stem.", "backbone.extractor.")) for key in tensors):
        return tensors, True
    if not has_authors_layout(network):
        raise ValueError(f"{label}: {network.name} reads only files that this project wrote")
    if any(key.startswith("net1.") for key in tensors):
        raise ValueError(f"{label}: holds a pair of networks (net1, net2); pass the tensors of one of them, without that prefix")
    is_plain = not any(key.startswith(("backbone.", "auxiliary_classifier.")) for key in tensors)
    whole = HierarchicalNet.on_meta(network.name, num_classes=network.num_classes, num_rotations=network.num_rotations)
    ours = {theirs: mine for mine, theirs in authors_keys(whole).items()}
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        theirs = f"backbone.{key}" if is_plain else key
        if network.spec.family == "mobilenetv2":
            theirs = theirs.replace("backbone.classifier.0.", "backbone.classifier.")  # CRD's head is a Sequential
        renamed[ours.get(theirs, key)] = tensor
    return renamed, False


def _read(path: Path) -> _Weights:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ValueError(f"{path}: can't be read ({error.strerror}); accepted: a weights file") from error
    if len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000:
        try:
            with safe_open(path, framework="pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: truncated or damaged safetensors file ({error})") from error
        found = _unwrap(tensors, str(path))
        return _Weights(tensors=found.tensors, origin=found.origin, network=metadata.get("network"))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "Unsupported" in str(error):
            raise ValueError(f"{path}: refused, unexecuted: this pickle holds more than weights; save its state dict alone") from error
        raise ValueError(f"{path}: not a weights file, or truncated, or a pickle with more than weights (refused, unexecuted)") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{path}: truncated, or not a weights file ({str(error).splitlines()[0] if str(error) else 'empty'})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not weights")
    return _unwrap(content, str(path))


def _unwrap(content: Mapping[str, object], label: str) -> _Weights:
    """Find the state dict in a checkpoint and drop DataParallel's prefix."""
    origin: Origin = "plain"
    for key, wrapper_origin in _WRAPPERS.items():
        inner = content.get(key)
        if isinstance(inner, Mapping):
            content, origin = inner, wrapper_origin
            break
    if not content:
        raise ValueError(f"{label}: holds no tensors")
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{label}: {key!r} is a {type(value).__name__}, not a tensor; accepted: a state dict, or one under net, model, state_dict"
            )
        tensors[key.removeprefix("module.")] = value
    return _Weights(tensors=tensors, origin=origin, network=None)


def save_weights(
    network: HierarchicalNet, file: str | os.PathLike[str], layout: Layout = "hsakd", *, notes: Mapping[str, str] | None = None
) -> None:
    """Write the weights, atomically: "ours" is safetensors with the network's name, "hsakd" a file that the authors' code loads.

    `notes` are further texts for the metadata of "ours" (what images the network takes, its classes).

    Raises:
        ValueError: an unknown layout, or a network that the authors' code doesn't have.
    """
    path = Path(file)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if layout == "ours":
        metadata = {
            **(notes or {}),
            "network": network.name,
            "num_classes": str(network.num_classes),
            "num_rotations": str(network.num_rotations),
            "taps": ",".join(map(str, network.taps)),
        }
        temporary.write_bytes(save(state, metadata=metadata))
    elif layout == "hsakd":
        torch.save({**_authors_checkpoint(network, state), "acc": 0.0, "epoch": 0}, temporary)
    else:
        raise ValueError(f"layout is {layout!r}; accepted: ours, hsakd")
    temporary.replace(path)


def _authors_checkpoint(network: HierarchicalNet, state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    if not has_authors_layout(network) or network.name == "mobilenetv2_half_s2":
        raise ValueError(f"layout 'hsakd': the authors' code has no {network.name}")
    if network.taps == ():
        plain = {theirs.removeprefix("backbone."): state[ours] for ours, theirs in authors_keys(network).items()}
        return {"net": plain, "state_dict": plain}  # their frozen teacher reads `state_dict`
    if len(network.taps) != network.num_branches:
        raise ValueError(f"layout 'hsakd': the authors' {network.name} has all {network.num_branches} branches or none, not {network.taps}")
    return {"net": {theirs: state[ours] for ours, theirs in authors_keys(network).items()}}


def read_metadata(file: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of a weights file that `save_weights` wrote as "ours"; raises ValueError on anything else."""
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: missing, truncated or not safetensors ({error})") from error


def weights_sha256(weights: HierarchicalNet | Mapping[str, Tensor]) -> str:
    """Return the digest of all tensors with their names, types and shapes, whatever the order or the device."""
    state = weights.state_dict() if isinstance(weights, HierarchicalNet) else weights
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
