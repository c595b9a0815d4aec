"""A user's own images: what is read, and what each mistake is answered with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from hsakd.config import DataConfig, TrialConfig
from hsakd.data import DataMissing, load_dataset
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
    with pytest.raises(ValueError, match=r"image_size is None; accepted: a side in pixels, since the images in .* are not squares"):
        data_of(tmp_path)
    config = data_of(tmp_path, image_size=24, padding=1, flip=False)
    data = load_dataset(config, tmp_path)
    assert data.train_images.shape == (3, 3, 24, 24)
    assert data.views == ViewSpace(padding=1, has_flip=False)
    assert data_of(tmp_path, image_size=24).folder == replace(config.folder, padding=3, has_flip=True)  # type: ignore[type-var]
    assert data.train_images[2, :, 0, 0].tolist() == [20, 200, 30]


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
        (_empty_class, r"imagefolder: .*/val/one holds no image; accepted: files ending in .bmp"),
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
