"""STL-10 and TinyImageNet, read from files in their published layouts (written here from real digits, at their sizes)."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from hsakd.config import DataConfig
from hsakd.data import DataMissing, ResizedCrops, load_dataset

DIGITS = np.rint(load_digits().data * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)


def write_stl10(root: Path, *, per_class: int = 2) -> np.ndarray:
    """Write the four binary files; return the training images [n, 3, 96, 96]."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    labels = np.repeat(np.arange(1, 11, dtype=np.uint8), per_class)
    images = np.stack([np.kron(digit, np.ones((12, 12), np.uint8)) for digit in DIGITS[: len(labels)]])
    images = np.stack([images, images // 2, images // 4], axis=1)
    for part in ("train", "test"):
        images.transpose(0, 1, 3, 2).tofile(folder / f"{part}_X.bin")  # published column by column
        labels.tofile(folder / f"{part}_y.bin")
    return images


def write_tinyimagenet(root: Path) -> list[str]:
    """Write 200 classes of one training image each, and five validation images with their annotations; return the class names."""
    folder = root / "tiny-imagenet-200"
    wnids = [f"n{number * 37:08d}" for number in range(200)]
    for wnid, digit in zip(wnids, DIGITS, strict=False):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        Image.fromarray(np.kron(digit, np.ones((8, 8), np.uint8))).save(folder / "train" / wnid / "images" / f"{wnid}_0.JPEG", quality=95)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("boxes")
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for number in range(5):
        buffer = io.BytesIO()
        Image.fromarray(np.kron(DIGITS[number], np.ones((8, 8), np.uint8))).save(buffer, "JPEG", quality=95)
        (folder / "val" / "images" / f"val_{number}.JPEG").write_bytes(buffer.getvalue())
        lines.append(f"val_{number}.JPEG\t{wnids[7 * number]}\t0\t0\t63\t63")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return wnids


def test_stl10_is_read_upright_and_normalized_as_the_authors_do(tmp_path: Path) -> None:
    images = write_stl10(tmp_path)
    data = load_dataset(DataConfig(dataset="stl10"), tmp_path)
    assert np.array_equal(data.train_images.numpy(), images)
    assert data.train_labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert (data.mean, data.std, data.classes[:2]) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), ("airplane", "bird"))
    probe = load_dataset(DataConfig(dataset="stl10", image_size=32, augmentation="resized_crop"), tmp_path)
    assert probe.views == ResizedCrops(32)
    assert (probe.train_images.shape[-1], probe.test_images.shape[-1], probe.image_size) == (96, 32, 32)


def test_tinyimagenet_is_the_same_as_published_and_with_val_sorted_into_class_folders(tmp_path: Path) -> None:
    wnids = write_tinyimagenet(tmp_path)
    config = DataConfig(dataset="tinyimagenet")
    published = load_dataset(config, tmp_path)
    assert (published.num_classes, published.classes, published.image_size) == (200, tuple(wnids), 64)
    assert published.test_labels.tolist() == [0, 7, 14, 21, 28]
    val = tmp_path / "tiny-imagenet-200" / "val"
    for number in range(5):  # what the authors' script does to it
        target = val / wnids[7 * number] / "images"
        target.mkdir(parents=True)
        (val / "images" / f"val_{number}.JPEG").rename(target / f"val_{number}.JPEG")
    (val / "images").rmdir()
    moved = load_dataset(config, tmp_path / "tiny-imagenet-200")
    assert np.array_equal(moved.test_images.numpy(), published.test_images.numpy())
    assert moved.test_labels.tolist() == published.test_labels.tolist()


def test_missing_and_damaged_files_are_a_sentence(tmp_path: Path) -> None:
    for name in ("stl10", "tinyimagenet"):
        with pytest.raises(DataMissing, match=f"{name}: no folder to look in; pass --data-dir DIR"):
            load_dataset(DataConfig(dataset=name))
        with pytest.raises(DataMissing, match=f"{name}: .* are not in "):
            load_dataset(DataConfig(dataset=name), tmp_path)
    write_stl10(tmp_path)
    path = tmp_path / "stl10_binary" / "train_X.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train_X.bin and _y.bin don't fit together"):
        load_dataset(DataConfig(dataset="stl10", train_subset=10), tmp_path)
