"""`python sweeps/run_detection.py` as users run it, on a small VOC and a finished ResNet-18 student, and its table."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from small_voc import STUDENT

from hsakd.config import DetectionConfig, TrialConfig
from hsakd.store import ResultStore
from sweeps.cli import DetectionOptions
from sweeps.cost import CostModel, cost_of, kind_of
from sweeps.detection import DETECTION_OPTIM, detection_work, detector_of
from sweeps.plan_lines import lines_to_keep

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: object, **environment: str) -> tuple[int, str, str]:
    line = [sys.executable, str(ROOT / script), *map(str, arguments)]
    result = subprocess.run(line, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True, timeout=900)
    return result.returncode, result.stdout, result.stderr


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A folder with the student, of the test's own."""
    return Path(shutil.copytree(trained, tmp_path / "runs", ignore=shutil.ignore_patterns("resume.pt")))


def test_the_protocol_is_mmdetections_for_voc_with_a_warm_up_and_batches_scale_the_learning_rate(runs: Path) -> None:
    config = detector_of(STUDENT, DetectionOptions(out=runs))
    assert config.detection == DetectionConfig(shorter_side=600, longer_side=1000, trainable_layers=3, sampled_proposals=512)
    assert config.optim == DETECTION_OPTIM
    optim = config.optim
    assert (optim.epochs, optim.batch_size, optim.learning_rate, optim.momentum, optim.weight_decay) == (12, 16, 0.01, 0.9, 1e-4)
    assert (optim.milestones[0] + optim.warmup_epochs, optim.nesterov) == (9, False)
    small = detector_of(STUDENT, DetectionOptions(out=runs, batch_size=4, epochs=6, image_size=300))
    assert (small.optim.learning_rate, small.optim.milestones) == (0.0025, (4,))
    assert small.detection is not None
    assert small.detection.longer_side == 500


def test_the_work_is_one_detector_per_complete_student_and_rows_that_are_not_asked_for_stay(runs: Path) -> None:
    store = ResultStore(runs)
    [student] = store.read_plan()
    other = replace(STUDENT, network="resnet8_half", seed=4)
    waiting = replace(student, trial_id=replace(STUDENT, seed=5).trial_id, seed=5)
    record = store.read_trial(student.trial_id)
    assert record is not None
    for config in (other, replace(STUDENT, seed=3)):
        store.write_trial(replace(record, trial_id=config.trial_id, config_json=config.to_json()), [])
        store.weights_path(config.trial_id).parent.mkdir(parents=True)
        shutil.copy(store.weights_path(student.trial_id), store.weights_path(config.trial_id))
    third = replace(STUDENT, seed=3)
    kd = replace(student, method="KD", trial_id=third.trial_id, seed=3, config_json=third.to_json())
    small = replace(student, trial_id=other.trial_id, student="resnet8_half", config_json=other.to_json())
    store.write_plan([student, kd, small, waiting])
    lines = detection_work(DetectionOptions(out=runs))
    assert [(entry.method, entry.study, config.backbone) for entry, config in lines] == [
        ("Student", "detection", STUDENT),
        ("KD", "detection", third),
    ]
    plan = [student, kd, *(entry for entry, _ in lines)]
    store.write_plan(plan)
    again = detection_work(DetectionOptions(out=runs, students=("KD",), epochs=3))
    assert [(entry.method, config.optim.epochs) for entry, config in again] == [("KD", 3)]
    assert lines_to_keep(plan, again) == [student, kd, lines[0][0]]


def test_missing_data_end_the_command_with_one_sentence_and_nothing_is_written(runs: Path) -> None:
    before = sorted(runs.rglob("*"))
    status, _, said = run("sweeps/run_detection.py", "--out", runs, "--data-dir", runs)
    listing = runs / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "trainval.txt"
    assert (status, said.count("\n")) == (2, 1)
    assert f"error: voc0712: {listing} is not there (VOC 2007 trainval); pass --download to fetch it, or --data-dir DIR" in said
    assert [path for path in sorted(runs.rglob("*")) if path.name != "driver.lock"] == before


def test_values_that_cant_be_used_are_named(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for values, said in (
        ({"trainable_layers": 6}, "--trainable-layers is 6; accepted: 0 to 5"),
        ({"batch_size": 0}, "--batch-size is 0; accepted: 1 or more"),
        ({"image_size": 3}, "--image-size is 3; accepted: 32 or more pixels"),
        ({"image_size": 31}, "--image-size is 31; accepted: 32 or more pixels"),
    ):
        with pytest.raises(ValueError, match=said):
            DetectionOptions(out=runs, **values)
    store = ResultStore(runs)
    store.write_plan([replace(entry, student="resnet20") for entry in store.read_plan()])
    with pytest.raises(ValueError, match="whose students are resnet20; accepted as detectors' backbones: resnet18_imagenet"):
        detection_work(DetectionOptions(out=runs))
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[detection\]'"):
        DetectionOptions(out=runs)


def test_what_it_costs_is_known_before_and_learned_apart_from_the_students(runs: Path) -> None:
    config = detector_of(STUDENT, DetectionOptions(out=runs))
    assert cost_of(config) == pytest.approx(3 * 73.5e9 * 16551 * 12, rel=0.01)  # the FLOP counter's 73.5e9 for an image of 600x800
    assert kind_of(config) != kind_of(STUDENT)
    model = CostModel("cuda")
    model.observe(config, 7200.0, 12)
    assert model.seconds(config) == pytest.approx(7200, rel=0.01)
    status, printed, _ = run("sweeps/run_detection.py", "--out", runs, "--dry-run")
    assert status == 0
    assert re.search(rf"^{config.trial_id}  \S+  +detection: Student ", printed, re.MULTILINE)


@pytest.mark.slow
def test_the_command_trains_a_detector_once_and_the_table_shows_it(runs: Path, voc: Path) -> None:
    arguments = ("--out", runs, "--data-dir", voc, "--epochs", 1, "--batch-size", 2, "--image-size", 64)
    status, printed, said = run("sweeps/run_detection.py", *arguments)
    assert status == 0, said
    assert "% test mAP, last epoch" in printed
    store = ResultStore(runs)
    [entry] = [entry for entry in store.read_plan() if entry.study == "detection"]
    record = store.read_trial(entry.trial_id)
    assert record is not None
    assert (record.status, record.role, record.attempts) == ("complete", "detector", 1)
    assert TrialConfig.from_json(entry.config_json).backbone == STUDENT
    finished = store.trial_path(entry.trial_id).stat().st_mtime_ns
    assert run("sweeps/run_detection.py", *arguments)[0] == 0
    assert store.trial_path(entry.trial_id).stat().st_mtime_ns == finished
    assert run("analysis/build.py", runs)[0] == 0
    table = pd.read_csv(runs / "tables" / "detection.csv")
    [cell] = table[(table["row"] == "Student") & (table["column"] == "resnet34_imagenet → resnet18_imagenet")].to_dict("records")
    assert cell["mean"] == pytest.approx(record.map50_last)
    assert cell["trials"] == entry.trial_id
