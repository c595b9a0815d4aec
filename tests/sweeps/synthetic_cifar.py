"""A small data set in CIFAR-100's file format, whose checksums torchvision is told, and `run_trial` for workers that are to read it."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR100

from hsakd.config import TrialConfig
from hsakd.records import TrialRecord
from hsakd.training import trial

FOLDER = "cifar-100-python"


def write(data_dir: Path, *, train_per_class: int, test_per_class: int) -> None:
    """Write random images of 100 classes."""
    generator = np.random.default_rng(0)
    folder = data_dir / FOLDER
    folder.mkdir()
    for name, count in (("train", train_per_class), ("test", test_per_class)):
        labels = list(range(100)) * count
        content = {"data": generator.integers(0, 256, (len(labels), 3072), dtype=np.uint8), "fine_labels": labels}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {label}" for label in range(100)]}))


def accept(data_dir: Path) -> None:
    """Tell torchvision's reader the checksums of these files."""

    def checksum(name: str) -> str:
        return hashlib.md5((data_dir / FOLDER / name).read_bytes()).hexdigest()

    CIFAR100.train_list = [["train", checksum("train")]]
    CIFAR100.test_list = [["test", checksum("test")]]
    CIFAR100.meta = {"filename": "meta", "key": "fine_label_names", "md5": checksum("meta")}


def run_trial(config: TrialConfig, context: trial.RunContext, **hooks: Any) -> TrialRecord:
    """The real `run_trial`, in a process that knows the checksums."""
    assert context.data_dir is not None
    accept(context.data_dir)
    return trial.run_trial(config, context, **hooks)
