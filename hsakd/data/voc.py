"""Pascal VOC (Everingham et al. 2010), for detectors: trained on VOC 2007 and 2012 trainval, tested on VOC 2007 test.

Images differ in size, so they stay files, decoded when they are asked for; annotations are read at once.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor

from hsakd.config import DETECTION_DATASET as VOC
from hsakd.data.datasets import DataMissing, fetching
from hsakd.image_folder import DECODING_ERRORS, unreadable

if TYPE_CHECKING:
    from torchvision.datasets import VOCDetection

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
TRAIN_SETS, TEST_SETS = (("2007", "trainval"), ("2012", "trainval")), (("2007", "test"),)


class Objects(NamedTuple):
    """An image's objects: boxes (left, top, right, bottom) in pixels from the image's corner, labels from 1, 0 being background.

    VOC's annotations name a box's first and last pixel, from 1; here a box of one pixel is one wide. `is_difficult` marks objects that
    VOC's evaluation ignores.
    """

    boxes: Tensor  # float32 [K, 4]
    labels: Tensor  # int64 [K]
    is_difficult: Tensor  # bool [K]


@dataclass(frozen=True, slots=True)
class VocImages:
    """Images by number, and their objects."""

    readers: "tuple[tuple[VOCDetection, int], ...]"
    objects: tuple[Objects, ...]

    def image(self, number: int) -> Tensor:
        """Return an image, decoded: uint8 [3, H, W]; raises ValueError where it can't be."""
        from torchvision.transforms.functional import pil_to_tensor

        reader, index = self.readers[number]
        try:
            pixels: Tensor = pil_to_tensor(reader[index][0])
        except DECODING_ERRORS as error:
            raise unreadable(Path(reader.images[index]), error) from error
        return pixels

    def trainable(self) -> "VocImages":
        """Return the images that have an object, without their difficult ones: py-faster-rcnn's and MMDetection's rule."""
        kept = [(reader, row) for reader, row in zip(self.readers, self.objects, strict=True) if not row.is_difficult.all()]
        easy = [Objects(*(values[~row.is_difficult] for values in row)) for _, row in kept]
        return VocImages(tuple(reader for reader, _ in kept), tuple(easy))


def read_voc(data_dir: Path | None, *, download: bool = False) -> tuple[VocImages, VocImages]:
    """Return the training and the test images.

    Raises:
        DataMissing: an image set, an image or an annotation is not there.
        ValueError: an annotation can't be used.
    """
    if data_dir is None:
        raise DataMissing(f"{VOC}: no folder to look in; pass --data-dir DIR that holds VOCdevkit, with --download to fetch it there")
    train, test = (_read_sets(data_dir, sets, download=download) for sets in (TRAIN_SETS, TEST_SETS))
    if not train.trainable().readers:
        raise ValueError(f"{VOC}: no training image in {data_dir} has an object that is not difficult")
    return train.trainable(), test


def _read_sets(data_dir: Path, sets: Sequence[tuple[str, str]], *, download: bool) -> VocImages:
    from torchvision.datasets import VOCDetection  # a second of every process's start, for those who detect

    readers, objects = list[tuple[VOCDetection, int]](), list[Objects]()
    for year, name in sets:
        listing = data_dir / "VOCdevkit" / f"VOC{year}" / "ImageSets" / "Main" / f"{name}.txt"
        is_missing = not listing.is_file()
        if is_missing and not download:
            raise DataMissing(
                f"{VOC}: {listing} is not there (VOC {year} {name}); pass --download to fetch it, or --data-dir DIR that holds VOCdevkit"
            )
        with fetching(VOC, data_dir) if is_missing else nullcontext():
            reader = VOCDetection(str(data_dir), year=year, image_set=name, download=is_missing)
        if not reader.images:
            raise ValueError(f"{VOC}: {listing} names no image")
        for path in map(Path, (*reader.images, *reader.annotations)):
            if not path.is_file():
                raise DataMissing(f"{VOC}: {path} is not there, but {listing} names it; accepted: the whole archive, unpacked")
        readers += [(reader, index) for index in range(len(reader))]
        objects += [_read_objects(Path(path)) for path in reader.annotations]
    return VocImages(tuple(readers), tuple(objects))


def _read_objects(path: Path) -> Objects:
    from torchvision.datasets import VOCDetection

    try:
        found = VOCDetection.parse_voc_xml(ElementTree.parse(path).getroot())["annotation"]["object"]
        rows = [_read_object(entry) for entry in found]
    except (ElementTree.ParseError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{VOC}: the annotation {path} can't be used ({error}); accepted: VOC's XML with objects of its classes"
        ) from error
    return Objects(
        torch.tensor([box for box, _, _ in rows], dtype=torch.float32).view(-1, 4),
        torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        torch.tensor([is_difficult for _, _, is_difficult in rows], dtype=torch.bool),
    )


def _read_object(entry: dict[str, Any]) -> tuple[tuple[float, ...], int, bool]:
    left, top, right, bottom = (float(entry["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax"))
    name = entry["name"]
    if not (1 <= left <= right and 1 <= top <= bottom):
        raise ValueError(f"a box from {left:g}, {top:g} to {right:g}, {bottom:g}")
    if name not in CLASSES:
        raise ValueError(f"the class {name!r}")
    return (left - 1, top - 1, right, bottom), 1 + CLASSES.index(name), entry.get("difficult", "0") == "1"
