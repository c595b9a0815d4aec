"""Table 4: each method's detectors, their gain over the plain student's, the published numbers where students were trained on ImageNet."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.build import main
from hsakd.config import DataConfig, DetectionConfig, TrialConfig

COLUMN = "resnet34_imagenet → resnet18_imagenet"


@pytest.fixture
def detected(folder: Callable[..., Any]) -> Callable[[str], Path]:
    """A maker of folders whose plan has three detectors of two methods each, and one that diverged, on students of a data set."""

    def make(dataset: str) -> Path:
        run = folder(
            name=dataset, dataset=dataset, teacher="resnet34_imagenet", student="resnet18_imagenet", is_papers=dataset == "imagenet"
        )
        for method, base in (("Student", 75.0), ("HSAKD", 77.5)):
            for seed in range(3):
                source = run.config(run.student, taps=() if method == "Student" else None, seed=seed)
                detector = TrialConfig(
                    network=run.student,
                    data=DataConfig(dataset="voc0712"),
                    taps=(),
                    seed=seed,
                    backbone=source,
                    detection=DetectionConfig(),
                )
                run.add(detector, "report", method, None, study="detection")
                record = replace(run.record(detector, 0.0), top1_last=None, map50_last=base + seed, map50_best_test=base + seed + 0.5)
                run.store.write_trial(record, [])
        lost = replace(detector, seed=9)
        run.add(lost, "report", "HSAKD", 0.0, status="diverged", study="detection")
        return Path(run.write())

    return make


def text(root: Path, row: str, column: str) -> str:
    table = pd.read_csv(root / "tables" / "detection.csv")
    return str(table[(table["row"] == row) & (table["column"] == column)]["text"].item())


def test_measured_rows_stand_beside_the_published_ones(detected: Callable[[str], Path]) -> None:
    root = detected("imagenet")
    assert main([str(root)]) == 0
    assert text(root, "Student", COLUMN) == "76.00 ± 1.00 (3)"
    assert text(root, "HSAKD", COLUMN) == "78.50 ± 1.00 (3/4 seeds)"
    assert text(root, "HSAKD", f"{COLUMN}: gain over Student") == "+2.50 [+2.50, +2.50] (3)"
    assert [text(root, row, f"{COLUMN}: published (best-test)") for row in ("Student", "HSAKD", "SSKD")] == ["76.18", "78.45", "77.60"]
    shown = (root / "tables" / "detection.md").read_text()
    assert "VOC 2007 test in per cent (IoU 0.5, 11 recall points" in shown
    assert "HSAKD, resnet34_imagenet → resnet18_imagenet, seed 9: diverged at step 17" in shown
    assert {path.suffix for path in (root / "tables").glob("detection.*")} == {".md", ".tex", ".csv", ".html"}
    assert main([str(root), "--selection", "best-test"]) == 0
    assert text(root, "HSAKD", COLUMN) == "79.00 ± 1.00 (3/4 seeds)"
    assert main([str(root), "--selection", "val"]) == 0
    assert text(root, "HSAKD", COLUMN) == "no val"


def test_students_of_other_data_have_no_published_numbers_beside_them(detected: Callable[[str], Path]) -> None:
    root = detected("digits")
    assert main([str(root)]) == 0
    shown = (root / "tables" / "detection.md").read_text()
    assert "published (best-test)" not in shown
    assert "no published numbers beside students trained on digits (the paper's: imagenet)" in shown
