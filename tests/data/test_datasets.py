"""Files of data sets that can't be fetched or read: one sentence, never a traceback."""

import gzip
import re
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hsakd.config import DETECTION_DATASET, DataConfig
from hsakd.data import DATASETS, DataMissing, ViewSpace, check_dataset, load_dataset
from hsakd.data.datasets import _read_raw
from hsakd.dataset_table import DATASET_TABLE

PUBLISHED = [name for name, facts in DATASET_TABLE.items() if facts.image_size is not None]
FASHION = DataConfig(dataset="fashion_mnist")
STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def write_fashion(folder: Path, *, num_test_labels: int = 20) -> None:
    for stem in STEMS:
        shape = (20, 28, 28) if "images" in stem else (num_test_labels if stem.startswith("t10k") else 20,)
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        content = (np.arange(np.prod(shape)) % 10).astype(np.uint8).tobytes()
        (folder / f"{stem}.gz").write_bytes(gzip.compress(header + content))


def test_every_data_set_has_a_reader_and_a_line_in_the_table() -> None:
    assert set(DATASETS) == set(DATASET_TABLE)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_data_set_is_what_the_table_says_of_it(name: str) -> None:
    facts = DATASET_TABLE[name]
    try:
        data = load_dataset(DataConfig(dataset=name))
    except DataMissing as error:
        pytest.skip(str(error))
    assert (data.num_classes, len(data.classes), data.image_size) == (facts.num_classes, facts.num_classes, facts.image_size)
    assert data.views == ViewSpace(facts.padding, facts.has_flip)
    assert data.views.num_views == facts.num_views
    assert len(data.train_images) == facts.num_train_images
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert images.shape == (len(labels), len(data.mean), facts.image_size, facts.image_size)
        assert labels.unique().tolist() == list(range(data.num_classes))
    assert len(data.std) == len(data.mean)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100", "stl10", DETECTION_DATASET])
def test_a_download_that_fails_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr("hsakd.data.datasets.DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    with pytest.raises(DataMissing, match=rf"^{name}: it can't be fetched into {re.escape(str(tmp_path))} \(.+\); try again, or put"):
        check_dataset(DataConfig(dataset=name), tmp_path, download=True)


@pytest.mark.parametrize("stem", [STEMS[0], STEMS[3]])
@pytest.mark.parametrize("damage", ["cut", "empty", "scrambled", "unpacked and cut", "no bytes"])
def test_a_damaged_idx_file_is_named(tmp_path: Path, stem: str, damage: str) -> None:
    write_fashion(tmp_path)
    assert len(load_dataset(FASHION, tmp_path).train_labels) == 20
    _read_raw.cache_clear()
    path = tmp_path / f"{stem}.gz"
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "unpacked and cut":
        path.unlink()
        path = tmp_path / stem
        path.write_bytes(gzip.decompress(content)[:-1])
    else:
        path.write_bytes(
            {
                "cut": content[:middle],
                "empty": b"",
                "scrambled": content[:middle] + b"\xff" * 8 + content[middle + 8 :],
                "no bytes": gzip.compress(struct.pack(">HBBI", 0, 13, 1, 1) + bytes(4)),
            }[damage]
        )
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} can't be read \(.*\); accepted: a whole IDX file of bytes"):
        load_dataset(FASHION, tmp_path)


def test_as_many_labels_as_images_are_asked_for(tmp_path: Path) -> None:
    write_fashion(tmp_path, num_test_labels=19)
    with pytest.raises(ValueError, match=r"^fashion_mnist has 20 test images and 19 labels; accepted: as many labels as images"):
        load_dataset(FASHION, tmp_path)


def test_a_folder_that_is_not_there_is_not_replaced_by_debians(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"^fashion_mnist: .*nowhere is no folder; pass another --data-dir, or --download"):
        load_dataset(FASHION, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"train_subset": 5}, "train_subset is 5"),
        ({"train_subset": 1430}, "train_subset is 1430"),  # 7 left for 10 classes
        ({"few_shot_ratio": 0.001}, r"few_shot_ratio is 0\.001"),
        ({"train_subset": 60, "validation_fraction": 0.1}, r"validation_fraction is 0\.1"),
    ],
)
def test_a_split_without_an_image_of_each_class_names_what_was_asked_for(change: dict[str, Any], asked: str) -> None:
    with pytest.raises(ValueError, match=rf"^{asked}; accepted: a split of the \d+ images into two parts with one image or more of each"):
        load_dataset(DataConfig(dataset="digits", **change))
