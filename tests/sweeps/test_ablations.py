"""Ablation studies: their arms, what the arms share, the authors' split rule, and one real run of all six with its tables."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hsakd.config import TrialConfig
from hsakd.data.splits import few_shot_subset
from hsakd.store import ResultStore
from sweeps.ablations import STUDIES, ablation_work
from sweeps.cli import AblationOptions
from sweeps.plan_lines import lines_to_keep
from sweeps.worklist import Pair, TrialFactory

ROOT = Path(__file__).parents[2]
PAIR = "resnet14-resnet8_half"
GOLDEN = json.loads((Path(__file__).parent / "golden" / "few_shot.json").read_text())


def options(out: Path, *study: str, **changes: object) -> AblationOptions:
    return AblationOptions(out=out, study=study, **{"preset": "digits", "pairs": (PAIR,), "seeds": 2, **changes})  # type: ignore[arg-type]


def arms(out: Path, study: str, **changes: object) -> dict[str, list[TrialConfig]]:
    found: dict[str, list[TrialConfig]] = {}
    for entry, config in ablation_work(options(out, study, **changes)):
        if entry.purpose == "report":
            found.setdefault(entry.method, []).append(config)
    return found


def test_the_papers_five_arms_of_loss_terms(tmp_path: Path) -> None:
    found = arms(tmp_path, "loss-terms")
    assert list(found) == ["task", "task+kl_q", "task+kl_q+kd", "task+kl_q+kl_p", "task+kl_q+kl_p+ce_q"]
    for label, configs in found.items():
        assert "+".join(name for name, _ in configs[0].objective.terms) == label
        assert {weight for _, weight in configs[0].objective.terms} == {1.0}


def test_placements_are_none_and_every_subset_or_the_papers(tmp_path: Path) -> None:
    assert list(arms(tmp_path, "aux-placement")) == ["none", "c1", "c2", "c3", "c1+c2", "c1+c3", "c2+c3", "c1+c2+c3"]
    papers = arms(tmp_path, "aux-placement", placements="paper")
    assert list(papers) == ["none", "c1", "c2", "c3", "c1+c2+c3"]
    assert papers["c2"][0].taps == (2,)
    assert [name for name, _ in papers["c2"][0].objective.terms] == ["task", "kl_q"]
    full = arms(tmp_path, "aux-placement", objective="full")
    assert [name for name, _ in full["c2"][0].objective.terms] == ["task", "kl_q", "kl_p"]
    assert [name for name, _ in full["none"][0].objective.terms] == ["task", "kl_p"]
    names = {entry.study for entry, _ in ablation_work(options(tmp_path, "aux-placement", objective="full"))}
    assert names == {"aux-placement-full"}
    assert len(arms(tmp_path, "aux-placement", pairs=("vgg13_bn-mobilenetv2_half",), preset="paper")) == 16


def test_grids_ratios_and_rotations_are_as_asked(tmp_path: Path) -> None:
    assert [configs[0].objective.temperature for configs in arms(tmp_path, "temperature", temperatures=(1.0, 3.0)).values()] == [1.0, 3.0]
    weights = {configs[0].objective.terms for configs in arms(tmp_path, "loss-weights", weights=(0.5, 1.0)).values()}
    assert weights == {(("task", 1.0), ("kl_q", q), ("kl_p", p)) for q, p in ((0.5, 1.0), (1.0, 0.5), (1.0, 1.0))}
    assert len(arms(tmp_path, "loss-weights", weights=(0.5, 1.0), full_grid=True)) == 4
    shots = arms(tmp_path, "few-shot")
    assert [configs[0].data.few_shot_ratio for label, configs in shots.items() if label.startswith("HSAKD*")] == [0.25, 0.5, 0.75, 1.0]
    assert all(config.teacher is not None and config.teacher.data.few_shot_ratio == 1 for configs in shots.values() for config in configs)
    planned = ablation_work(options(tmp_path, "few-shot"))
    assert shots["KD 100%"][0] == TrialFactory(options(tmp_path, "few-shot")).kd(Pair(teacher="resnet14", student="resnet8_half"), 0, 0)
    assert shots["KD 25%"][0].teacher in [config for entry, config in planned if (entry.purpose, entry.method) == ("backbone", "Teacher")]
    turns = {label: configs[0].rotations for label, configs in arms(tmp_path, "rotations").items()}
    assert len(turns) == 8
    assert turns["0+180"] == (0, 2)
    assert turns["0+90+180+270"] is None


@pytest.mark.parametrize("study", STUDIES)
def test_arms_share_teacher_and_seeds_and_what_two_studies_have_in_common_is_one_trial(tmp_path: Path, study: str) -> None:
    found = arms(tmp_path, study)
    teachers = {config.teacher for configs in found.values() for config in configs if config.teacher is not None}
    assert sorted(teacher.teacher_regime for teacher in teachers) == (["", "joint"] if study == "few-shot" else ["joint"])
    assert all([config.seed for config in configs] == [0, 1] for configs in found.values())
    full = arms(tmp_path, "loss-terms")["task+kl_q+kl_p"][0].trial_id
    if study != "aux-placement":
        assert full in {config.trial_id for configs in found.values() for config in configs}


def test_a_frozen_teacher_can_be_the_shared_one(tmp_path: Path) -> None:
    found = arms(tmp_path, "temperature", teacher="frozen")
    assert {config.teacher_regime for configs in found.values() for config in configs} == {"frozen"}


def test_another_study_of_the_folder_keeps_its_lines_and_the_same_study_is_planned_anew(tmp_path: Path) -> None:
    first = [entry for entry, _ in ablation_work(options(tmp_path, "loss-terms"))]
    table1 = [replace(first[0], study="", purpose="report", method="Student"), replace(first[0], study=PAIR, purpose="search")]
    assert lines_to_keep([*first, *table1], ablation_work(options(tmp_path, "temperature"))) == [*first, *table1]
    assert lines_to_keep([*first, *table1], ablation_work(options(tmp_path, "loss-terms", seeds=1))) == table1
    assert lines_to_keep([*first, *table1], [(entry, TrialConfig.from_json(entry.config_json)) for entry in table1]) == first


@pytest.mark.parametrize("ratio", ["0.25", "0.5", "0.75"])
def test_the_split_is_the_authors(ratio: str) -> None:
    labels = np.random.Generator(np.random.PCG64(2021)).permutation(np.repeat(np.arange(100), 500)).astype(np.int64)
    expected, found = GOLDEN["splits"][ratio], few_shot_subset(labels, float(ratio))
    assert found[:12].tolist() == expected["train_first12"]
    assert hashlib.sha256(found.astype("<i8").tobytes()).hexdigest() == expected["train_sha256_i64_le_in_order"]
    counts = np.bincount(labels[found])
    assert (len(found), counts.min(), counts.max()) == (expected["n_train"], expected["per_class_min"], expected["per_class_max"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temperatures": (0.0,)}, "--temperatures is 0.0; accepted: one or more numbers above 0"),
        ({"temperatures": (1.0, float("nan"))}, "--temperatures is 1.0 nan; accepted: one or more numbers above 0"),
        ({"temperatures": (float("inf"),)}, "--temperatures is inf; accepted: one or more numbers above 0"),
        ({"ratios": (0.5, 2.0)}, "--ratios is 0.5 2.0; accepted: at most 1"),
        ({"weights": (2.0,)}, "--weights is 2.0; accepted: a grid with 1"),
        ({"temperatures": (3.0, 3.0)}, "--temperatures is 3.0 3.0; accepted: different numbers"),
        ({"pairs": ("resnet14-resnet9",)}, "--pairs is resnet14-resnet9; accepted"),
    ],
)
def test_bad_options_are_one_sentence(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        options(tmp_path, "temperature", **changes)


def run(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(ROOT / script), *arguments], capture_output=True, text=True, timeout=900, check=False)


def test_an_unknown_study_and_an_option_of_the_search_are_refused_with_status_2(tmp_path: Path) -> None:
    for arguments in (("--study", "batch-size"), ("--study", "temperature", "--pruner", "median"), ()):
        result = run("sweeps/run_ablation.py", "--out", str(tmp_path / "new"), *arguments)
        assert result.returncode == 2, result.stdout
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_all_six_studies_run_for_real_share_one_teacher_and_bank_and_have_tables(tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = ("--preset", "digits", "--pairs", PAIR, "--seeds", "1", "--epochs", "1", "--out", str(out))
    common += ("--predictions", "bank", "--bank-dir", str(tmp_path / "bank"))
    first = run("sweeps/run_ablation.py", "--study", "loss-terms", "rotations", *common)
    assert first.returncode == 0, first.stdout + first.stderr
    others = ("aux-placement", "temperature", "loss-weights", "few-shot")
    grids = ("--placements", "paper", "--temperatures", "1", "3", "--weights", "1", "3", "--ratios", "0.25", "1")
    second = run("sweeps/run_ablation.py", "--study", *others, *grids, *common)
    assert second.returncode == 0, second.stdout + second.stderr
    store = ResultStore(out)
    records = [store.read_trial(trial_id) for trial_id in store.trial_ids()]
    assert sum(record is not None and record.role == "teacher" for record in records) == 1
    served = [record for record in records if record is not None and record.role == "student"]
    assert {record.predictions_source for record in served} == {"bank"}
    turned = [record for record in served if record.config.rotations is not None]
    assert len(turned) == 7
    assert sum(record.bank_hits for record in turned) > 0
    built = run("analysis/build.py", str(out))
    assert built.returncode == 0, built.stderr
    for study, num_arms in (
        ("loss_terms", 5),
        ("rotations", 8),
        ("aux_placement", 5),
        ("temperature", 2),
        ("loss_weights", 3),
        ("few_shot", 4),
    ):
        table = pd.read_csv(out / "tables" / f"{study}.csv")
        measured = table[table["n"] == 1]
        assert measured["row"].nunique() == num_arms, study
        assert measured["trials"].str.len().min() == 16
