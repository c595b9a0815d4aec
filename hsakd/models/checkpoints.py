"""Reading the field's weight files into our networks, and writing ours.

A file's format is recognized by its content: ours (safetensors with the network's name), the authors' (`net`), CRD's (`model`), SSKD's
(`state_dict`), torchvision's and plain state dicts in the authors' key names. Pickles are read with `weights_only=True`: one that holds
anything but weights is refused without being executed.
"""

import hashlib
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hsakd.files import replacing
from hsakd.models.authors import authors_keys, has_authors_layout
from hsakd.models.network import HierarchicalNet

Origin = Literal["ours", "hsakd", "crd", "sskd", "torchvision", "plain"]
Layout = Literal["ours", "hsakd"]

HEAD = "backbone.head."
ZIP_START, PICKLE_START = b"PK", b"\x80"  # torch.save's format, and its old one
_WRAPPERS: Mapping[str, Origin] = {"net": "hsakd", "model": "crd", "state_dict": "sskd"}
_MOBILENETS: Mapping[str, str] = {"hsakd": "mobilenetv2_half", "crd": "mobilenetv2_half_s2", "sskd": "mobilenetv2_half_s2"}
"""Who uses which stem stride: the state dicts can't tell."""
_SCALAR = cast(Callable[..., Any], np.float64(0).__reduce__()[0])
_NUMBERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""What unpickling a NumPy number calls: accuracies in others' files may be one. It builds numbers, nothing else."""


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
        what = "backbone" if self.is_backbone_only else "network"
        lacking = f", without {len(self.missing)} tensors that the file lacks" if self.missing else ""
        unused = f"; {len(self.ignored)} of auxiliary classifiers that this network was built without" if self.ignored else ""
        return f"{what} loaded, format {self.format!r}: {len(self.loaded)} tensors{lacking}{unused}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Weights:
    tensors: dict[str, Tensor]
    origin: Origin
    network: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Renamed:
    """Tensors under our keys, the file's name of each, and whether the file had our keys."""

    tensors: dict[str, Tensor]
    names: dict[str, str]
    is_ours: bool


def load_weights(
    network: HierarchicalNet,
    source: str | os.PathLike[str] | Mapping[str, object],
    *,
    origin: Origin | None = None,
    with_head: bool = True,
    member: Literal[1, 2] | None = None,
) -> LoadReport:
    """Load a weights file, or a state dict, into `network`; a backbone-only file loads the backbone and says so.

    Without `with_head` the backbone's linear layer stays as it is: the file's may be of another class count.

    `origin` states where a file comes from when its content can't tell: MobileNetV2 of the authors (stem stride 1) and of CRD and SSKD
    (stride 2) have the same keys and shapes. `member` states which network of a pair (the authors' online files: `net1`, `net2`) is meant.

    Raises:
        ValueError: no such file, not a weights file, truncated, of another network or class count; the message names the first differing
            key and both shapes. The network is unchanged.
    """
    if origin is not None and origin not in get_args(Origin):
        raise ValueError(f"origin is {origin!r}; accepted: {', '.join(get_args(Origin))}")
    label = "state dict" if isinstance(source, Mapping) else str(Path(source))
    weights = _unwrap(source, label) if isinstance(source, Mapping) else _read(Path(source))
    weights = replace(weights, tensors=_of_member(weights.tensors, member, label))
    given = _in_our_keys(network, weights.tensors, label)
    if not with_head:
        own = {key: tensor for key, tensor in network.state_dict().items() if key.startswith(HEAD)}
        given = replace(given, tensors={**given.tensors, **own})
    difference = _first_difference(network, given)
    if weights.network is not None and weights.network != network.name:
        detail = difference or "every key and shape is the same, what they compute is not"
        raise ValueError(f"{label}: holds {weights.network}, not {network.name}; {detail}")
    if difference is not None:
        raise ValueError(f"{label}: {difference}")
    if network.spec.family == "mobilenetv2" and weights.network is None:
        _check_mobilenet(network.name, label, origin or _mobilenet_origin(weights, given))
    return _load(network, given, "ours" if given.is_ours and origin is None else _format(network, origin or weights.origin))


def _format(network: HierarchicalNet, origin: Origin) -> Origin:
    return "torchvision" if origin == "plain" and network.spec.family == "imagenet_resnet" else origin


