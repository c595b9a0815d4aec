"""Images that stay in their files: which pixels a view is, whoever reads it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision.transforms.functional import _compute_resized_output_size
from torchvision.transforms.v2 import functional

from hsakd.config import DataConfig, FolderConfig
from hsakd.data import DataMissing, ResizedCrops, StreamedImages, load_dataset, open_dataset
from hsakd.data.streams import middle_square, resized_size
from hsakd.image_folder import scan_image_folder


def streamed(root: Path, *, size: int = 16, num_workers: int = 0, **changes: object) -> StreamedImages:
    found = scan_image_folder(root)
    folder = FolderConfig(sha256=found.sha256, num_classes=3, num_train_images=len(found.train), padding=0, has_flip=True)
    config = DataConfig(dataset="imagefolder", image_size=size, augmentation="imagenet", folder=folder)
    data = open_dataset(replace(config, **changes), root, num_workers=num_workers)  # type: ignore[arg-type]
    assert isinstance(data, StreamedImages)
    return data


@pytest.fixture
def rectangles(write_digits: Callable[..., Path]) -> Path:
    root = write_digits(per_class=5)
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        Image.open(path).resize((30 + 5 * number, 90 - 3 * number)).convert("RGB").save(path)
    return root


def test_a_view_is_a_resized_crop_of_the_file_and_the_middle_is_what_is_evaluated(rectangles: Path) -> None:
    data = streamed(rectangles)
    found = scan_image_folder(rectangles)
    views = torch.tensor([7, 123456, 2**31 - 1])
    (batch,) = data.training_batches([(torch.tensor([0, 4, 9]), views)], dtype=torch.float64)
    for row, index, view in zip(batch.images, [0, 4, 9], views, strict=True):
        image = Image.open(rectangles / found.train[index][0])
        (box,), (flip,) = ResizedCrops(16).boxes(view[None], image.height, image.width)
        top, left, height, width = (int(value) for value in box)
        expected = functional.resized_crop(image, top, left, height, width, [16, 16])
        expected = functional.horizontal_flip(expected) if flip else expected
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (data.mean, data.std))
        assert torch.allclose(row * std + mean, functional.pil_to_tensor(expected).double() / 255)
    assert batch.labels.tolist() == [found.train[index][1] for index in (0, 4, 9)]
    evaluated = torch.cat([images for images, _ in data.evaluation_batches("test")])
    for row, (name, _) in zip(evaluated, found.val, strict=True):
        resized = functional.resize(Image.open(rectangles / name), [18])  # 16 * 256 / 224
        assert torch.equal(row, functional.pil_to_tensor(functional.center_crop(resized, [16, 16])))


def test_imagenet_is_evaluated_as_torchvision_does_whatever_the_images_size() -> None:
    for width in range(16, 700):
        for height in range(16, 700, 7):
            expected_height, expected_width = _compute_resized_output_size((height, width), [256])
            assert resized_size((width, height), 256) == (expected_width, expected_height), (width, height)
    noise = np.random.default_rng(0).integers(0, 256, (400, 800, 3), dtype=np.uint8)
    for width, height in ((500, 375), (300, 237), (49, 80), (800, 251), (256, 256)):
        image = Image.fromarray(noise[:height, :width])
        expected = functional.center_crop(functional.resize(image, [256]), [224, 224])
        assert np.array_equal(np.asarray(middle_square(image, 224)), np.asarray(expected)), (width, height)


def test_own_photos_are_turned_upright_and_imagenets_are_not(rectangles: Path) -> None:
    sideways = Image.Exif()
    sideways[ExifTags.Base.Orientation] = 6  # to be shown a quarter turn clockwise
    names = sorted(path.relative_to(rectangles).as_posix() for path in (rectangles / "val").rglob("*.png"))
    stored = [np.asarray(middle_square(Image.open(rectangles / name), 16)) for name in names]
    for name in names:
        Image.open(rectangles / name).save(rectangles / name, exif=sideways)
    own = streamed(rectangles)
    as_stored = replace(own.parts["test"], turns_upright=False)  # what `open_dataset` gives of ImageNet
    imagenet = StreamedImages(
        train=as_stored, val=as_stored, test=as_stored, image_size=16, classes=own.classes, fingerprint="", num_workers=0
    )
    for data, turns in ((own, -1), (imagenet, 0)):
        images = torch.cat([images for images, _ in data.evaluation_batches("test")]).permute(0, 2, 3, 1).numpy()
        for image, (name, _) in zip(images, scan_image_folder(rectangles).val, strict=True):
            assert np.abs(image.astype(int) - np.rot90(stored[names.index(name)], turns)).max() <= 1, name


def test_workers_and_ranks_read_the_same_pixels_and_every_image_is_evaluated_once(rectangles: Path) -> None:
    alone, helped = streamed(rectangles), streamed(rectangles, num_workers=2)
    generator = torch.Generator().manual_seed(3)
    state = torch.get_rng_state()
    for _ in range(2):  # the loader's workers stay from epoch to epoch
        chunks = [(torch.randint(15, (4,), generator=generator), torch.randint(2**31, (4,), generator=generator)) for _ in range(3)]
        for own, other in zip(
            alone.training_batches(chunks, dtype=torch.float32), helped.training_batches(chunks, dtype=torch.float32), strict=True
        ):
            assert all(torch.equal(left, right) for left, right in zip(own, other, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    whole = [label for _, labels in alone.evaluation_batches("test") for label in labels.tolist()]
    shared = [[label for _, labels in alone.evaluation_batches("test", rank=rank, size=2) for label in labels.tolist()] for rank in (0, 1)]
    assert shared == [whole[0::2], whole[1::2]]


def test_held_out_images_are_seen_as_for_evaluation_and_a_stream_is_named_by_its_images(rectangles: Path) -> None:
    whole, split = streamed(rectangles), streamed(rectangles, validation_fraction=0.4)
    assert (split.num_images("train"), split.num_images("val"), split.num_images("test")) == (9, 6, 6)
    assert whole.fingerprint != split.fingerprint
    images = torch.cat([images for images, _ in split.evaluation_batches("val")])
    assert (images.shape, images.dtype) == ((6, 3, 16, 16), torch.uint8)


def test_one_process_of_a_trial_digests_own_images_and_the_others_list_them(rectangles: Path) -> None:
    leader = streamed(rectangles)
    found = scan_image_folder(rectangles)
    folder = FolderConfig(sha256=found.sha256, num_classes=3, num_train_images=len(found.train), padding=0, has_flip=True)
    config = DataConfig(dataset="imagefolder", image_size=16, augmentation="imagenet", folder=folder)
    path = rectangles / found.train[0][0]
    Image.open(path).rotate(180).save(path)
    scan_image_folder.cache_clear()
    other = open_dataset(config, rectangles, is_digested_elsewhere=True)
    assert isinstance(other, StreamedImages)
    assert other.fingerprint == leader.fingerprint
    assert scan_image_folder.cache_info().misses == 0
    with pytest.raises(ValueError, match="are not those that this trial was planned with"):
        open_dataset(config, rectangles)


def test_a_crop_of_an_image_too_long_for_any_attempt_is_its_middle_in_an_accepted_ratio() -> None:
    boxes, _ = ResizedCrops(8).boxes(torch.arange(50), 10, 1000)
    fallback = boxes[(boxes[:, 3] == 13) & (boxes[:, 2] == 10)]
    assert len(fallback) > 0
    assert set(fallback[:, 1].tolist()) == {float((1000 - 13) // 2)}


def test_what_is_missing_or_not_imagenet_is_said_in_one_sentence(rectangles: Path, tmp_path: Path) -> None:
    imagenet = DataConfig(dataset="imagenet", image_size=224, augmentation="imagenet")
    with pytest.raises(DataMissing, match="imagenet: no folder to look in; pass --data-dir DIR"):
        open_dataset(imagenet)
    with pytest.raises(ValueError, match=r"imagenet: .*train is not a folder"):
        open_dataset(imagenet, tmp_path / "nothing")
    with pytest.raises(DataMissing, match="has 3 class folders; accepted: the 1000 of ILSVRC-2012"):
        open_dataset(imagenet, rectangles)
    with pytest.raises(ValueError, match="is too large for memory; accepted: the augmentation imagenet"):
        load_dataset(DataConfig(dataset="imagenet"), rectangles)
    with pytest.raises(ValueError, match="accepted: imagenet with the data sets imagenet, imagefolder and an image_size"):
        DataConfig(dataset="digits", image_size=16, augmentation="imagenet")
    with pytest.raises(ValueError, match="whose images stay in their files"):
        load_dataset(imagenet, rectangles)
    broken = streamed(rectangles)
    (rectangles / str(broken.parts["test"].names[0])).write_bytes(b"\xff\xd8 cut")
    with pytest.raises(ValueError, match="can't be decoded as an image"):
        list(broken.evaluation_batches("test"))
    assert np.all(broken.parts["train"].labels == np.sort(broken.parts["train"].labels))
