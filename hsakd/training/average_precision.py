"""VOC 2007's mean average precision (Everingham et al. 2010, section 4.2), computed by pycocotools."""

import contextlib
import importlib.util
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from hsakd.data.voc import Objects

IOU = 0.5
RECALL_POINTS = 11  # VOC 2007's; from 2010 on VOC takes the whole area, COCO 101 points

ROUNDING = 1e-9  # 3 of 10 objects found are a recall of 0.3, though the third of these points is a bit above 0.3 in binary


class Detections(NamedTuple):
    """What a detector found in an image, on the CPU: boxes as those of `Objects`, labels from 1, scores in 0..1."""

    boxes: Tensor  # [D, 4]
    labels: Tensor  # [D]
    scores: Tensor  # [D]


def require_pycocotools() -> None:
    """Raise ValueError, naming the extra, where pycocotools is not installed."""
    if importlib.util.find_spec("pycocotools") is None:
        raise ValueError("detection needs pycocotools: pip install '.[detection]'")


def mean_average_precision(truth: Sequence[Objects], found: Sequence[Detections]) -> float:
    """Return the mean over classes of AP at IoU 0.5 in per cent: the mean of 11 precisions, each the best at recall 0, 0.1, ... or more.

    Difficult objects count neither as found nor as missed. Classes without an object that is not difficult are left out of the mean (VOC
    2007 test has all). Two things are pycocotools', not the VOC devkit's: a detection that overlaps several objects takes the best free
    one, where the devkit takes the best and calls it false if that is taken; and exactly IoU 0.5 suffices.

    Raises:
        ValueError: pycocotools is not installed, or there is no such object.
    """
    require_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    class VocEval(COCOeval):  # type: ignore[misc]
        """COCO's crowds are ignored as VOC's difficult objects are, but overlaps with them are measured in another way."""

        def computeIoU(self, imgId: int, catId: int) -> Any:
            objects = self._gts[imgId, catId]
            for entry in objects:
                entry["iscrowd"] = 0
            overlaps = super().computeIoU(imgId, catId)
            for entry in objects:
                entry["iscrowd"] = entry["ignore"]
            return overlaps

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress
        known, given = COCO(), COCO()
        images = [{"id": number} for number in range(len(truth))]
        labels = sorted({int(label) for row in truth for label in row.labels})
        known.dataset = {
            "images": images,
            "categories": [{"id": label} for label in labels],
            "annotations": _numbered(
                {**_entry(number, box, label), "iscrowd": int(is_difficult)}
                for number, row in enumerate(truth)
                for box, label, is_difficult in zip(*(values.tolist() for values in row), strict=True)
            ),
        }
        given.dataset = {
            **known.dataset,
            "annotations": _numbered(
                {**_entry(number, box, label), "score": score}
                for number, row in enumerate(found)
                for box, label, score in zip(*(values.tolist() for values in row), strict=True)
            ),
        }
        known.createIndex()
        given.createIndex()
        evaluation = VocEval(known, given, "bbox")
        evaluation.params.iouThrs = np.array([IOU])
        evaluation.params.recThrs = np.linspace(0, 1, RECALL_POINTS) - ROUNDING
        evaluation.params.maxDets = [max([1, *(len(row.labels) for row in found)])]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, np.inf]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, 0]  # [recall, class]; -1 for a class without objects
    has_objects = precision[0] >= 0
    if not has_objects.any():
        raise ValueError("the images have no object that is not difficult; accepted: at least one, to be found")
    return float(100 * precision[:, has_objects].mean())


def _entry(number: int, box: list[float], label: int) -> dict[str, Any]:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    return {"image_id": number, "category_id": label, "bbox": [left, top, width, height], "area": width * height}


def _numbered(entries: Any) -> list[dict[str, Any]]:
    return [{**entry, "id": number} for number, entry in enumerate(entries, start=1)]
