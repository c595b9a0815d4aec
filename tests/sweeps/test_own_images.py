"""The recipe for own images, as the README gives it, run on real digits written as PNG files; then the transfer of its students."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from hsakd.data.folder import decode_image
from hsakd.store import ResultStore

ROOT = Path(__file__).parents[2]
RECIPE = """\
python sweeps/run_pairs.py --dataset imagefolder --data-dir PHOTOS --image-size 32 --pairs resnet20-resnet8 \\
    --methods Student "HSAKD*" --seeds 3 --epochs 60 --out runs/photos
python analysis/build.py runs/photos
python -m hsakd.export TRIAL --runs runs/photos --out photo-model --format torch-export
"""
FASTER = {"--image-size 32": "--image-size 16", "--seeds 3": "--seeds 1", "--epochs 60": "--epochs 8"}


def test_the_readmes_recipe_is_the_one_that_is_run_here() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "--data-dir PHOTOS" not in readme or RECIPE in readme


def write_photos(root: Path, *, per_class: int = 120, side: int = 24) -> None:
    images, labels = load_digits(return_X_y=True)
    for label in range(4):
        for number, pixels in enumerate(images[labels == label][: per_class + 20]):
            folder = root / ("train" if number < per_class else "val") / f"digit {label}"
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(8, 8))
            image.resize((side, side + number % 3)).save(folder / f"{number:03d}.png")


def run(line: str, folder: Path) -> str:
    """Run a line of the recipe in `folder`; return what it printed."""
    words = shlex.split(line.replace("\\\n", " "))
    words = [sys.executable, *(str(ROOT / word) if word.endswith(".py") else word for word in words[1:])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_recipe_gives_a_table_and_a_network_that_classifies_new_photos_and_its_students_transfer(tmp_path: Path) -> None:
    write_photos(tmp_path / "PHOTOS")
    text = RECIPE
    for documented, faster in FASTER.items():
        assert documented in text
        text = text.replace(documented, faster)
    *first, export = text.replace("\\\n", " ").splitlines()
    for line in first:
        run(line, tmp_path)
    store = ResultStore(tmp_path / "runs" / "photos")
    students = [entry for entry in store.read_plan() if entry.method == "HSAKD*" and entry.purpose == "report"]
    assert len(students) == 1
    assert "4 classes" in run(export.replace("TRIAL", students[0].trial_id), tmp_path)
    program = torch.export.load(tmp_path / "photo-model" / "model.pt2").module()
    card = pd.read_json(tmp_path / "photo-model" / "model.json", typ="series")
    assert card["classes"] == [f"digit {label}" for label in range(4)]
    files = sorted((tmp_path / "PHOTOS" / "val").rglob("*.png"))
    pixels = np.stack([decode_image(path, card["image_size"], turns_upright=True) for path in files])
    rows = (torch.from_numpy(pixels).float() / 255 - torch.tensor(card["mean"]).view(3, 1, 1)) / torch.tensor(card["std"]).view(3, 1, 1)
    guesses = [card["classes"][label] for label in program(rows).argmax(dim=1).tolist()]
    accuracy = 100 * np.mean([guess == path.parent.name for guess, path in zip(guesses, files, strict=True)])
    assert accuracy == pytest.approx(card["top1"])
    assert accuracy > 50

    transfer = "python sweeps/run_transfer.py --out runs/photos --dataset digits --epochs 2"
    assert "complete: " in run(transfer, tmp_path)
    probes = [entry for entry in store.read_plan() if entry.study == "transfer"]
    assert sorted(entry.method for entry in probes) == ["HSAKD*", "Student"]
    record = store.read_trial(probes[0].trial_id)
    assert record is not None
    assert (record.role, record.dataset, record.status) == ("probe", "digits", "complete")
    assert len(store.read_plan()) == len({entry.trial_id for entry in store.read_plan()})
    run("python analysis/build.py runs/photos --out tables", tmp_path)
    shown = (tmp_path / "tables" / "transfer.md").read_text()
    assert "resnet20 → resnet8" in shown
    assert f"{record.top1_last:.2f} (1)" in shown
