"""`analysis/build.py` on real Parquet folders, whole and broken."""

import html
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from analysis.build import main

Make = Callable[..., Any]


def rows_of(path: Path) -> pd.DataFrame:
    return pd.read_csv(path)


def cell(path: Path, row: str) -> pd.Series:
    table = rows_of(path)
    return table[table["row"] == row].iloc[0]


def test_table1_shows_mean_sample_std_and_n_and_the_trials_behind_them(folder: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder()
    run.pair()
    assert main([str(run.write())]) == 0
    found = cell(run.root / "tables/table1.csv", "HSAKD")
    assert found["text"] == "77.20 ± 0.10 (3)"
    assert found["std"] == pytest.approx(0.1)
    assert len(found["trials"].split()) == 3
    assert {"table1.md", "table1.tex", "table1.csv", "table1.html"} <= {path.name for path in (run.root / "tables").iterdir()}
    assert "77.20 ± 0.10 (3)" in capsys.readouterr().out


def test_published_rows_stand_beside_measured_ones_for_cifar100_only(folder: Make) -> None:
    for dataset in ("cifar100", "digits"):
        run = folder(dataset, dataset=dataset)
        run.pair()
        assert main([str(run.write())]) == 0
        assert ("HSAKD*, published (best-test)" in set(rows_of(run.root / "tables/table1.csv")["row"])) is (dataset == "cifar100")


def test_an_unfinished_sweep_says_what_is_missing(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair(unfinished=(("KD", 1), *(("HSAKD", seed) for seed in range(3))))
    student = run.config(run.student, seed=9, taps=())
    run.add(student, "report", "Student", 1.0, status="diverged", error="loss is NaN")
    assert main([str(run.write())]) == 0
    assert cell(run.root / "tables/table1.csv", "KD")["text"] == "75.20 ± 0.14 (2/3 seeds)"
    assert cell(run.root / "tables/table1.csv", "HSAKD")["text"] == "waiting"
    assert "(3/4 seeds)" in cell(run.root / "tables/table1.csv", "Student")["text"]
    assert "diverged at step 17: loss is NaN" in (run.root / "tables/table1.md").read_text()


def test_one_seed_prints_no_std(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair(seeds=1)
    assert main([str(run.write())]) == 0
    assert cell(run.root / "tables/table1.csv", "KD")["text"] == "75.10 (1)"


def test_several_folders_are_merged_by_trial_id(folder: Make, tmp_path: Path) -> None:
    first, second = folder("one", dataset="digits"), folder("two", dataset="digits")
    first.pair(unfinished=(("KD", 2),))
    second.pair(unfinished=(("KD", 0),))
    assert main([str(first.write()), str(second.write()), "--out", str(tmp_path / "out")]) == 0
    assert cell(tmp_path / "out/table1.csv", "KD")["n"] == 3


def test_a_broken_file_a_foreign_file_and_an_unknown_schema_are_sentences(folder: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(dataset="digits")
    run.pair()
    run.write()
    ids = sorted(path for path in (run.root / "trials").iterdir())
    ids[0].write_bytes(ids[0].read_bytes()[:100])
    table = pq.read_table(ids[1])
    pq.write_table(table.set_column(table.column_names.index("schema_version"), "schema_version", [[99]]), ids[1])
    pq.write_table(table.drop_columns(["network"]), ids[2])
    assert main([str(run.root)]) == 0
    said = capsys.readouterr().out
    assert "not readable Parquet" in said
    assert "schema_version 99" in said
    assert "no column network" in said
    texts = " ".join(rows_of(run.root / "tables/table1.csv")["text"])
    assert texts.count("2/3 seeds") + texts.count("1/3 seeds") + texts.count("failed: unreadable") + texts.count("0/") >= 1


def spoil_trial(run: Any) -> str:
    path = sorted((run.root / "trials").iterdir())[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return f"run/trials/{path.name} is not readable Parquet (cut or half-written); its trial counts as missing."


def spoil_row(run: Any) -> str:
    path = sorted((run.root / "trials").iterdir())[0]
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("status"), "status", [["finished?"]]), path)
    return f"run/trials/{path.name} has a broken row (its id or its status is not valid); its trial counts as missing."


def spoil_version(run: Any) -> str:
    path = sorted((run.root / "trials").iterdir())[0]
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("schema_version"), "schema_version", [[99]]), path)
    return f"run/trials/{path.name} has schema_version 99; accepted: 1; its trial counts as missing."


def spoil_epochs(run: Any) -> str:
    config = run.config(run.student, seed=0, taps=())
    path = run.root / "epochs" / f"{config.trial_id}.parquet"
    path.write_bytes(path.read_bytes()[:50])
    return f"run/epochs/{path.name} is not readable Parquet; its curve is left out."


def spoil_plan(run: Any) -> str:
    path = run.root / "plan.parquet"
    path.write_bytes(path.read_bytes()[:200])
    return "run/plan.parquet can't be used"


def spoil_plan_version(run: Any) -> str:
    path = run.root / "plan.parquet"
    table = pq.read_table(path)
    versions = [[7] * table.num_rows]
    pq.write_table(table.set_column(table.column_names.index("schema_version"), "schema_version", versions), path)
    return "run/plan.parquet can't be used: plan.parquet has schema_version 7; accepted: 1."


def leave_nothing(run: Any) -> str:
    shutil.rmtree(run.root)
    run.root.mkdir()
    return "run holds no plan and no trials."


@pytest.mark.parametrize("spoil", [spoil_trial, spoil_row, spoil_version, spoil_epochs, spoil_plan, spoil_plan_version, leave_nothing])
def test_what_cannot_be_read_is_a_sentence_in_the_output_and_in_the_report(
    folder: Make, capsys: pytest.CaptureFixture[str], spoil: Callable[[Any], str]
) -> None:
    run = folder(dataset="digits")
    run.pair()
    run.write()
    sentence = spoil(run)
    assert main([str(run.root)]) == 0
    assert sentence in capsys.readouterr().out
    assert html.escape(sentence) in (run.root / "tables/report.html").read_text()


def test_a_study_with_one_trial_is_a_sentence_in_the_output_and_in_the_report(folder: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(dataset="digits")
    run.add(run.config(run.student, seed=0, validation=0.1), "search", "search", 70.0, study="a-b", study_number=0)
    assert main([str(run.write())]) == 0
    sentence = "Importance: no study has four complete trials that vary a parameter."
    assert sentence in capsys.readouterr().out
    assert sentence in (run.root / "tables/report.html").read_text()
    assert "too few trials" in (run.root / "tables/report.html").read_text()


def test_bad_input_is_one_sentence_and_status_2(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "analysis/build.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "none")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_trials_of_different_settings_are_refused_unless_forced(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair()
    run.epochs = 5
    run.add(run.config(run.student, seed=7, taps=()), "report", "Student", 90.0)
    run.write()
    assert main([str(run.root)]) == 0
    assert cell(run.root / "tables/table1.csv", "Student")["text"] == "refused"
    assert main([str(run.root), "--force"]) == 0
    assert cell(run.root / "tables/table1.csv", "Student")["text"].endswith("!")


def test_lines_without_a_trial_id_wait_until_another_folder_knows_them(folder: Make, tmp_path: Path) -> None:
    first, second = folder("one", dataset="digits"), folder("two", dataset="digits")
    first.pair()
    first.await_tuned()
    second.pair()
    for seed in range(3):
        config = second.config(second.student, seed=seed, temperature=7.0, teacher=second.teachers()[2])
        second.add(config, "report", "HSAKD-tuned", 80.0)
    assert main([str(first.write())]) == 0
    assert cell(first.root / "tables/table1.csv", "HSAKD-tuned")["text"] == "waiting"
    assert "3 of 3 trials not finished yet" in (first.root / "tables/table1.md").read_text()
    assert main([str(first.root), str(second.write()), "--out", str(tmp_path / "out")]) == 0
    assert cell(tmp_path / "out/table1.csv", "HSAKD-tuned")["text"] == "80.00 ± 0.00 (3)"
