"""Pascal VOC in torchvision's layout: what is read, and what is said where it can't be."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import VOCDetection

from hsakd.config import DETECTION_DATASET, DataConfig
from hsakd.data import DataMissing, check_dataset
from hsakd.data.voc import CLASSES, read_voc
from hsakd.training.detection import batches_of, epoch_rows, mirrored

ANNOTATION = """<annotation><filename>x.jpg</filename>
<object><name>person</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>3</ymin><xmax>40</xmax><ymax>20</ymax></bndbox>
<part><name>head</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part></object>
<object><name>tvmonitor</name><bndbox><xmin>10.5</xmin><ymin>3</ymin><xmax>12</xmax><ymax>9</ymax></bndbox></object>
<object><name>person</name><difficult>1</difficult><bndbox><xmin>7</xmin><ymin>7</ymin><xmax>7</xmax><ymax>7</ymax></bndbox></object>
</annotation>"""


def folder_of(root: Path, year: str = "2007") -> Path:
    return root / "VOCdevkit" / f"VOC{year}"


def test_boxes_are_edges_from_zero_and_difficult_objects_are_marked(make_voc: Callable[..., Path]) -> None:
    root = make_voc()
    (folder_of(root) / "Annotations" / "test_000001.xml").write_text(ANNOTATION)
    _, test = read_voc(root)
    boxes, labels, is_difficult = test.objects[1]
    assert boxes.tolist() == [[0, 2, 40, 20], [9.5, 2, 12, 9], [6, 6, 7, 7]]
    assert [CLASSES[label - 1] for label in labels] == ["person", "tvmonitor", "person"]
    assert is_difficult.tolist() == [False, False, True]
    assert len(CLASSES) == len(set(CLASSES)) == 20


def test_training_takes_both_years_without_difficult_objects_and_without_images_that_have_no_other(make_voc: Callable[..., Path]) -> None:
    root = make_voc()
    only_difficult = re.sub("<difficult>.</difficult>", "", ANNOTATION).replace(
        "</name><bndbox>", "</name><difficult>1</difficult><bndbox>"
    )
    (folder_of(root) / "Annotations" / "trainval_000000.xml").write_text(ANNOTATION)
    (folder_of(root) / "Annotations" / "trainval_000001.xml").write_text(only_difficult)
    (folder_of(root, "2012") / "Annotations" / "trainval_000002.xml").write_text("<annotation><filename>x.jpg</filename></annotation>")
    train, test = read_voc(root)
    assert len(train.objects) == len(train.readers) == 4
    assert len(test.objects) == 3
    assert train.objects[0].labels.tolist() == [15, 20]
    assert not any(row.is_difficult.any() for row in train.objects)
    assert [Path(reader.images[index]).parts[-3:] for reader, index in train.readers[1:3]] == [
        ("VOC2007", "JPEGImages", "trainval_000002.jpg"),
        ("VOC2012", "JPEGImages", "trainval_000000.jpg"),
    ]


def test_images_are_torchvisions_and_mirroring_moves_boxes_with_their_pixels(voc: Path) -> None:
    train, _ = read_voc(voc)
    reader, index = train.readers[2]
    assert isinstance(reader, VOCDetection)
    image = train.image(2)
    with Image.open(reader.images[index]) as file:
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(file))
    flipped, boxes, labels = mirrored(image, train.objects[2])
    assert torch.equal(labels, train.objects[2].labels)
    for before, after in zip(train.objects[2].boxes.int().tolist(), boxes.int().tolist(), strict=True):
        own = image[:, before[1] : before[3], before[0] : before[2]]
        assert torch.equal(flipped[:, after[1] : after[3], after[0] : after[2]], own.flip(-1))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_epochs_rows_depend_on_seed_and_epoch_only_and_not_on_who_decodes_them(voc: Path) -> None:
    train, _ = read_voc(voc)
    rows = epoch_rows(train, seed=1, epoch=2)
    assert sorted(rows.order) == list(range(6))
    assert rows.order == epoch_rows(train, seed=1, epoch=2).order
    assert rows.order != epoch_rows(train, seed=1, epoch=3).order
    assert len({tuple(epoch_rows(train, seed=0, epoch=epoch).is_mirrored) for epoch in range(4)}) > 1
    here, there = (list(batches_of(rows, 4, num_workers=workers, device=torch.device("cpu"))) for workers in (0, 1))
    assert [len(batch) for batch in here] == [4, 2]
    for one, other in zip((row for batch in here for row in batch), (row for batch in there for row in batch), strict=True):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    [last] = batches_of(rows, 4, first=1, device=torch.device("cpu"))
    assert torch.equal(last[0][0], here[1][0][0])


def test_missing_data_are_named_with_where_they_were_looked_for_and_how_to_get_them(make_voc: Callable[..., Path]) -> None:
    with pytest.raises(DataMissing, match="pass --data-dir DIR that holds VOCdevkit, with --download"):
        check_dataset(DataConfig(dataset=DETECTION_DATASET), None)
    root = make_voc()
    listing = folder_of(root, "2012") / "ImageSets" / "Main" / "trainval.txt"
    text = listing.read_text()
    listing.unlink()
    with pytest.raises(DataMissing, match=re.escape(f"{listing} is not there (VOC 2012 trainval); pass --download")):
        check_dataset(DataConfig(dataset=DETECTION_DATASET), root)
    listing.write_text(text)
    image = folder_of(root) / "JPEGImages" / "test_000002.jpg"
    image.unlink()
    with pytest.raises(DataMissing, match=re.escape(f"{image} is not there, but")):
        read_voc(root)


def test_what_is_missing_is_fetched_and_what_is_there_is_not(voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        del md5
        fetched.append(filename)
        year, name = (re.findall("20..", url)[0], "test" if "VOCtest" in url else "trainval")
        part = f"VOCdevkit/VOC{year}"
        others = shutil.ignore_patterns("test.txt" if name == "trainval" else "trainval.txt")
        shutil.copytree(voc / part, Path(root) / part, ignore=others, dirs_exist_ok=True)

    monkeypatch.setattr("torchvision.datasets.voc.download_and_extract_archive", fetch)  # there is no network
    for _ in range(2):
        train, test = read_voc(tmp_path, download=True)
        assert (len(train.objects), len(test.objects)) == (6, 3)
        assert fetched == ["VOCtrainval_06-Nov-2007.tar", "VOCtrainval_11-May-2012.tar", "VOCtest_06-Nov-2007.tar"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation><object>", "no element found"),
        (ANNOTATION.replace("tvmonitor", "teapot"), "the class 'teapot'"),
        (ANNOTATION.replace("<xmax>40<", "<xmax>0<"), "a box from 1, 3 to 0, 20"),
        (ANNOTATION.replace("<xmin>7<", "<xmin>left<"), "could not convert"),
        (ANNOTATION.replace("bndbox", "box"), "bndbox"),
        ("<html></html>", "annotation"),
    ],
)
def test_an_annotation_that_cant_be_used_is_named(make_voc: Callable[..., Path], text: str, said: str) -> None:
    root = make_voc()
    path = folder_of(root) / "Annotations" / "trainval_000001.xml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} can't be used .*{re.escape(said)}"):
        read_voc(root)


def test_an_image_that_cant_be_decoded_is_named(make_voc: Callable[..., Path]) -> None:
    root = make_voc()
    path = folder_of(root) / "JPEGImages" / "test_000000.jpg"
    path.write_bytes(path.read_bytes()[:300])
    _, test = read_voc(root)
    with pytest.raises(ValueError, match=re.escape(f"{path} can't be decoded as an image")):
        test.image(0)
