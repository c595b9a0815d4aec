"""Image files that are read again in every epoch: random resized crops for training, the middle square for evaluation (ImageNet).

A crop is named by (image, view) alone, so that the pixels don't depend on how many loader workers or processes share the reading.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from hsakd.config import DETECTION_DATASET, DataConfig
from hsakd.data.datasets import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DataMissing,
    Dataset,
    RawImages,
    Source,
    dataset,
    dataset_notes,
    load_dataset,
    split_training_images,
)
from hsakd.data.splits import Indices
from hsakd.data.views import Batch, ResizedCrops, normalize
from hsakd.devices import sent
from hsakd.image_folder import list_image_folder, read_image, scan_image_folder

IMAGENET_CLASSES = 1000
RESIZED_PER_CROPPED = 256 / 224  # evaluation: the shorter side is resized to 256 for a middle of 224 pixels (the authors' transform)
EVALUATION_BATCH = 100

Chunk = tuple[Tensor, Tensor]  # indices and view ids [B] of a batch
Keys = list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFiles:
    """Files relative to `root` (an array of names, so that loader workers share it) and their labels.

    A user's photos are turned as their EXIF orientation says. ImageNet's images are not: the authors' reader, torchvision's, doesn't.
    """

    root: Path
    names: np.ndarray  # of str
    labels: Indices
    turns_upright: bool

    def at(self, kept: Indices) -> "ImageFiles":
        """Return some of the files, in the order of `kept`."""
        return replace(self, names=self.names[kept], labels=self.labels[kept])


class _Crops(MapDataset[tuple[Tensor, int, int]]):
    """(index, view) -> the uint8 view [3, size, size] of a file; a view of -1 is the middle of the image."""

    def __init__(self, files: ImageFiles, crops: ResizedCrops) -> None:
        self.files, self.crops = files, crops

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int]:
        index, view = key
        image = read_image(self.files.root / str(self.files.names[index]), turns_upright=self.files.turns_upright)
        pixels = middle_square(image, self.crops.size) if view < 0 else self._crop(image, view)
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1), index, view

    def _crop(self, image: Image.Image, view: int) -> Image.Image:
        boxes, flips = self.crops.boxes(torch.tensor([view]), image.height, image.width)
        top, left, height, width = (int(value) for value in boxes[0])
        size = (self.crops.size, self.crops.size)
        cropped = image.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BILINEAR)
        return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flips[0] else cropped


def middle_square(image: Image.Image, size: int) -> Image.Image:
    """Return the middle `size` pixels of an image whose shorter side was resized to 256/224 of that (bilinear, antialiased).

    For 224 it is torchvision's `Resize(256)` and `CenterCrop(224)`, to the pixel.
    """
    width, height = resized_size(image.size, round(size * RESIZED_PER_CROPPED))
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def resized_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return the width and height that a `size` is resized to for a shorter side of `shorter` pixels, the longer one cut to whole ones."""
    width, height = (int(shorter * side / min(size)) for side in size)  # multiplied first: `side * (256 / 49)` may end below 256
    return width, height


