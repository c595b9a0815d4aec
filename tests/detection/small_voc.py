"""A small VOC in its own layout, and the trials that detection tests run."""

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.random import Generator
from PIL import Image

from hsakd.config import DataConfig, DetectionConfig, OptimConfig, TrialConfig

COLOURS = {"person": (220, 40, 40), "car": (40, 60, 220)}
STUDENT = TrialConfig(
    network="resnet18_imagenet",
    data=DataConfig(dataset="digits", train_subset=160, image_size=32),
    optim=OptimConfig(epochs=1, batch_size=10, learning_rate=0.01, milestones=()),
    taps=(),
)
DETECTOR = TrialConfig(
    network="resnet18_imagenet",
    data=DataConfig(dataset="voc0712"),
    optim=OptimConfig(epochs=2, batch_size=2, learning_rate=0.002, milestones=(1,), gamma=0.5, nesterov=False, weight_decay=1e-4),
    taps=(),
    backbone=STUDENT,
    detection=DetectionConfig(shorter_side=64, longer_side=106, sampled_proposals=16),
)


class Box(NamedTuple):
    """An object as an annotation has it: pixels count from 1, the last one is inside."""

    name: str
    left: int
    top: int
    right: int
    bottom: int
    difficult: int = 0


def write_image(folder: Path, stem: str, size: tuple[int, int], boxes: list[Box], generator: Generator) -> None:
    """Write a JPEG of (width, height) with a coloured rectangle per box on grey noise, and its XML file."""
    width, height = size
    pixels = generator.integers(90, 160, (height, width, 3), dtype=np.uint8)
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{stem}.jpg"
    for box in boxes:
        pixels[box.top - 1 : box.bottom, box.left - 1 : box.right] = COLOURS[box.name]
        entry = ElementTree.SubElement(root, "object")
        for name in ("name", "difficult"):
            ElementTree.SubElement(entry, name).text = str(getattr(box, name))
        bounds = ElementTree.SubElement(entry, "bndbox")
        for name, side in (("xmin", "left"), ("ymin", "top"), ("xmax", "right"), ("ymax", "bottom")):
            ElementTree.SubElement(bounds, name).text = str(getattr(box, side))
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / "JPEGImages" / f"{stem}.jpg", quality=95)
    ElementTree.ElementTree(root).write(folder / "Annotations" / f"{stem}.xml")


def random_boxes(generator: Generator, size: tuple[int, int]) -> list[Box]:
    """Return a person in the left half and a car in the right half of an image."""
    boxes = []
    for offset, name in ((0, "person"), (size[0] // 2, "car")):
        left, top = offset + int(generator.integers(1, 6)), int(generator.integers(1, 10))
        boxes.append(Box(name, left, top, left + int(generator.integers(18, 26)), top + int(generator.integers(24, 36))))
    return boxes


def write_voc(data_dir: Path, *, train: int = 3, test: int = 3) -> Path:
    """Write `train` images to each of VOC 2007 and 2012 trainval and `test` to VOC 2007 test; return the folder."""
    generator = np.random.default_rng(0)
    for year, name, count in (("2007", "trainval", train), ("2012", "trainval", train), ("2007", "test", test)):
        folder = data_dir / "VOCdevkit" / f"VOC{year}"
        stems = [f"{name}_{number:06d}" for number in range(count)]
        for number, stem in enumerate(stems):
            size = (72 + 8 * (number % 2), 56 + 4 * (number % 3))
            write_image(folder, stem, size, random_boxes(generator, size), generator)
        listing = folder / "ImageSets" / "Main" / f"{name}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{stem}\n" for stem in stems))
    return data_dir
