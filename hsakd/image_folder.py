"""A user's own images in `train/<class>/` and `val/<class>/` folders: what is there, checked and digested; this module imports no torch."""

import hashlib
import mimetypes
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

RECOGNIZED_ONLY = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # PIL tells what they are; to decode them it needs other programs
PARTS = ("train", "val")
PIXELS_PER_PADDING = 8  # random crops pad CIFAR's 32 pixels by 4: an eighth of the side


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """The images of a folder: paths relative to `root` with their labels, sorted; labels index the sorted class names.

    `sha256` is the digest of every image's path and bytes (empty where they were only listed). `common_size` is the side in pixels where
    all images are squares of one size.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    val: tuple[tuple[str, int], ...]
    sha256: str
    common_size: int | None

    def check_digest(self, planned: str) -> None:
        """Raise ValueError where the images are not those that a trial was planned with."""
        if planned != self.sha256:
            raise ValueError(
                f"imagefolder: the images in {self.root} are not those that this trial was planned with "
                f"(digest {self.sha256[:12]}, planned {planned[:12]}); accepted: the same files, or a new --out"
            )

    def fingerprint(self, kept: Iterable[int]) -> str:
        """Return the digest of some of the training images, in order: names and labels, and the content as far as it was read."""
        rows = "".join(f"{self.train[index][0]}\n{self.train[index][1]}\n" for index in kept)
        return hashlib.sha256(f"{self.sha256}\n{rows}".encode()).hexdigest()

    def resolved_size(self, image_size: int | None) -> int:
        """Return the side that training uses: the one asked for, or the images' own.

        Raises:
            ValueError: none is asked for and the images differ in size.
        """
        if image_size is None and self.common_size is None:
            raise ValueError(f"image_size is None; accepted: a side in pixels, since the images in {self.root} are not squares of one size")
        return image_size or self.common_size or 0


@lru_cache(maxsize=4)
def scan_image_folder(root: Path) -> ImageFolder:
    """List, check and digest `root`: every image is read once.

    Raises:
        ValueError: a folder is missing, `train` and `val` hold different classes, a class has no image, an image can't be read.
    """
    listed = list_image_folder(root)
    digest, sizes = hashlib.sha256(), set[tuple[int, int]]()
    for name, _ in (*listed.train, *listed.val):
        content = (root / name).read_bytes()
        digest.update(f"{name}\n{hashlib.sha256(content).hexdigest()}\n".encode())
        with opened(root / name) as image:
            sizes.add(image.size)
    width, height = next(iter(sizes))
    return replace(listed, sha256=digest.hexdigest(), common_size=width if len(sizes) == 1 and width == height else None)


@lru_cache(maxsize=4)
def list_image_folder(root: Path, *, name: str = "imagefolder") -> ImageFolder:
    """List and check `root` without reading an image: no digest (empty), no common size. `name` is the data set's, for messages.

    Files that are no images are passed over.

    Raises:
        ValueError: a folder is missing, `train` and `val` hold different classes, a class has no image, an image is of a format that PIL
            doesn't read.
    """
    labelled: dict[str, dict[str, list[Path]]] = {}
    for part in PARTS:
        if not (root / part).is_dir():
            raise ValueError(f"{name}: {root / part} is not a folder; accepted: --data-dir with train/<class>/ and val/<class>/ folders")
        labelled[part] = {folder.name: sorted(_images_below(folder)) for folder in _class_folders(root / part)}
    train, val = (set(labelled[part]) for part in PARTS)
    if train != val:
        odd = min(train ^ val)
        there, missing = ("train", "val") if odd in train else ("val", "train")
        raise ValueError(f"{name}: the class {odd!r} is in {root / there} but not in {root / missing}; accepted: the same classes in both")
    if len(train) < 2:
        raise ValueError(f"{name}: {root / 'train'} has {len(train)} class folders; accepted: 2 or more")
    for part in PARTS:
        for label, paths in labelled[part].items():
            if not paths:
                raise ValueError(f"{name}: {root / part / label} holds no image; accepted: files of a format that PIL reads")
    classes = tuple(sorted(train))
    rows = {
        part: tuple((path.relative_to(root).as_posix(), label) for label, own in enumerate(classes) for path in labelled[part][own])
        for part in PARTS
    }
    return ImageFolder(root=root, classes=classes, train=rows["train"], val=rows["val"], sha256="", common_size=None)


def unreadable(path: Path, error: Exception) -> ValueError:
    """Return the refusal of a file that can't be decoded."""
    return ValueError(f"{path} can't be decoded as an image ({error}); accepted: whole image files of 8 bits a channel")


DECODING_ERRORS = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what PIL raises
DEEP = ";16"  # in the raw mode of PNG's 16-bit colours, which PIL opens as RGB
UPRIGHT = {  # by EXIF's orientation; ImageOps.exif_transpose also writes the EXIF data anew, and fails where they are odd
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file.

    Raises:
        ValueError: it can't be decoded, in here or in the context, or has more than 8 bits a channel; the message names it.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")) or any(DEEP in str(tile[3]) for tile in image.tile):  # PIL would cut their values
                raise ValueError("more than 8 bits a channel")
            yield image
    except DECODING_ERRORS as error:
        raise unreadable(path, error) from error


def read_image(path: Path, *, turns_upright: bool) -> Image.Image:
    """Return an image file as RGB, turned as its EXIF orientation says if `turns_upright`; raises as `opened`."""
    with opened(path) as image:
        pixels = image.convert("RGB")
        how = UPRIGHT.get(_orientation(image)) if turns_upright else None  # read last: PIL turns TIFF itself
        return pixels if how is None else pixels.transpose(how)


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation; 1, as it lies, where there is none or the block is damaged: the image itself is whole."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (*DECODING_ERRORS, struct.error, KeyError, TypeError):
        return 1


@cache
def image_suffixes() -> frozenset[str]:
    """Return the endings of the formats that this PIL decodes, in lower case with their dots."""
    formats = Image.registered_extensions()
    decoded = {*Image.OPEN, "MPO"}.difference(RECOGNIZED_ONLY)  # MPO is opened as the JPEG that it begins with
    return frozenset(suffix for suffix, name in formats.items() if name in decoded)


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images_below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix.lower() in image_suffixes():
            yield path
        elif (mimetypes.guess_type(path.name)[0] or "").startswith("image/"):
            raise ValueError(f"{path} is an image that PIL can't read; accepted: formats that it can, such as JPEG, PNG, WebP, TIFF")
