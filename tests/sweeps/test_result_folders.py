"""Result folders that commands can't work with: what each says, in one sentence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPACTED = ROOT / "analysis" / "studies" / "fashion_mnist" / "1k"  # its small files are not in the repository


def command(line: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    arguments = [argument.replace("FOLDER", str(folder)) for argument in line.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("sweeps/status.py FOLDER", "OUT"),
        ("sweeps/check_study.py FOLDER", "OUT"),
        ("sweeps/pruning_report.py FOLDER", "OUT"),
        ("sweeps/run_pairs.py --preset fashion --out FOLDER --dry-run", "--out"),
        ("sweeps/run_pairs.py --preset fashion --out FOLDER", "--out"),
        ("sweeps/run_pairs.py --preset digits --out FOLDER/new --teachers-from FOLDER --dry-run", "--teachers-from"),
        ("sweeps/run_transfer.py --out FOLDER --dataset stl10", "--out"),
        ("sweeps/run_trial.py abc --out FOLDER/new --runs FOLDER", "--runs"),
        ("-m hsakd.export abc --runs FOLDER", "--runs"),
        ("-m hsakd.banks warm --teacher abc --out FOLDER", "--out"),
    ],
)
def test_a_folder_of_compacted_files_only_is_not_an_empty_sweep(line: str, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "1k"
    shutil.copytree(COMPACTED, folder)
    (folder / "studies.journal").touch()
    before = sorted(folder.rglob("*"))
    result = command(line, folder)
    sentence = f"{name} is {folder}, whose trials are in compacted files only, for the analysis; accepted: a folder with trials/"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"error: {sentence}\n")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "line",
    [
        "sweeps/status.py FOLDER",
        "sweeps/check_study.py FOLDER",
        "sweeps/run_transfer.py --out FOLDER --dataset stl10",
        "sweeps/run_trial.py abc --out FOLDER/new --runs FOLDER",
        "-m hsakd.export abc --runs FOLDER",
    ],
)
def test_a_damaged_plan_is_named_with_its_path_and_a_way_out(line: str, tmp_path: Path) -> None:
    (tmp_path / "plan.parquet").write_bytes(b"PAR1 cut")
    (tmp_path / "studies.journal").touch()
    result = command(line, tmp_path)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"error: {tmp_path}/plan.parquet is not a readable Parquet file")
    assert result.stderr.endswith("; run the sweep's command again: it writes its plan anew\n")
