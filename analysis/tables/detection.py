"""Table 4 of the paper: Faster R-CNN on Pascal VOC, on the backbones of the students."""

import json
from dataclasses import replace

from analysis.aggregate import SELECTIONS, Results
from analysis.artefact import Options
from analysis.inference import Summary
from analysis.studies import paper_order, published_arms, study_table
from analysis.table import Table
from analysis.uniform import Pair

STUDY, PUBLISHED = "detection", "table4_voc_detection"
COLUMNS = {**SELECTIONS, "last": "map50_last", "best-test": "map50_best_test"}  # nothing is held out for a validation
MEASURE = "Mean average precision on VOC 2007 test in per cent (IoU 0.5, 11 recall points, as VOC 2007 defines it)"


def build(results: Results, options: Options) -> list[Table]:
    """Return each method's mAP, the published numbers beside it where the students were trained on ImageNet."""
    sources = {_source(text) for text in results.rows(purpose="report", study=STUDY)["config_json"]}

    def published(pair: Pair) -> dict[str, Summary]:
        return published_arms(PUBLISHED, pair, dataset=pair[0]) if sources == {"imagenet"} else {}

    table = study_table(
        results,
        options,
        study=STUDY,
        title="Detection: Faster R-CNN on Pascal VOC",
        order=paper_order(PUBLISHED),
        base="Student",
        published=published,
        columns=COLUMNS,
        measure=MEASURE,
    )
    note = f"Students were trained on {', '.join(sorted(sources))}; the paper's on imagenet, and how it trained detectors is not published."
    return [replace(table, notes=(*table.notes, note))]


def _source(config_json: str) -> str:
    """Return the data set that a detector's student was trained on."""
    return str(json.loads(config_json)["backbone"]["data"]["dataset"])
