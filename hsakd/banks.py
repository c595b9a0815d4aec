"""`python -m hsakd.banks inspect|warm|delete`: the node's teacher banks, on demand."""

import json
import math
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from hsakd.command_line import parse, run_command
from hsakd.config import NumericsConfig, ObjectiveConfig, TrialConfig
from hsakd.data import load_dataset
from hsakd.data.batches import gather_batch
from hsakd.data.views import ViewSpace, rotate_rows
from hsakd.devices import parameter_dtype, usable_device
from hsakd.result_folder import check_trials
from hsakd.store import ResultStore
from hsakd.training.bank import META_FILE, ROOT_LOCK, bank_folders, default_bank_dir, delete_bank, disk_bytes, is_in_use, locked
from hsakd.training.trial import RunContext, set_numerics, teacher_predictions


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
    bank_dtype: Literal["float16", "float32"] = "float16"
    """warm: how predictions are stored; this and the next three as the students will have them."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """warm: the arithmetic of the teacher."""
    channels_last: Literal["auto", "yes", "no"] = "auto"
    """warm: its memory format."""
    tf32: bool = False
    """warm: whether a GPU rounds products to TF32."""
    bank_budget: float | None = None
    """warm: gigabytes that all banks may take, open ones as if they were full (default: half of the free disk)."""
    data_dir: Path | None = None
    """warm: where the data set is."""
    device: str | None = None
    """warm: where the teacher runs; a bank of a CPU's answers is another than one of a GPU's (default: a GPU if there is one)."""
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
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --bank-dir is {root}; accepted: a folder that can be read and written ({error.strerror})", file=sys.stderr)
        return 2
    return 0


def inspect_banks(_: BankOptions, root: Path) -> None:
    """Print a line for each bank: name, teacher, storage, disk, how much is filled, when it was last opened."""
    if not bank_folders(root):
        print(f"no banks in {root}")
        return
    with (root / ROOT_LOCK).open("ab") as file, locked(file):
        for folder in bank_folders(root):
            meta = folder / META_FILE
            try:
                facts = json.loads(meta.read_text())
                title = f"{facts['teacher']} {facts['dtype']} {facts['precision']}"
                used = f"last opened {datetime.fromtimestamp(meta.stat().st_mtime, UTC):%Y-%m-%d %H:%M} UTC"
            except (OSError, ValueError, KeyError, TypeError):
                title, used = "without a description", "the first to be deleted when room is needed"
            marks = sorted(folder.glob("*.marks"))
            filled = ", ".join(f"{path.stem} {100 * np.mean(np.fromfile(path, dtype='<u4') != 0):.1f}%" for path in marks)
            used = "in use" if is_in_use(folder) else used
            print(f"{folder.name} {title} {disk_bytes(folder) / 1e9:.3f} GB filled: {filled or 'nothing'}; {used}")


def delete_banks(options: BankOptions, root: Path) -> None:
    """Delete one bank or all; raises ValueError where it is open or unknown."""
    names = [folder.name for folder in bank_folders(root)]
    if not names:
        raise ValueError(f"--bank-dir is {root}; accepted: a folder with banks in it")
    chosen = names if options.bank == "all" else [options.bank]
    if not set(chosen) <= set(names):
        raise ValueError(f"--bank is {options.bank!r}; accepted: all, {', '.join(names)}")
    with (root / ROOT_LOCK).open("ab") as file, locked(file):
        in_use = [name for name in chosen if not delete_bank(root / name)]
    if in_use:
        raise ValueError(f"--bank is {in_use[0]!r}; accepted: one that no process has open")


def warm_bank(options: BankOptions, root: Path) -> None:
    """Ask a finished teacher about every view of every training image, so that no student has to wait for it.

    Raises:
        ValueError: a value that can't be used, no such teacher, or a bank that doesn't fit or can't be written.
    """
    for name in ("threads", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(options, name)}; accepted: 1 or more")
    if options.bank_budget is not None and not 0 <= options.bank_budget < math.inf:
        raise ValueError(f"--bank-budget is {options.bank_budget}; accepted: gigabytes, 0 or more")
    device = usable_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    store = ResultStore(options.out)
    record = store.peek_trial(options.teacher)
    if record is None or not store.is_finished(record):
        check_trials("--out", options.out)
        raise ValueError(f"--teacher is {options.teacher!r}; accepted: the id of a finished trial in {options.out}")
    teacher = record.config
    numerics = NumericsConfig(
        precision=options.precision,
        teacher_predictions="bank",
        bank_dtype=options.bank_dtype,
        channels_last={"auto": None, "yes": True, "no": False}[options.channels_last],
        tf32=options.tf32,
    )
    is_plain = teacher.taps == ()  # KD's teacher: asked about unrotated images only
    student = TrialConfig(
        network=teacher.network,
        taps=teacher.taps,
        data=teacher.data,
        teacher=teacher,
        num_rotations=teacher.num_rotations,
        objective=ObjectiveConfig(terms=(("kd", 1.0),) if is_plain else (("kl_q", 1.0), ("kl_p", 1.0))),
        numerics=numerics,
    )
    torch.set_num_threads(options.threads)
    set_numerics(numerics)
    dataset = load_dataset(teacher.data, options.data_dir)
    if not isinstance(dataset.views, ViewSpace):
        raise ValueError(f"--teacher is {options.teacher!r}; accepted: one whose training saw shifted and mirrored images")
    num_views = dataset.views.num_views if options.num_views is None else options.num_views
    if not 1 <= num_views <= dataset.views.num_views:
        raise ValueError(f"--num-views is {num_views}; accepted: 1 to {dataset.views.num_views}")
    context = RunContext(
        store=store,
        bank_dir=root,
        bank_budget_bytes=None if options.bank_budget is None else int(options.bank_budget * 1e9),
    )
    predictions = teacher_predictions(student, dataset, context, device)
    if predictions is None or predictions.source != "bank":
        raise ValueError(f"--bank-dir is {root}; {predictions.fallback if predictions is not None else 'no teacher'}")
    data = dataset.to(device)
    dtype = parameter_dtype(numerics)
    for view in range(num_views):
        for indices in torch.split(torch.arange(len(dataset.train_labels)), options.batch_size):
            batch = gather_batch(data, indices, torch.full_like(indices, view), dtype=dtype)
            predictions.predict(batch, batch.images if is_plain else rotate_rows(batch.images, teacher.num_rotations))
        if predictions.fallback:
            break
    predictions.flush()
    predictions.close()
    if predictions.fallback:
        raise ValueError(f"--bank-dir is {root}; {predictions.fallback}")
    served = f"{predictions.misses} of {predictions.hits + predictions.misses} predictions were missing; all are stored"
    print(f"{served}, for students on {'a GPU' if device.type == 'cuda' else device.type.upper() + 's'}")


if __name__ == "__main__":
    run_command(lambda: main(parse(BankOptions)))