def _of_member(tensors: dict[str, Tensor], member: int | None, label: str) -> dict[str, Tensor]:
    """Return the tensors of one network of a pair, or all tensors of a file that holds one network."""
    is_pair = any(key.startswith(("net1.", "net2.")) for key in tensors)
    if is_pair and member not in (1, 2):
        raise ValueError(f"{label}: holds a pair of networks (net1, net2); state which one: member=1 or member=2")
    if not is_pair and member is not None:
        raise ValueError(f"{label}: holds one network, but member is {member!r}; accepted: None")
    if not is_pair:
        return tensors
    chosen = {key.removeprefix(f"net{member}."): tensor for key, tensor in tensors.items() if key.startswith(f"net{member}.")}
    if not chosen:
        raise ValueError(f"{label}: holds no tensors of net{member}")
    return chosen


def _mobilenet_origin(weights: _Weights, given: _Renamed) -> Origin:
    """Tell who wrote a MobileNetV2 state dict, where its wrapper or its keys can tell; without metadata ours may be of either."""
    if given.is_ours:
        return "plain"
    if weights.origin == "plain" and any("classifier.0." in name for name in given.names.values()):
        return "crd"
    if weights.origin == "plain" and any(key.startswith("auxiliary_classifiers.") for key in given.tensors):
        return "hsakd"  # CRD and SSKD have no auxiliary classifiers under these names
    return weights.origin


def _check_mobilenet(name: str, label: str, origin: Origin) -> None:
    if origin == "ours":
        return
    expected = _MOBILENETS.get(origin)
    if expected is None:
        raise ValueError(
            f"{label}: the stem's stride can't be told from these weights (mobilenetv2_half has 1, mobilenetv2_half_s2 has 2); "
            "say where they come from: origin='hsakd' (stride 1), 'crd' or 'sskd' (stride 2), or 'ours'"
        )
    if expected != name:
        raise ValueError(
            f"{label}: {origin} weights of MobileNetV2 are {expected}, not {name} (the stem's stride differs, no key and no shape does)"
        )


def _wanted_keys(network: HierarchicalNet, given: _Renamed) -> list[str]:
    """Return our keys that a file has to have, in the authors' order: the backbone's, and the branches' if it has any branch."""
    order = list(authors_keys(network)) if has_authors_layout(network) else list(network.state_dict())
    has_branches = any(key.startswith("auxiliary_classifiers.") for key in given.tensors)
    return [key for key in order if has_branches or key.startswith("backbone.")]


def _ignored_keys(network: HierarchicalNet, given: _Renamed) -> tuple[str, ...]:
    """Return the file's keys of branches that the network was built without, if the network could have them."""
    prefixes = tuple(f"auxiliary_classifiers.{tap}." for tap in range(1, network.num_branches + 1) if tap not in network.taps)
    return tuple(key for key in given.tensors if prefixes and key.startswith(prefixes))


def _first_difference(network: HierarchicalNet, given: _Renamed) -> str | None:
    """Return the first key (the file's name and ours) in which file and network differ, with both shapes; None where they agree."""
    expected, wanted, ignored = network.state_dict(), _wanted_keys(network, given), set(_ignored_keys(network, given))
    here = f"{network.name} with {network.num_classes} classes and {network.num_rotations} rotations"

    def difference(key: str) -> str:
        name = given.names.get(key, _authors_key(network, key) if not given.is_ours else key)
        alias = f" ({key!r} here)" if name != key else ""
        shape_there = tuple(given.tensors[key].shape) if key in given.tensors else "nothing"
        shape_here = tuple(expected[key].shape) if key in expected else "nothing"
        return f"first difference at {name!r}{alias}: the file has {shape_there}, {here} has {shape_here}"

    for key in wanted:
        if key not in given.tensors and key.endswith("num_batches_tracked"):
            continue
        if key not in given.tensors or given.tensors[key].shape != expected[key].shape:
            return difference(key)
        if given.tensors[key].is_floating_point() != expected[key].is_floating_point():
            return f"{difference(key)}, as {given.tensors[key].dtype} instead of {expected[key].dtype}"
    return next((difference(key) for key in given.tensors if key not in expected and key not in ignored), None)


