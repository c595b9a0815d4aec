"""`python -m hsakd.banks inspect|warm|delete`: the node's teacher banks, on demand."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from hsakd.config import NumericsConfig, ObjectiveConfig, TrialConfig
from hsakd.data import load_dataset
from hsakd.data.views import rotate_rows
from hsakd.records import ResultStore
from hsakd.training.bank import META_FILE, ROOT_LOCK, bank_folders, default_bank_dir, delete_bank, disk_bytes, locked
from hsakd.training.loop import gather_batch
from hsakd.training.trial import RunContext, teacher_predictions


@dataclass(frozen=True, kw_only=True)
class BankOptions:
    """Inspect, warm (fill) or delete the teacher banks of this node."""

    command: tyro.conf.Positional[Literal["inspect", "warm", "delete"]]
    """What to do."""
    bank_dir: Path | None = None
    """Where the banks are (default: hsakd-banks in $SLURM_TMPDIR, $TMPDIR or /tmp)."""
    bank: str = ""
    """delete: the bank's name, or "all"."""
    out: Path = Path("runs")
    """warm: the result folder that holds the teacher."""
    teacher: str = ""
    """warm: the teacher's trial id."""
    dtype: Literal["float16", "float32"] = "float16"
    """warm: how predictions are stored."""
    data_dir: Path | None = None
    """warm: where the data set is."""
    device: str = "cpu"
    """warm: where the teacher runs."""
    threads: int = 1
    """warm: CPU threads."""
    batch_size: int = 64
    """warm: images a step."""
    num_views: int | None = None
    """warm: how many views of each image (default: all)."""


def main(options: BankOptions) -> int:
    """Run the command; 2 and one sentence on stderr for values that can't be used."""
    root = default_bank_dir() if options.bank_dir is None else options.bank_dir
    try:
        {"inspect": inspect_banks, "warm": warm_bank, "delete": delete_banks}[options.command](options, root)
    except (ValueError, KeyError) as error:
        print(error.args[0], file=sys.stderr)
        return 2
    return 0


def inspect_banks(_: BankOptions, root: Path) -> None:
    """Print a line for each bank: name, teacher, data, how much is filled, disk."""
    for folder in bank_folders(root):
        meta = json.loads((folder / META_FILE).read_text())
        marks = sorted(folder.glob("*.marks"))
        filled = ", ".join(f"{path.stem} {100 * np.mean(np.fromfile(path, dtype='<u4') != 0):.1f}%" for path in marks)
        print(f"{folder.name} {meta['teacher']} {meta['dtype']} {disk_bytes(folder) / 1e9:.3f} GB filled: {filled}")


def delete_banks(options: BankOptions, root: Path) -> None:
    """Delete one bank or all; raises ValueError where it is open or unknown."""
    names = [folder.name for folder in bank_folders(root)]
    chosen = names if options.bank == "all" else [options.bank]
    if not set(chosen) <= set(names):
        raise ValueError(f"bank is {options.bank!r}; accepted: all, {', '.join(names)}")
    with (root / ROOT_LOCK).open("ab") as file, locked(file):
        in_use = [name for name in chosen if not delete_bank(root / name)]
    if in_use:
        raise ValueError(f"bank is {in_use[0]!r}; accepted: one that no process has open")


def warm_bank(options: BankOptions, root: Path) -> None:
    """Ask a finished teacher about every view of every training image, so that no student has to wait for it."""
    torch.set_num_threads(options.threads)
    store, device = ResultStore(options.out), torch.device(options.device)
    record = store.read_trial(options.teacher)
    if record is None:
        raise ValueError(f"teacher is {options.teacher!r}; accepted: the id of a finished trial in {options.out}")
    teacher = record.config
    student = TrialConfig(
        network=teacher.network,
        taps=teacher.taps,
        data=teacher.data,
        teacher=teacher,
        num_rotations=teacher.num_rotations,
        objective=ObjectiveConfig(terms=(("kl_q", 1.0), ("kl_p", 1.0))),
        numerics=NumericsConfig(teacher_predictions="bank", bank_dtype=options.dtype),
    )
    dataset = load_dataset(teacher.data, options.data_dir)
    context = RunContext(store=store, data_dir=options.data_dir, device=options.device, bank_dir=root)
    predictions = teacher_predictions(student, dataset, context, device)
    if predictions is None or predictions.source != "bank":
        raise ValueError(f"bank_dir is {root}; {predictions.fallback if predictions is not None else 'no teacher'}")
    data = dataset.to(device)
    num_views = dataset.views.num_views if options.num_views is None else options.num_views
    for view in range(num_views):
        for indices in torch.split(torch.arange(len(dataset.train_labels)), options.batch_size):
            batch = gather_batch(data, indices, torch.full_like(indices, view), dtype=torch.float32)
            predictions.predict(batch, rotate_rows(batch.images, teacher.num_rotations))
        if predictions.fallback:
            raise ValueError(f"bank_dir is {root}; {predictions.fallback}")
    predictions.flush()
    print(f"{predictions.misses} of {predictions.hits + predictions.misses} predictions were missing; all are stored")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(BankOptions)))
