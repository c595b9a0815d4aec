"""STL-10 (Coates et al. 2011), for linear probes: 5,000 labelled training and 8,000 test images of 96x96 pixels."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hsakd.data.datasets import DataMissing, RawImages, Source, dataset, fetching
from hsakd.data.splits import Indices

FOLDER = "stl10_binary"
SIDE = 96
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


@dataset("stl10", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # the authors' normalization for it
def read_stl10(source: Source) -> RawImages:
    """The binary files as published: uint8 images [n, 3, column, row], labels 1..10.

    Raises:
        DataMissing: no folder is given, or a file is not in it and can't be fetched.
        ValueError: images and labels of a part don't fit together.
    """
    if source.data_dir is None:
        raise DataMissing("stl10: no folder to look in; pass --data-dir DIR, with --download to fetch it there")
    folder = source.data_dir / FOLDER
    if not _is_there(folder) and source.download:
        from torchvision.datasets import STL10

        with fetching("stl10", source.data_dir):
            STL10(str(source.data_dir), split="train", download=True)
    if not _is_there(folder):
        raise DataMissing(
            f"stl10: train_X.bin, train_y.bin, test_X.bin and test_y.bin are not in {folder}; pass --download to fetch them there"
        )
    train, test = (_read_part(folder, part) for part in ("train", "test"))
    return RawImages(*train, *test, CLASSES)


def _is_there(folder: Path) -> bool:
    return all((folder / f"{part}_{kind}.bin").is_file() for part in ("train", "test") for kind in "Xy")


def _read_part(folder: Path, part: str) -> tuple[NDArray[np.uint8], Indices]:
    pixels = np.fromfile(folder / f"{part}_X.bin", dtype=np.uint8)
    labels = np.fromfile(folder / f"{part}_y.bin", dtype=np.uint8).astype(np.int64) - 1
    if len(labels) == 0 or pixels.size != len(labels) * 3 * SIDE * SIDE or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise ValueError(f"stl10: {folder / part}_X.bin and _y.bin don't fit together ({pixels.size} bytes, {len(labels)} labels 1 to 10)")
    return pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 1, 3, 2), labels
