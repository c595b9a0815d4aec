"""`--teacher-weights`: which file of a folder is whose teacher, what it holds, its copy in the result folder, and whether to doubt it."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from hsakd.dataset_table import DATASET_TABLE, OWN_IMAGES
from hsakd.image_folder import scan_image_folder
from hsakd.records import TrialRecord
from hsakd.store import ResultStore
from sweeps.cli import SweepOptions
from sweeps.presets import BACKBONE_METHODS, PRESETS, TUNED

ENDINGS = (".safetensors", ".pth.tar", ".pth", ".pt", ".tar", ".ckpt", ".bin")
JOINT = "_joint"  # a file's name says which regime a whole teacher was trained in: its tensors can't
OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "mobilenetv2_half": ("mobilenetv2",),
    "mobilenetv2_half_s2": ("mobilenetv2_s2",),
    "shufflenet_v1": ("shufflev1", "shufflenetv1"),
    "shufflenet_v2": ("shufflev2", "shufflenetv2"),
    **{f"vgg{depth}_bn": (f"vgg{depth}",) for depth in (8, 11, 13, 16, 19)},
    "resnet18_imagenet": ("resnet18-5c106cde", "resnet18-f37072fd"),  # torchvision's; the authors' ImageNet teacher is resnet34-333f7ec4
    "resnet34_imagenet": ("resnet34-333f7ec4", "resnet34-b627a593"),
    "resnet50_imagenet": ("resnet50-19c8e357", "resnet50-0676ba61", "resnet50-11ad3fa6"),
}
"""The literature's other names of a network, as files are named, in small letters."""

LARGE_DIFFERENCE = 1.0  # points of top-1; released backbones of one network lie within it of each other
PUBLISHED_TOP1: Mapping[str, Mapping[str, float]] = {
    "backbone": {  # Table 1, rows Teacher and Student
        "wrn_40_2": 76.45,
        "resnet56": 73.44,
        "resnet32x4": 79.63,
        "vgg13_bn": 74.64,
        "resnet50": 79.34,
        "wrn_16_2": 73.57,
        "wrn_40_1": 71.95,
        "resnet20": 69.62,
        "resnet8x4": 72.95,
        "mobilenetv2_half": 73.51,
        "shufflenet_v1": 71.74,
        "shufflenet_v2": 72.96,
    },
    "joint": {"wrn_40_2": 80.70, "resnet56": 77.20, "resnet32x4": 83.73, "vgg13_bn": 78.48, "resnet50": 83.85},  # row Teacher*
}
"""CIFAR-100 top-1 in per cent, from the IJCAI-21 slides."""

Kind = Literal["backbone", "frozen", "joint"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherFile:
    """A weights file of `network`: `sha256` is the digest of the file's bytes, `format` what it was recognized as."""

    network: str
    num_classes: int
    path: Path
    sha256: str
    format: str
    is_backbone_only: bool
    backbone_digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherFiles:
    """What a folder has of one network.

    `backbone` stands for the plain training (KD's teacher, and what the frozen regime's branches are trained on), `frozen` for the frozen
    regime's whole teacher (HSAKD; its backbone then is `backbone`), `joint` for the jointly trained teacher (HSAKD*, HSAKD-tuned's report;
    never the search's teacher, which must not have seen the validation images).
    """

    backbone: TeacherFile | None = None
    frozen: TeacherFile | None = None
    joint: TeacherFile | None = None


def teacher_files(options: SweepOptions) -> Mapping[str, TeacherFiles]:
    """Return the files of --teacher-weights by teacher network; networks without a file are absent. Reads, writes nothing.

    Raises:
        ValueError: no file is a teacher's, a file is not that network's weights, or two files claim the same place.
    """
    if options.teacher_weights is None:
        return {}
    preset = PRESETS[options.preset]
    teachers = dict.fromkeys(pair.partition("-")[0] for pair in options.pairs or preset.pairs)
    return _read_folder(options.teacher_weights.resolve(), tuple(teachers), _num_classes(options))


def _num_classes(options: SweepOptions) -> int:
    if options.dataset == OWN_IMAGES and options.data_dir is not None:
        return len(scan_image_folder(options.data_dir.resolve()).classes)
    num_classes = DATASET_TABLE[options.dataset or PRESETS[options.preset].data.dataset].num_classes
    assert num_classes is not None
    return num_classes


@cache
def _read_folder(folder: Path, networks: tuple[str, ...], num_classes: int) -> Mapping[str, TeacherFiles]:
    found = {network: _files_of(network, paths, num_classes) for network in networks if (paths := named_after(network, folder))}
    if not found:
        raise ValueError(
            f"--teacher-weights is {folder}, in which no file is named after a teacher of this sweep; accepted: "
            f"{', '.join(f'{network}.pth' for network in networks)} (or {', '.join(ENDINGS)}; {networks[0]}{JOINT}.pth if trained jointly)"
        )
    return found


def named_after(network: str, folder: Path) -> list[Path]:
    """Return the weight files in `folder` whose name says `network`, by our name or another in use, sorted.

    Endings, `_aux`, `_best` and small or capital letters don't matter; CRD's folders (`<network>_vanilla/ckpt_epoch_240.pth`) count, too.
    """
    names = {network.replace("/", "_").lower(), *OTHER_NAMES.get(network, ())}
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and _ending(path) and _plain_name(path) in names]
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower().removesuffix("_vanilla") in names]
    return paths + [path for inner in folders for path in sorted(inner.iterdir()) if path.is_file() and _ending(path)]


