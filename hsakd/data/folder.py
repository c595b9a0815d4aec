"""A user's own images as uint8 tensors: `train/<class>/` and `val/<class>/` folders of any image files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hsakd.data.datasets import DataMissing, RawImages, Source, dataset
from hsakd.dataset_table import OWN_IMAGES
from hsakd.image_folder import read_image, scan_image_folder


@dataset(OWN_IMAGES, decodes=True)
def read_image_folder(source: Source) -> RawImages:
    """Decode all images of a folder: RGB, upright, the middle square resized (bilinear, antialiased) to the image size.

    `val` is the test part; selection holds out a part of `train`, as with the other data sets.

    Raises:
        DataMissing: no folder is given.
        ValueError: the folder is not as `scan_image_folder` wants it, an image can't be decoded, or
            the images are not the configured ones.
    """
    if source.data_dir is None:
        raise DataMissing("imagefolder: no folder to look in; pass --data-dir DIR with train/<class>/ and val/<class>/ folders")
    found = scan_image_folder(source.data_dir)
    if source.folder is not None:
        found.check_digest(source.folder.sha256)
    size = found.resolved_size(source.image_size)
    parts = [_decode(found.root, rows, size) for rows in (found.train, found.val)]
    labels = [np.array([label for _, label in rows], dtype=np.int64) for rows in (found.train, found.val)]
    return RawImages(parts[0], labels[0], parts[1], labels[1], found.classes)


def decode_image(path: Path, size: int, *, turns_upright: bool) -> NDArray[np.uint8]:
    """Return an image file's middle square as uint8 [3, size, size], `turns_upright` by its EXIF orientation; raises as `read_image`."""
    image = read_image(path, turns_upright=turns_upright)
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.asarray(image).transpose(2, 0, 1)


def _decode(root: Path, rows: tuple[tuple[str, int], ...], size: int) -> NDArray[np.uint8]:
    images = np.empty((len(rows), 3, size, size), dtype=np.uint8)
    for image, (name, _) in zip(images, rows, strict=True):
        image[:] = decode_image(root / name, size, turns_upright=True)
    return images