def _authors_key(network: HierarchicalNet, key: str) -> str:
    return authors_keys(network).get(key, key) if has_authors_layout(network) else key


def _load(network: HierarchicalNet, given: _Renamed, origin: Origin) -> LoadReport:
    chosen = {key: given.tensors[key] for key in _wanted_keys(network, given) if key in given.tensors}
    network.load_state_dict(chosen, strict=False)
    order = list(authors_keys(network)) if has_authors_layout(network) else list(network.state_dict())
    return LoadReport(
        format=origin,
        loaded=tuple(chosen),
        missing=tuple(key for key in order if key not in chosen),
        ignored=_ignored_keys(network, given),
    )


def _in_our_keys(network: HierarchicalNet, tensors: dict[str, Tensor], label: str) -> _Renamed:
    """Rename the authors' keys; keys that mean nothing here stay as they are."""
    if any(key.startswith(("auxiliary_classifiers.", "backbone.stages.", "backbone.stem.", "backbone.extractor.")) for key in tensors):
        return _Renamed(tensors=tensors, names={key: key for key in tensors}, is_ours=True)
    if not has_authors_layout(network):
        raise ValueError(f"{label}: {network.name} reads only files that this project wrote")
    is_plain = not any(key.startswith(("backbone.", "auxiliary_classifier.")) for key in tensors)
    whole = HierarchicalNet.on_meta(network.name, num_classes=network.num_classes, num_rotations=network.num_rotations)
    ours = {theirs: mine for mine, theirs in authors_keys(whole).items()}
    names: dict[str, str] = {}
    for key in tensors:
        theirs = f"backbone.{key}" if is_plain else key
        if network.spec.family == "mobilenetv2":
            theirs = theirs.replace("backbone.classifier.0.", "backbone.classifier.")  # CRD's head is a Sequential
        names[ours.get(theirs, key)] = key
    return _Renamed(tensors={mine: tensors[key] for mine, key in names.items()}, names=names, is_ours=False)


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
        return replace(found, network=metadata.get("network"))
    if not start.startswith((ZIP_START, PICKLE_START)):
        raise ValueError(f"{path}: refused: not a weights file, or truncated (neither safetensors nor torch.save's format)")
    try:
        with torch.serialization.safe_globals(_NUMBERS), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "Unsupported" in str(error):
            raise ValueError(f"{path}: refused, unexecuted: this pickle holds more than weights; save its state dict alone") from error
        raise ValueError(f"{path}: not a weights file, or truncated, or a pickle with more than weights (refused, unexecuted)") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, UnicodeDecodeError, AttributeError) as error:
        if "TorchScript" in str(error):
            raise ValueError(f"{path}: refused, unexecuted: a TorchScript program, not weights; save its state dict alone") from error
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
    return _Weights(tensors=tensors, origin=origin, network=_network_name(content))


def _network_name(state: Mapping[str, object]) -> str | None:
    """Return the name that `HierarchicalNet.state_dict()` leaves in its metadata; None for other state dicts."""
    metadata = getattr(state, "_metadata", None)
    root = metadata.get("") if isinstance(metadata, Mapping) else None
    name = root.get("network") if isinstance(root, Mapping) else None
    return name if isinstance(name, str) else None


def save_weights(
    network: HierarchicalNet, file: str | os.PathLike[str], layout: Layout = "hsakd", *, notes: Mapping[str, str] | None = None
) -> None:
    """Write the weights, atomically: "ours" is safetensors with the network's name, "hsakd" a file that the authors' code loads.

    `notes` are further texts for the metadata of "ours" (what images the network takes, its classes).

    Raises:
        ValueError: an unknown layout, or a network that the authors' code doesn't have.
    """
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    if layout not in get_args(Layout):
        raise ValueError(f"layout is {layout!r}; accepted: {', '.join(get_args(Layout))}")
    with replacing(Path(file)) as temporary:
        if layout == "ours":
            metadata = {
                **(notes or {}),
                "network": network.name,
                "num_classes": str(network.num_classes),
                "num_rotations": str(network.num_rotations),
                "taps": ",".join(map(str, network.taps)),
            }
            temporary.write_bytes(save(state, metadata=metadata))
        else:
            torch.save({**_authors_checkpoint(network, state), "acc": 0.0, "epoch": 0}, temporary)


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
