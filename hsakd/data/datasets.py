"""Data sets as uint8 tensors: name -> images, labels, normalization, classes, view space.

Adding one: its line in `hsakd/dataset_table.py`, and a file here with a function decorated with `@dataset(...)` that returns raw training
and test arrays.
"""

import gzip
import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hsakd.config import DataConfig, FolderConfig
from hsakd.data.splits import Indices, few_shot_subset, stratified_split, stratified_subset
from hsakd.data.views import ResizedCrops, Views, ViewSpace
from hsakd.dataset_table import DATASET_TABLE
from hsakd.registry import Registry

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES_AT_ONCE = 1000  # bounds the memory of counting and resizing
DIGITS_TEST_IMAGES = 360  # a fifth of the 1,797, stratified with a fixed seed
FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class DataMissing(ValueError):
    """A data set's files are not where they were looked for; the message says what, where and how to get them."""


@contextmanager
def fetching(name: str, data_dir: Path) -> Iterator[None]:
    """Turn a download that fails (no network, a full disk, other bytes than expected) into DataMissing."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataMissing(f"{name}: it can't be fetched into {data_dir} ({reason}); try again, or put its files there") from error


class RawImages(NamedTuple):
    """A data set as stored: uint8 images [n, C, H, W], int64 labels [n], and the class names where the files tell them."""

    train_images: NDArray[np.uint8]
    train_labels: Indices
    test_images: NDArray[np.uint8]
    test_labels: Indices
    classes: tuple[str, ...] = ()


class Source(NamedTuple):
    """Where a reader looks and whether it may fetch; `image_size` and `folder` are for readers that decode a user's images."""

    data_dir: Path | None = None
    download: bool = False
    image_size: int | None = None
    folder: FolderConfig | None = None


Reader = Callable[[Source], RawImages]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetEntry:
    """How to read a data set, and what is known of it: mean and std per channel (0..1), its augmentation, its class count and side.

    What differs from folder to folder (a user's own images) is None here: counted, measured on the training images, or configured. So are
    the views of images that stay in their files, which are resized crops.
    """

    read: Reader
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    views: ViewSpace | None
    num_classes: int | None
    image_size: int | None  # pixels, as stored
    decodes: bool = False  # whether the reader decodes to an image size