def _ending(path: Path) -> str:
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), "")


def _plain_name(path: Path) -> str:
    name = path.name.lower().removesuffix(_ending(path)).removesuffix("_best").removesuffix(JOINT)
    return name.removesuffix("_best").removesuffix("_aux")


def _is_joint(path: Path) -> bool:
    return JOINT in path.name.lower().removesuffix(_ending(path))


def _files_of(network: str, paths: list[Path], num_classes: int) -> TeacherFiles:
    chosen: dict[Kind, TeacherFile] = {}
    for path in paths:
        file = _read(network, path, num_classes)
        if file.is_backbone_only and _is_joint(path):
            raise ValueError(f"{path}: holds a backbone without auxiliary classifiers; accepted under a name with {JOINT}: a whole teacher")
        kind: Kind = "joint" if _is_joint(path) else "backbone" if file.is_backbone_only else "frozen"
        if kind in chosen and chosen[kind].sha256 != file.sha256:
            what = {"backbone": "backbone", "frozen": "whole teacher", "joint": "jointly trained teacher"}[kind]
            raise ValueError(f"{chosen[kind].path} and {path} both hold a {what} of {network}; accepted: one")
        chosen.setdefault(kind, file)
    backbone, frozen = chosen.get("backbone"), chosen.get("frozen")
    if backbone is not None and frozen is not None and backbone.backbone_digest != frozen.backbone_digest:
        raise ValueError(
            f"{backbone.path} and {frozen.path} hold different backbones of {network}; accepted: one of the files, or equal ones"
        )
    return TeacherFiles(backbone=frozen or backbone, frozen=frozen, joint=chosen.get("joint"))


def _read(network: str, path: Path, num_classes: int) -> TeacherFile:
    from hsakd.models import HierarchicalNet  # torch is imported where a file is read, not for --help or --dry-run
    from hsakd.models.checkpoints import load_weights, weights_sha256

    whole = HierarchicalNet.on_meta(network, num_classes=num_classes).to_empty(device="cpu")
    try:
        report = load_weights(whole, path)
    except ValueError as error:
        advice = "; write the one you mean with hsakd.models.checkpoints.save_weights" if "=" in str(error) else ""
        raise ValueError(f"--teacher-weights for {network}: {error}{advice}") from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return TeacherFile(
        network=network,
        num_classes=num_classes,
        path=path,
        sha256=digest,
        format=report.format,
        is_backbone_only=report.is_backbone_only,
        backbone_digest=weights_sha256(whole.backbone.state_dict()),
    )


def import_files(files: Iterable[TeacherFiles], store: ResultStore) -> None:
    """Write each file once, in our layout, to where its trial will read it."""
    from hsakd.models import HierarchicalNet
    from hsakd.models.checkpoints import load_weights, save_weights

    for file in (file for group in files for file in (group.backbone, group.frozen, group.joint) if file is not None):
        target = store.imported_path(file.sha256)
        if target.exists():
            continue
        taps = () if file.is_backbone_only else None
        network = HierarchicalNet.on_meta(file.network, num_classes=file.num_classes, taps=taps).to_empty(device="cpu")
        load_weights(network, file.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        save_weights(network, target, layout="ours")


def describe_files(options: SweepOptions) -> list[str]:
    """Return a line per teacher network: what comes from which file, and what is trained."""
    found, lines = teacher_files(options), []
    if options.teacher_weights is None:
        return []
    for network in dict.fromkeys(pair.partition("-")[0] for pair in options.pairs or PRESETS[options.preset].pairs):
        files = found.get(network, TeacherFiles())
        places = {
            "backbone": files.backbone if set(BACKBONE_METHODS) & set(options.methods) else None,
            "frozen teacher's auxiliary classifiers": files.frozen if "HSAKD" in options.methods else None,
            "jointly trained teacher": files.joint if {"HSAKD*", TUNED} & set(options.methods) else None,
        }
        needed = {
            "backbone": set(BACKBONE_METHODS),
            "frozen teacher's auxiliary classifiers": {"HSAKD"},
            "jointly trained teacher": {"HSAKD*", TUNED},
            "search's teacher (on train minus validation)": {TUNED},
        }
        texts = [
            f"{place} from {file.path} ({file.format}, sha256 {file.sha256[:12]})"
            if (file := places.get(place)) is not None
            else f"{place} trained"
            for place, methods in needed.items()
            if methods & set(options.methods)
        ]
        lines.append(f"teacher {network}: {'; '.join(texts) or 'not needed'}")
    return lines


def doubt(record: TrialRecord) -> str | None:
    """Return a sentence where an imported CIFAR-100 network is far from its published accuracy, else None."""
    config = record.config
    is_cifar100 = config.data.dataset == "cifar100" and config.data.image_size in (None, 32)
    if config.imported_sha256 is None or record.top1_last is None or not is_cifar100:
        return None
    regime = "joint" if config.teacher_regime == "joint" else "backbone"
    published = PUBLISHED_TOP1[regime].get(config.network)
    if published is None or abs(record.top1_last - published) <= LARGE_DIFFERENCE:
        return None
    return (
        f"{config.network} from the file with sha256 {config.imported_sha256[:12]} has {record.top1_last:.2f} % top-1 on CIFAR-100, "
        f"but {published:.2f} % are published ({'Teacher*' if regime == 'joint' else 'Table 1'}): is it the right file?"
    )
