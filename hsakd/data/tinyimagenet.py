"""TinyImageNet (Stanford CS231n), for linear probes: 200 classes, 100,000 training and 10,000 validation images of 64x64 pixels."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hsakd.data.datasets import IMAGENET_MEAN, IMAGENET_STD, DataMissing, RawImages, Source, dataset
from hsakd.data.folder import decode_image
from hsakd.data.splits import Indices

FOLDER = "tiny-imagenet-200"
SIDE = 64
NUM_CLASSES = 200
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
ANNOTATIONS = "val_annotations.txt"
Rows = list[tuple[Path, int]]


@dataset("tinyimagenet", mean=IMAGENET_MEAN, std=IMAGENET_STD)  # as the authors do
def read_tinyimagenet(source: Source) -> RawImages:
    """The unpacked archive, its `val` as published (one folder, classes in val_annotations.txt) or sorted into class folders.

    The authors sort `val` into `val/<class>/` first; reading the annotations gives the same labels and leaves the files where they are.

    Raises:
        DataMissing: no folder is given, or the archive is not unpacked in it.
        ValueError: there are not 200 classes, a part holds no image, an annotation names no class, or an image can't be decoded.
    """
    if source.data_dir is None:
        raise DataMissing(f"tinyimagenet: no folder to look in; pass --data-dir DIR that holds {FOLDER}, unpacked from {URL}")
    root = source.data_dir / FOLDER if (source.data_dir / FOLDER).is_dir() else source.data_dir
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        raise DataMissing(f"tinyimagenet: {FOLDER}/train and {FOLDER}/val are not in {source.data_dir}; unpack {URL} there")
    classes = tuple(sorted(path.name for path in (root / "train").iterdir() if path.is_dir()))
    if len(classes) != NUM_CLASSES:
        raise ValueError(f"tinyimagenet: {root / 'train'} has {len(classes)} class folders; accepted: {NUM_CLASSES}")
    index = {name: label for label, name in enumerate(classes)}
    (train_images, train_labels), (val_images, val_labels) = (_decode(root / part, _rows(root / part, index)) for part in ("train", "val"))
    return RawImages(train_images, train_labels, val_images, val_labels, classes)


def _decode(folder: Path, rows: Rows) -> tuple[NDArray[np.uint8], Indices]:
    if not rows:
        raise ValueError(f"tinyimagenet: {folder} holds no image")
    images = np.stack([decode_image(path, SIDE, turns_upright=False) for path, _ in rows])
    return images, np.array([label for _, label in rows], dtype=np.int64)


def _rows(folder: Path, index: dict[str, int]) -> Rows:
    annotations = folder / ANNOTATIONS
    if not (folder / "images").is_dir() or not annotations.is_file():
        return [(path, label) for name, label in index.items() for path in sorted((folder / name).rglob("*.JPEG"))]
    rows = []
    for number, line in enumerate(annotations.read_text().splitlines(), start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in index:
            raise ValueError(f"tinyimagenet: {annotations}, line {number}: the class {wnid!r} is not a folder of train")
        rows.append((folder / "images" / name, index[wnid]))
    return rows