DATASETS: Registry[DatasetEntry] = Registry("dataset")


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """The images of one trial; tensors are uint8 [n, C, H, W] and int64 [n]. The validation part may be empty.

    `fingerprint` is the sha256 of the training images and labels in order: what a stream or a prediction bank is indexed by. `classes`
    are the class names, or empty where only their number is known. Training images may be larger than the views taken of them.
    """

    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    views: Views
    fingerprint: str
    classes: tuple[str, ...] = ()

    @property
    def image_size(self) -> int:
        """Side in pixels of what a network sees."""
        return self.test_images.shape[-1]

    @property
    def notes(self) -> dict[str, str]:
        """What a user of a trained network has to know, as JSON texts for the metadata of its weights file."""
        return dataset_notes(self)

    def num_images(self, part: str) -> int:
        """Return the images of "train", "val" or "test"."""
        return len(getattr(self, f"{part}_labels"))

    def evaluation_batches(self, part: str, *, rank: int = 0, size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield uint8 images [B, C, S, S] and labels [B] of every `size`-th image of a part, beginning with image `rank`."""
        images, labels = (getattr(self, f"{part}_{kind}")[rank::size] for kind in ("images", "labels"))
        batch_size = evaluation_batch_size(images.device)
        yield from zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)

    def to(self, device: torch.device) -> "Dataset":
        """Return the same data with every tensor on `device`."""
        names = ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def evaluation_batch_size(device: torch.device) -> int:
    """Return how many images to evaluate at once: on a CPU so few that their maps stay in its caches (`tests/benchmarks/evaluation.py`)."""
    return 64 if device.type == "cpu" else 500


class Described(Protocol):
    """What any data set knows of its images."""

    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def image_size(self) -> int: ...


def dataset_notes(data: Described) -> dict[str, str]:
    """Return what a user of a trained network has to know, as JSON texts for the metadata of its weights file."""
    facts = {"mean": data.mean, "std": data.std, "classes": data.classes, "image_size": data.image_size}
    return {name: json.dumps(value) for name, value in facts.items()}


def dataset(
    name: str,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    decodes: bool = False,
) -> Callable[[Reader], Reader]:
    """Return a decorator that registers a reader under `name`, with the facts that `hsakd.dataset_table` has of that name.

    Raises:
        KeyError: the table has no line of that name.
    """

    def file_reader(read: Reader) -> Reader:
        facts = DATASET_TABLE[name]
        views = None if facts.padding is None else ViewSpace(facts.padding, facts.has_flip)
        DATASETS.register(name)(
            DatasetEntry(
                read=read,
                mean=mean,
                std=std,
                views=views,
                num_classes=facts.num_classes,
                image_size=facts.image_size,
                decodes=decodes,
            )
        )
        return read

    return file_reader


@dataset("digits", mean=(0.3053,), std=(0.3760,))
def read_digits(source: Source) -> RawImages:
    """scikit-learn's 1,797 real 8x8 handwritten digits (0..16 scaled to 0..255); embedded, so the source is unused."""
    del source
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = labels.astype(np.int64)
    train, test = stratified_split(labels, second_size=DIGITS_TEST_IMAGES, seed=0)
    return RawImages(pixels[train], labels[train], pixels[test], labels[test], tuple(map(str, range(10))))


@dataset("fashion_mnist", mean=(0.2860,), std=(0.3530,))
def read_fashion_mnist(source: Source) -> RawImages:
    """Zalando's 70,000 28x28 articles (arXiv 1708.07747), from torchvision's layout or Debian's `dataset-fashion-mnist`.

    Raises:
        DataMissing: the folder doesn't exist, the four files are together in none of the folders, or they can't be fetched.
        ValueError: a file is no whole IDX file of bytes.
    """
    data_dir = source.data_dir
    if data_dir is not None and not data_dir.is_dir() and not source.download:  # Debian's files are not what was asked for
        raise DataMissing(f"fashion_mnist: {data_dir} is no folder; pass another --data-dir, or --download to fetch it there")
    folders = [DEBIAN_FASHION_MNIST] if data_dir is None else [data_dir / "FashionMNIST" / "raw", data_dir, DEBIAN_FASHION_MNIST]
    stems = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    found = _find_together(folders, stems)
    if found is None and source.download and data_dir is not None:
        from torchvision.datasets import FashionMNIST

        with fetching("fashion_mnist", data_dir):
            FashionMNIST(str(data_dir), download=True)
        found = _find_together(folders, stems)
    if found is None:
        raise DataMissing(
            f"fashion_mnist: {stems[0]}(.gz) and its three companions are not in {' or '.join(map(str, folders))}; "
            "install Debian's package dataset-fashion-mnist, or pass --data-dir DIR --download"
        )
    arrays = [_read_idx(path) for path in found]
    return RawImages(arrays[0][:, None], arrays[1].astype(np.int64), arrays[2][:, None], arrays[3].astype(np.int64), FASHION_CLASSES)


def _find_together(folders: list[Path], stems: tuple[str, ...]) -> list[Path] | None:
    for folder in folders:
        paths = [next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None) for stem in stems]
        found = [path for path in paths if path is not None]
        if len(found) == len(stems):
            return found
    return None


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, compressed or not; raises ValueError on anything else."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            content = file.read()
        zeros, kind, num_axes = struct.unpack_from(">HBB", content)
        if zeros != 0 or kind != 8:
            raise ValueError("it begins otherwise")
        shape = struct.unpack_from(f">{num_axes}I", content, 4)
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * num_axes).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise ValueError(f"{path} can't be read ({error}); accepted: a whole IDX file of bytes") from error


def _read_cifar(kind: str, source: Source) -> RawImages:
    from torchvision import datasets as torchvision_datasets

    data_dir = source.data_dir
    if data_dir is None:
        raise DataMissing(f"{kind.lower()}: no folder to look in; pass --data-dir DIR, with --download to fetch it there")
    reader = getattr(torchvision_datasets, kind)
    try:
        with fetching(kind.lower(), data_dir) if source.download else nullcontext():
            train, test = (reader(str(data_dir), train=part, download=source.download) for part in (True, False))
    except (RuntimeError, OSError) as error:
        raise DataMissing(
            f"{kind.lower()}: torchvision's files are not in {data_dir}; pass --download to fetch them there, or another --data-dir"
        ) from error
    return RawImages(
        train.data.transpose(0, 3, 1, 2),
        np.asarray(train.targets, dtype=np.int64),
        test.data.transpose(0, 3, 1, 2),
        np.asarray(test.targets, dtype=np.int64),
        tuple(train.classes),
    )


