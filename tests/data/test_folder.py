"""A user's own images: what is read, and what each mistake is answered with."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, features
from sklearn.datasets import load_digits

from hsakd.config import DataConfig, TrialConfig
from hsakd.data import DataMissing, load_dataset
from hsakd.data.folder import decode_image
from hsakd.data.views import ViewSpace
from hsakd.image_folder import scan_image_folder
from sweeps.cli import SweepOptions
from sweeps.worklist import TrialFactory, num_train_images


def data_of(root: Path, **changes: object) -> DataConfig:
    options = SweepOptions(out=root / "out", preset="digits", dataset="imagefolder", data_dir=root, **changes)  # type: ignore[arg-type]
    scan_image_folder.cache_clear()
    return TrialFactory(options).data


def test_the_pixels_of_a_folder_are_those_of_its_files_and_labels_follow_the_sorted_names(write_digits: Callable[..., Path]) -> None:
    root = write_digits()
    config = data_of(root)
    data = load_dataset(config, root)
    assert data.classes == ("one", "two", "zero")
    assert (data.num_classes, len(data.train_labels), len(data.test_labels), data.image_size) == (3, 18, 6, 8)
    images, labels = load_digits(return_X_y=True)
    zeros = np.rint(images[labels == 0][:6] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    own = data.train_images[data.train_labels == 2]
    assert torch.equal(own, torch.from_numpy(zeros).expand(-1, 3, -1, -1))
    floats = data.train_images.double() / 255
    assert data.mean == pytest.approx(floats.mean(dim=(0, 2, 3)).tolist())
    assert data.std == pytest.approx(floats.std(dim=(0, 2, 3), correction=0).tolist())
    assert num_train_images(TrialConfig(network="resnet8", data=config)) == 18


def test_images_of_any_size_and_mode_become_squares_of_the_size_asked_for(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for number, (name, size, mode) in enumerate([("wide", (40, 20), "RGB"), ("tall", (15, 90), "P"), ("wide", (33, 33), "RGBA")]):
            (tmp_path / part / name / "deeper").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (10 * number, 200, 30)).convert(mode).save(tmp_path / part / name / "deeper" / f"{number}.png")
            (tmp_path / part / name / "notes.txt").write_text("not an image")
    with pytest.raises(ValueError, match=r"^--image-size is None; accepted: a side in pixels, since the images in .* are not squares"):
        data_of(tmp_path)
    config = data_of(tmp_path, image_size=24, padding=1, flip=False)
    data = load_dataset(config, tmp_path)
    assert data.train_images.shape == (3, 3, 24, 24)
    assert data.views == ViewSpace(padding=1, has_flip=False)
    assert data_of(tmp_path, image_size=24).folder == replace(config.folder, padding=3, has_flip=True)  # type: ignore[type-var]
    assert data.train_images[2, :, 0, 0].tolist() == [20, 200, 30]


@pytest.mark.parametrize("suffix", [".gif", ".avif", ".jfif", ".jp2", ".mpo", ".tiff", ".webp", ".JPG"])
def test_every_format_that_pil_reads_is_read(write_digits: Callable[..., Path], suffix: str) -> None:
    if not features.check({".avif": "avif", ".jp2": "jpg_2000"}.get(suffix, "webp")):
        pytest.skip(f"this PIL has no {suffix}")
    root = write_digits(side=32)
    for path in sorted(root.rglob("*.png")):
        Image.open(path).save(path.with_suffix(suffix))
        path.unlink()
    data = load_dataset(data_of(root), root)
    assert (len(data.train_labels), len(data.test_labels)) == (18, 6)
    assert data.train_images.float().std() > 50


def test_an_image_that_pil_cant_read_is_refused_and_not_left_out(write_digits: Callable[..., Path]) -> None:
    root = write_digits()
    (root / "train" / "one" / "IMG_0001.HEIC").write_bytes(b"a photo")
    with pytest.raises(ValueError, match=r"/train/one/IMG_0001.HEIC is an image that PIL can't read; accepted: formats that it can"):
        data_of(root)


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", ".png"), ("I", ".tiff"), ("F", ".tiff")])
def test_values_that_dont_fit_eight_bits_are_refused_and_not_cut(write_digits: Callable[..., Path], mode: str, suffix: str) -> None:
    root = write_digits()
    values = np.full((8, 8), 30_000, dtype={"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
    Image.fromarray(values).save(root / "val" / "two" / f"scan{suffix}")
    sentence = rf"/val/two/scan{suffix} can't be decoded as an image \(more than 8 bits a channel\); accepted: whole image"
    with pytest.raises(ValueError, match=sentence):
        data_of(root)


ORIENTATIONS = {  # EXIF's code -> the sides of the photo that the stored image's first row and column are
    **{1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left")},
    **{5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom")},
}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".webp"])
@pytest.mark.parametrize("code", ORIENTATIONS)
def test_a_photo_stands_upright_however_the_camera_was_held(tmp_path: Path, suffix: str, code: int) -> None:
    upright = np.zeros((32, 32, 3), dtype=np.uint8)
    upright[:16, :16], upright[:16, 16:] = 250, 120
    row, column = ORIENTATIONS[code]
    stored = upright if row in ("top", "bottom") else upright.swapaxes(0, 1)
    stored = stored[::-1] if row in ("bottom", "right") else stored
    stored = stored[:, ::-1] if column in ("bottom", "right") else stored
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = code
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"photo{suffix}", exif=exif, quality=95)
    decoded = decode_image(tmp_path / f"photo{suffix}", 32, turns_upright=True).transpose(1, 2, 0)
    assert np.abs(decoded.astype(int) - upright).max() < 30


def test_a_photo_whose_exif_data_are_odd_is_still_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "Camera", 3
    half = Image.fromarray(np.repeat(np.array([0, 250], dtype=np.uint8), 8)[:, None].repeat(16, axis=1))
    half.save(tmp_path / "photo.jpg", exif=exif)
    content = bytearray((tmp_path / "photo.jpg").read_bytes())
    content[content.index(b"Exif") + 17] = 3  # its maker's name, said to be of numbers
    (tmp_path / "photo.jpg").write_bytes(content)
    assert decode_image(tmp_path / "photo.jpg", 16, turns_upright=True)[:, :8].min() > 200


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0", b"Exif\0\0garbage!garbage!"])
def test_a_whole_image_with_damaged_exif_data_is_read_as_it_lies(tmp_path: Path, exif: bytes) -> None:
    Image.new("RGB", (16, 16), (200, 0, 0)).save(tmp_path / "photo.png", exif=exif)
    assert decode_image(tmp_path / "photo.png", 16, turns_upright=True)[0].min() == 200


def test_sixteen_bit_colours_are_refused_though_pil_opens_them_as_rgb(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)  # 8x8 pixels of 16 bits, RGB
    rows = zlib.compress(b"".join(b"\0" + bytes(8 * 6) for _ in range(8)))
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        decode_image(tmp_path / "deep.png", 8, turns_upright=True)


def test_the_trial_is_named_by_the_content_and_other_images_are_refused(write_digits: Callable[..., Path]) -> None:
    root, copy = write_digits(name="first"), write_digits(name="second")
    config = data_of(root)
    assert data_of(copy) == config
    path = next((copy / "train" / "one").iterdir())
    Image.new("L", (8, 8), 7).save(path)
    changed = data_of(copy)
    assert TrialConfig(network="resnet8", data=changed).trial_id != TrialConfig(network="resnet8", data=config).trial_id
    with pytest.raises(ValueError, match="are not those that this trial was planned with"):
        load_dataset(config, copy)


def _without_val(root: Path) -> None:
    (root / "val").rename(root / "validation")


def _other_class(root: Path) -> None:
    (root / "val" / "two").rename(root / "val" / "three")


def _empty_class(root: Path) -> None:
    for path in (root / "val" / "one").iterdir():
        path.unlink()


def _one_class(root: Path) -> None:
    for part in ("train", "val"):
        for name in ("one", "two"):
            (root / part / name).rename(root / f"{part}-{name}")


def _broken_image(root: Path) -> None:
    (root / "train" / "two" / "03.png").write_bytes(b"\x89PNG\r\n\x1a\n, or so it says")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_without_val, r"imagefolder: .*/val is not a folder; accepted: --data-dir with train/<class>/ and val/<class>/"),
        (_other_class, r"imagefolder: the class 'three' is in .*/val but not in .*/train; accepted: the same classes in both"),
        (_empty_class, r"imagefolder: .*/val/one holds no image; accepted: files of a format that PIL reads"),
        (_one_class, r"imagefolder: .*/train has 1 class folders; accepted: 2 or more"),
        (_broken_image, r"/train/two/03.png can't be decoded as an image"),
    ],
)
def test_each_mistake_is_one_sentence(write_digits: Callable[..., Path], damage, sentence: str) -> None:
    root = write_digits()
    damage(root)
    with pytest.raises(ValueError, match=sentence) as raised:
        data_of(root)
    assert "\n" not in str(raised.value)


def test_a_file_whose_pixels_are_cut_is_named(write_digits: Callable[..., Path]) -> None:
    root = write_digits(side=64)
    path = root / "val" / "zero" / "06.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"/val/zero/06.png can't be decoded as an image"):
        load_dataset(data_of(root), root)


def test_a_folder_must_be_given_and_described() -> None:
    with pytest.raises(ValueError, match="--data-dir is None; accepted: a folder of images, with --dataset imagefolder"):
        SweepOptions(out=Path("/nowhere"), dataset="imagefolder")
    with pytest.raises(ValueError, match="--padding is 2; accepted: 0 or more, with --dataset imagefolder"):
        SweepOptions(out=Path("/nowhere"), padding=2)
    with pytest.raises(ValueError, match="folder is None; accepted: the description of an image folder"):
        DataConfig(dataset="imagefolder")
    with pytest.raises(DataMissing, match="pass --data-dir DIR with train/<class>/"):
        load_dataset(DataConfig(dataset="imagefolder", folder=FOLDER))


FOLDER = DataConfig.from_dict(
    {"dataset": "imagefolder", "folder": {"sha256": "0", "num_classes": 2, "num_train_images": 1, "padding": 0, "has_flip": False}}
).folder
