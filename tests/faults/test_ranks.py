"""A sweep whose trials are two processes each, with real Ray: it ends as it should, and stopped or killed it leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from hsakd.store import ResultStore

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def write_photos(root: Path) -> Path:
    images, labels = load_digits(return_X_y=True)
    for label, name in enumerate(("zero", "one", "two")):
        for number, pixels in enumerate(images[labels == label][:12]):
            folder = root / ("train" if number < 8 else "val") / name
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(8, 8))
            image.resize((40 + number, 50 - number)).convert("RGB").save(folder / f"{number:02d}.jpg")
    return root


def start(out: Path, photos: Path, *, epochs: int) -> "subprocess.Popen[str]":
    line = [
        sys.executable,
        str(ROOT / "sweeps" / "run_pairs.py"),
        "--gpus",
        "0",
        "--threads",
        "1",
        "--ranks-per-trial",
        "2",
        "--out",
        str(out),
    ]
    line += ["--dataset", "imagefolder", "--data-dir", str(photos), "--augmentation", "imagenet", "--image-size", "16"]
    line += [
        "--batch-size",
        "8",
        "--batch-shards",
        "2",
        "--pairs",
        "resnet8-resnet8_half",
        "--methods",
        "Student",
        "HSAKD*",
        "--seeds",
        "1",
    ]
    line += ["--epochs", str(epochs), "--max-failures", "0"]
    return subprocess.Popen(
        line,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SWEEP_OF": str(out)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ranks_of(out: Path) -> list[int]:
    """Running ranks of a sweep that writes to `out`: children that Ray's workers started, in the environment of its command."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:
                continue
            if b"multiprocessing.spawn" in command and f"SWEEP_OF={out}".encode() in environment:
                found.append(int(entry.name))
    return found


def until(happened: Callable[[], object], *, seconds: float = 900) -> None:
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_or_killed_sweep_leaves_no_rank_and_the_next_command_ends_it(number: int, tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "out"
    driver = start(out, photos, epochs=30)
    until(lambda: list(out.glob("checkpoints/*/resume.pt")) or driver.poll() is not None)
    driver.send_signal(number)
    output, errors = driver.communicate(timeout=900)
    assert driver.returncode == (130 if number == signal.SIGTERM else -9), output + errors
    until(lambda: not ranks_of(out))
    again = start(out, photos, epochs=30)
    output, errors = again.communicate(timeout=900)
    assert again.returncode == 0, output + errors
    assert not ranks_of(out)
    store = ResultStore(out)
    records = [store.read_trial(trial_id) for trial_id in store.trial_ids()]
    assert len(records) == 3
    assert all(record is not None and (record.status, record.num_ranks) == ("complete", 2) for record in records)