@dataset("cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
def read_cifar10(source: Source) -> RawImages:
    """CIFAR-10 in torchvision's layout."""
    return _read_cifar("CIFAR10", source)


@dataset("cifar100", mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
def read_cifar100(source: Source) -> RawImages:
    """CIFAR-100 in torchvision's layout; mean and std are the authors'."""
    return _read_cifar("CIFAR100", source)


@lru_cache(maxsize=2)
def _read_raw(name: str, source: Source) -> RawImages:
    raw = DATASETS[name].read(source)
    for part, images, labels in (("training", raw.train_images, raw.train_labels), ("test", raw.test_images, raw.test_labels)):
        if len(images) != len(labels):
            raise ValueError(f"{name} has {len(images)} {part} images and {len(labels)} labels; accepted: as many labels as images")
    return raw


def load_dataset(config: DataConfig, data_dir: Path | None = None, *, download: bool = False) -> Dataset:
    """Read, resize and split a data set: subset, then few-shot, then validation, each stratified.

    Raises:
        KeyError: an unknown data set (the message lists the known ones).
        DataMissing: its files are not there.
        ValueError: a split asks for more images than there are, or a user's images are not those of the configuration.
    """
    if config.augmentation == "imagenet":
        raise ValueError("augmentation is 'imagenet', whose images stay in their files; accepted here: shift, resized_crop")
    entry = DATASETS[config.dataset]
    is_resized_later = config.augmentation == "resized_crop"
    decoded_size = config.image_size if entry.decodes and not is_resized_later else None
    raw = _read_raw(config.dataset, Source(data_dir, download, decoded_size, config.folder))
    labels = raw.train_labels
    kept, held_out = split_training_images(labels, config)
    stored_size = raw.train_images.shape[-1]
    train_size = None if is_resized_later else config.image_size
    views = ResizedCrops(config.image_size or stored_size) if is_resized_later else _shifts(entry, config)
    mean, std = (entry.mean, entry.std) if entry.mean is not None and entry.std is not None else channel_statistics(raw.train_images)
    train_images, train_labels = _tensor(raw.train_images[kept], train_size), torch.from_numpy(labels[kept])
    return Dataset(
        train_images=train_images,
        train_labels=train_labels,
        val_images=_tensor(raw.train_images[held_out], config.image_size),
        val_labels=torch.from_numpy(labels[held_out]),
        test_images=_tensor(raw.test_images, config.image_size),
        test_labels=torch.from_numpy(raw.test_labels),
        num_classes=_num_classes(entry, config),
        mean=mean,
        std=std,
        views=views,
        classes=raw.classes,
        fingerprint=hashlib.sha256(train_images.numpy().tobytes() + train_labels.numpy().tobytes()).hexdigest(),
    )


def split_training_images(labels: Indices, config: DataConfig) -> tuple[Indices, Indices]:
    """Return which training images are trained on and which are held out: subset, then few-shot, then validation, each stratified."""
    kept = (
        np.arange(len(labels), dtype=np.int64)
        if config.train_subset is None
        else stratified_subset(labels, config.train_subset, seed=config.split_seed)
    )
    kept = kept[few_shot_subset(labels[kept], config.few_shot_ratio)]
    if config.validation_fraction == 0:
        return kept, kept[:0]
    fraction = config.validation_fraction
    first, second = stratified_split(labels[kept], second_size=fraction, seed=config.split_seed, asked=f"validation_fraction is {fraction}")
    return kept[np.sort(first)], kept[np.sort(second)]


def _shifts(entry: DatasetEntry, config: DataConfig) -> ViewSpace:
    """Return the crops and flips of a data set: its own, or as configured for a user's images."""
    if entry.views is not None:
        return entry.views
    assert config.folder is not None
    return ViewSpace(config.folder.padding, config.folder.has_flip)


def _num_classes(entry: DatasetEntry, config: DataConfig) -> int:
    if entry.num_classes is not None:
        return entry.num_classes
    assert config.folder is not None
    return config.folder.num_classes


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std per channel of uint8 images [n, C, H, W], in 0..1; exact integer sums, so the same on every machine."""
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for start in range(0, len(images), IMAGES_AT_ONCE):
        for channel, own in enumerate(counts):
            own += np.bincount(images[start : start + IMAGES_AT_ONCE, channel].reshape(-1), minlength=256)
    values = np.arange(256)
    total = counts.sum(axis=1)
    mean = (counts * values).sum(axis=1) / total
    variance = (counts * values**2).sum(axis=1) / total - mean**2
    std = np.sqrt(np.maximum(variance, 1.0))  # a constant channel has no spread to divide by
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _tensor(images: NDArray[np.uint8], image_size: int | None) -> Tensor:
    """Return a uint8 tensor, resized (bilinear, antialiased) where `image_size` differs."""
    tensor = torch.from_numpy(np.array(images))  # a copy: what was read may be read-only
    if image_size is None or image_size == tensor.shape[-1] or len(tensor) == 0:
        return tensor
    parts = [
        torch.nn.functional.interpolate(part.float(), size=(image_size, image_size), mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
        for part in torch.split(tensor, IMAGES_AT_ONCE)
    ]
    return torch.cat(parts)
