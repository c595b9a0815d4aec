"""VOC 2007's mAP against its definition as loops."""

import sys

import pytest
import torch
from torch import Tensor

from hsakd.data.voc import Objects
from hsakd.training.average_precision import Detections, mean_average_precision

EMPTY = Detections(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))


def objects(boxes: list[list[float]], labels: list[int], difficult: list[bool] | None = None) -> Objects:
    return Objects(torch.tensor(boxes), torch.tensor(labels), torch.tensor(difficult or [False] * len(labels)))


def found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Detections:
    return Detections(torch.tensor(boxes), torch.tensor(labels), torch.tensor(scores))


def overlap(first: Tensor, second: Tensor) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return float(width * height / (areas[0] + areas[1] - width * height))


def by_definition(truth: list[Objects], detections: list[Detections]) -> float:
    """The devkit's rules, one detection after another, the best first."""
    precisions = []
    for label in range(1, 21):
        num_objects = sum(int(((row.labels == label) & ~row.is_difficult).sum()) for row in truth)
        if num_objects == 0:
            continue
        rows = [
            (float(score), image, box)
            for image, row in enumerate(detections)
            for box, own, score in zip(*row, strict=True)
            if int(own) == label
        ]
        taken: set[tuple[int, int]] = set()
        num_true, num_false, points = 0, 0, []
        for _, image, box in sorted(rows, key=lambda row: -row[0]):
            overlaps = [
                overlap(box, other) if int(own) == label else 0.0
                for other, own in zip(truth[image].boxes, truth[image].labels, strict=True)
            ]
            best = max(range(len(overlaps)), key=overlaps.__getitem__, default=None)
            if best is None or overlaps[best] < 0.5 or (image, best) in taken:
                num_false += 1
            elif truth[image].is_difficult[best]:
                continue
            else:
                taken.add((image, best))
                num_true += 1
            points.append((num_true / num_objects, num_true / (num_true + num_false)))
        at = [max((precision for recall, precision in points if recall >= step / 10 - 1e-12), default=0.0) for step in range(11)]
        precisions.append(sum(at) / 11)
    return 100 * sum(precisions) / len(precisions)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_devkits_on_random_detections_with_difficult_objects(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth, detections = [], []
    for _ in range(12):
        count = int(torch.randint(1, 7, (1,), generator=generator))
        corners = 100.0 * torch.stack([torch.arange(count), torch.zeros(count)], dim=1)  # far apart: no box overlaps two objects by half
        boxes = torch.cat([corners, corners + 30 + 50 * torch.rand(count, 2, generator=generator)], dim=1)
        truth.append(Objects(boxes, torch.randint(1, 4, (count,), generator=generator), torch.rand(count, generator=generator) < 0.3))
        copies = boxes.repeat(4, 1)
        jittered = copies + 12 * torch.randn(copies.shape, generator=generator)
        jittered[:, 2:] = torch.maximum(jittered[:, 2:], jittered[:, :2] + 1)
        labels = torch.randint(1, 5, (len(copies),), generator=generator)
        is_right = torch.rand(len(copies), generator=generator) < 0.6
        labels = torch.where(is_right, truth[-1].labels.repeat(4), labels)
        detections.append(Detections(jittered, labels, torch.rand(len(copies), generator=generator)))
    expected = by_definition(truth, detections)
    assert 3 < expected < 97
    assert mean_average_precision(truth, detections) == pytest.approx(expected, abs=1e-4)


def test_known_cases() -> None:
    square, far = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]
    truth = [objects([square, far], [1, 1]), objects([square], [2])]
    everything = [found([square, far], [1, 1], [0.9, 0.8]), found([square], [2], [0.3])]
    assert mean_average_precision(truth, everything) == pytest.approx(100)
    assert mean_average_precision(truth, [EMPTY, EMPTY]) == 0
    half = [found([square], [1], [0.9]), EMPTY]  # recall 0.5 of class 1: 6 of 11 points; nothing of class 2
    assert mean_average_precision(truth, half) == pytest.approx(100 * (6 / 11 + 0) / 2)
    twice = [found([square, square, far], [1, 1, 1], [0.9, 0.8, 0.7]), everything[1]]  # the second finds what is found already
    assert mean_average_precision(truth, twice) == pytest.approx(100 * ((6 + 5 * 2 / 3) / 11 + 1) / 2)


def test_a_small_box_inside_a_difficult_object_is_false_and_boxes_on_it_are_neither() -> None:
    easy, hard = [0.0, 0.0, 10.0, 10.0], [50.0, 0.0, 90.0, 40.0]
    truth = [objects([easy, hard], [1, 1], [False, True])]
    on_it = [found([hard, hard, easy], [1, 1, 1], [0.9, 0.8, 0.7])]
    assert mean_average_precision(truth, on_it) == pytest.approx(100)
    inside = [found([[60.0, 10.0, 70.0, 20.0], easy], [1, 1], [0.9, 0.7])]  # all of it inside: a COCO crowd would swallow it
    assert mean_average_precision(truth, inside) == pytest.approx(50)


def test_without_an_object_to_find_and_without_the_library_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no object that is not difficult"):
        mean_average_precision([objects([[0.0, 0.0, 9.0, 9.0]], [1], [True])], [EMPTY])
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[detection\]'"):
        mean_average_precision([objects([[0.0, 0.0, 9.0, 9.0]], [1])], [EMPTY])