class _Sampler:
    """The keys of an epoch's batches, exchanged while the loader's workers stay."""

    def __init__(self) -> None:
        self.batches: Sequence[Keys] = ()

    def __iter__(self) -> Iterator[Keys]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class StreamedImages:
    """A data set that stays in its files; stands where `Dataset` does, for the loop. `num_workers` processes decode (0: this one).

    `fingerprint` is of the training files' names and labels in order (and their content, for a user's own folder).
    """

    def __init__(
        self,
        *,
        train: ImageFiles,
        val: ImageFiles,
        test: ImageFiles,
        image_size: int,
        classes: tuple[str, ...],
        fingerprint: str,
        num_workers: int,
    ) -> None:
        self.parts = {"train": train, "val": val, "test": test}
        self.image_size, self.classes, self.fingerprint = image_size, classes, fingerprint
        self.num_classes, self.num_workers = len(classes), num_workers
        self.mean, self.std, self.views = IMAGENET_MEAN, IMAGENET_STD, ResizedCrops(image_size)
        self.train_labels = torch.from_numpy(train.labels)
        self.device = torch.device("cpu")
        self.loaders: dict[str, tuple[_Sampler, DataLoader[tuple[Tensor, int, int]]]] = {}

    @property
    def notes(self) -> dict[str, str]:
        """What a user of a trained network has to know, as JSON texts for the metadata of its weights file."""
        return dataset_notes(self)

    def to(self, device: torch.device) -> "StreamedImages":
        """Let batches come to `device`; returns itself."""
        self.device = device
        return self

    def num_images(self, part: str) -> int:
        """Return the images of "train", "val" or "test"."""
        return len(self.parts[part].labels)

    def training_batches(self, chunks: Sequence[Chunk], *, dtype: torch.dtype) -> Iterator[Batch]:
        """Yield a normalized batch [B, 3, S, S] per chunk of (indices, views), in order; reading goes ahead of the training."""
        keys = [list(zip(indices.tolist(), views.tolist(), strict=True)) for indices, views in chunks]
        for images, indices, views in self._loaded("train", keys):
            labels = sent(self.train_labels[indices], self.device)
            rows = normalize(sent(images, self.device), self.mean, self.std, dtype)
            yield Batch(indices=indices, views=views, images=rows, labels=labels)

    def evaluation_batches(self, part: str, *, rank: int = 0, size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield uint8 images [B, 3, S, S] and labels [B] of every `size`-th image of a part, beginning with image `rank`."""
        labels = torch.from_numpy(self.parts[part].labels)
        own = range(rank, len(labels), size)
        keys = [[(index, -1) for index in own[start : start + EVALUATION_BATCH]] for start in range(0, len(own), EVALUATION_BATCH)]
        for images, indices, _ in self._loaded(part, keys):
            yield sent(images, self.device), sent(labels[indices], self.device)

    def _loaded(self, part: str, keys: Sequence[Keys]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        if part not in self.loaders:
            sampler = _Sampler()
            loader: DataLoader[tuple[Tensor, int, int]] = DataLoader(
                _Crops(self.parts[part], self.views),
                batch_sampler=sampler,
                num_workers=self.num_workers,
                persistent_workers=self.num_workers > 0,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # the workers' base seed must not be drawn from the global generator
            )
            self.loaders[part] = (sampler, loader)
        sampler, loader = self.loaders[part]
        sampler.batches = keys
        return iter(loader)


TrainingData = Dataset | StreamedImages


@dataset("imagenet", mean=IMAGENET_MEAN, std=IMAGENET_STD, decodes=True)
def _stays_in_files(source: Source) -> RawImages:
    raise ValueError(f"imagenet in {source.data_dir} is too large for memory; accepted: the augmentation imagenet")


def open_dataset(
    config: DataConfig, data_dir: Path | None = None, *, download: bool = False, num_workers: int = 0, is_digested_elsewhere: bool = False
) -> TrainingData:
    """Return a data set in memory or, with the augmentation "imagenet", in its files.

    To see that a user's images are those of the configuration, all of them are read; where they stay in their files and another process
    of the trial does so on this machine (`is_digested_elsewhere`), they are listed only.

    Raises:
        KeyError: an unknown data set (the message lists the known ones).
        DataMissing: its files are not there.
        ValueError: a split asks for more images than there are, or a user's images are not those of the configuration.
    """
    if config.augmentation != "imagenet":
        return load_dataset(config, data_dir, download=download)
    if data_dir is None:
        raise DataMissing(f"{config.dataset}: no folder to look in; pass --data-dir DIR with train/<class>/ and val/<class>/ folders")
    if config.folder is not None:
        planned = config.folder.sha256
        found = replace(list_image_folder(data_dir), sha256=planned) if is_digested_elsewhere else scan_image_folder(data_dir)
        found.check_digest(planned)
    else:
        found = list_image_folder(data_dir, name=config.dataset)
        if len(found.classes) != IMAGENET_CLASSES:
            raise DataMissing(
                f"imagenet: {data_dir / 'train'} has {len(found.classes)} class folders; accepted: the {IMAGENET_CLASSES} of ILSVRC-2012, "
                "in train/<class>/ and val/<class>/ (it can't be downloaded here: image-net.org gives it to those who register)"
            )
    train, test = (
        ImageFiles(
            root=found.root,
            names=np.array([name for name, _ in rows]),
            labels=np.array([label for _, label in rows], dtype=np.int64),
            turns_upright=config.folder is not None,
        )
        for rows in (found.train, found.val)
    )
    kept, held_out = split_training_images(train.labels, config)
    assert config.image_size is not None
    return StreamedImages(
        train=train.at(kept),
        val=train.at(held_out),
        test=test,
        image_size=config.image_size,
        classes=found.classes,
        fingerprint=found.fingerprint(kept),
        num_workers=num_workers,
    )


def check_dataset(config: DataConfig, data_dir: Path | None = None, *, download: bool = False) -> None:
    """Read or list a data set, detection's included, so that what is missing is said before trials start; raises what opening it raises."""
    if config.dataset == DETECTION_DATASET:
        from hsakd.data.voc import read_voc  # torchvision is for those who need it

        read_voc(data_dir, download=download)
    else:
        open_dataset(config, data_dir, download=download)
