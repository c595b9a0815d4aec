"""Facts about every data set, importable without torch: the readers in `hsakd.data` register with them, forecasts and tables use them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetFacts:
    """Classes, side in pixels and training images, as published; crops (padding in pixels) and flips of the training images.

    None: differs from folder to folder (a user's own images), or, for padding, the data set has no shifts (see `ViewSpace`).
    """

    num_classes: int | None = None
    image_size: int | None = None
    num_train_images: int | None = None
    padding: int | None = None
    has_flip: bool = True

    @property
    def num_views(self) -> int:
        """Crops times flips; 0 without shifts."""
        return 0 if self.padding is None else (2 * self.padding + 1) ** 2 * (2 if self.has_flip else 1)


OWN_IMAGES = "imagefolder"
DATASET_TABLE = {
    "digits": DatasetFacts(num_classes=10, image_size=8, num_train_images=1437, padding=1, has_flip=False),
    "fashion_mnist": DatasetFacts(num_classes=10, image_size=28, num_train_images=60_000, padding=2),
    "cifar10": DatasetFacts(num_classes=10, image_size=32, num_train_images=50_000, padding=4),
    "cifar100": DatasetFacts(num_classes=100, image_size=32, num_train_images=50_000, padding=4),
    "stl10": DatasetFacts(num_classes=10, image_size=96, num_train_images=5000, padding=12),
    "tinyimagenet": DatasetFacts(num_classes=200, image_size=64, num_train_images=100_000, padding=8),
    "imagenet": DatasetFacts(num_classes=1000, num_train_images=1_281_167),
    OWN_IMAGES: DatasetFacts(),
}
CIFAR = DATASET_TABLE["cifar100"]  # stands in where nobody knows


def stored_size(dataset: str) -> int:
    """Return the side in pixels of a data set's images as stored; CIFAR's where they differ or nobody knows."""
    return DATASET_TABLE.get(dataset, CIFAR).image_size or 32


def num_stored_images(dataset: str) -> int:
    """Return the training images of a data set as published; CIFAR's where nobody knows."""
    return DATASET_TABLE.get(dataset, CIFAR).num_train_images or 50_000
