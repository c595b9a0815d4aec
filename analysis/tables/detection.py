"""Table 4 of the paper: Faster R-CNN on Pascal VOC, on the backbones of the students."""

from dataclasses import replace

from analysis.aggregate import SELECTIONS, Results
from analysis.artefact import Options
from analysis.studies import paper_order, study_table
from analysis.table import Table

STUDY, PUBLISHED = "detection", "table4_voc_detection"
COLUMNS = {**SELECTIONS, "last": "map50_last", "best-test": "map50_best_test"}  # nothing is held out for a validation
MEASURE = "Mean average precision on VOC 2007 test in per cent (IoU 0.5, 11 recall points, as VOC 2007 defines it)"


def build(results: Results, options: Options) -> list[Table]:
    """Return each method's mAP, the published numbers beside it where the students were trained on ImageNet."""
    table = study_table(
        results,
        options,
        study=STUDY,
        title="Detection: Faster R-CNN on Pascal VOC",
        order=paper_order(PUBLISHED),
        base="Student",
        beside=lambda rows, pair, notes: rows.published(PUBLISHED, pair, notes, trained_on="imagenet"),
        columns=COLUMNS,
        measure=MEASURE,
    )
    return [replace(table, notes=(*table.notes, "How the paper trained its detectors is not published."))]
