"""The teacher bank: a frozen teacher's answers to every view of every image, kept on a node-local disk and shared by its processes.

An entry is (image, view); an array (class logits, or one branch's joint logits) is one sparse file of entries in all M rotations,
beside a file of marks: the CRC-32 of each filled entry, 0 where there is none. Data are written before their mark, and a mark is
believed only if the data match it, so that a process killed at any instant, a full disk or a power cut leaves unfilled entries,
never wrong ones. A miss is computed live, rounded to the bank's dtype, stored under a lock (the first write wins) and served as
stored.
"""

import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hsakd.config import NumericsConfig
from hsakd.data.datasets import Dataset
from hsakd.data.views import Batch
from hsakd.models import HierarchicalNet
from hsakd.records import replacing
from hsakd.training.predictions import LivePredictions, Predictions, TeacherPredictions

DEFAULT_SHARE_OF_FREE_DISK = 0.5
META_FILE = "meta.json"


def default_bank_dir() -> Path:
    """Return `hsakd-banks` in the node-local folder: $SLURM_TMPDIR, $TMPDIR or /tmp."""
    return Path(os.environ.get("SLURM_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "hsakd-banks"


class BankArray:
    """One array of entries [num_entries, M, width] of `dtype`, and its marks."""

    def __init__(self, folder: Path, name: str, num_entries: int, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self.entry_bytes = shape[0] * shape[1] * dtype.itemsize
        self.data_fd = os.open(folder / f"{name}.data", os.O_RDWR | os.O_CREAT, 0o644)
        self.mark_fd = os.open(folder / f"{name}.marks", os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self.data_fd, num_entries * self.entry_bytes)
        os.ftruncate(self.mark_fd, num_entries * 4)

    def read(self, entry: int) -> NDArray[Any] | None:
        """Return the entry [M, width], or None where it is not filled (or does not match its mark)."""
        mark = int.from_bytes(os.pread(self.mark_fd, 4, 4 * entry), "little")
        if mark == 0:
            return None
        content = os.pread(self.data_fd, self.entry_bytes, entry * self.entry_bytes)
        return np.frombuffer(content, self.dtype).reshape(self.shape) if _mark_of(content) == mark else None

    def write(self, entry: int, values: NDArray[Any]) -> None:
        """Store an entry: the data, then the mark; raises OSError on a full disk, leaving it unfilled."""
        content = np.ascontiguousarray(values).tobytes()
        _write_all(self.data_fd, content, entry * self.entry_bytes)
        _write_all(self.mark_fd, _mark_of(content).to_bytes(4, "little"), 4 * entry)

    def close(self) -> None:
        os.close(self.data_fd)
        os.close(self.mark_fd)


def _mark_of(content: bytes) -> int:
    return zlib.crc32(content) or 1


def _write_all(descriptor: int, content: bytes, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


class BankPredictions:
    """Answers from the bank; misses are asked of `live` and stored. On a full disk it goes on live and says so in `fallback`."""

    source = "bank"

    def __init__(self, folder: Path, live: LivePredictions, dataset: Dataset, num_classes: int, dtype: np.dtype[Any]) -> None:
        self.live = live
        self.num_views = dataset.views.num_views
        num_rotations = live.num_rotations
        num_entries = len(dataset.train_labels) * self.num_views
        widths = {"logits": num_classes} | {f"joint_{tap}": num_classes * live.teacher.num_rotations for tap in live.branches}
        self.dtype = dtype
        self.arrays = [BankArray(folder, name, num_entries, (num_rotations, width), dtype) for name, width in widths.items()]
        self.lock_file: IO[bytes] = (folder / "write.lock").open("ab")
        self.use_lock: IO[bytes] = (folder / "use.lock").open("ab")
        fcntl.flock(self.use_lock, fcntl.LOCK_SH)  # held while open: a bank in use is never deleted
        self.fallback = ""
        self.hits = 0
        self.misses = 0

    def predict(self, batch: Batch, rows: Tensor) -> Predictions:
        entries = (batch.indices * self.num_views + batch.views).tolist()
        found = [[array.read(entry) for array in self.arrays] for entry in entries]
        missing = [position for position, values in enumerate(found) if any(value is None for value in values)]
        self.hits += len(entries) - len(missing)
        self.misses += len(missing)
        if missing:
            self._fill(found, missing, entries, batch, rows)
        tensors = [self._on_device([values[index] for values in found], rows) for index in range(len(self.arrays))]
        return Predictions(tensors[0], tuple(tensors[1:]))

    def _fill(self, found: list[list[NDArray[Any] | None]], missing: list[int], entries: list[int], batch: Batch, rows: Tensor) -> None:
        """Ask the teacher about the missing images, store what nobody stored meanwhile, and put what is stored into `found`."""
        positions = torch.tensor(missing, device=rows.device)
        asked = rows.unflatten(0, (len(entries), -1))[positions].flatten(0, 1)  # type: ignore[no-untyped-call]
        answer = self.live.predict(Batch(*(part[positions.to(part.device)] for part in batch)), asked)
        values = [tensor.detach().cpu().numpy().astype(self.dtype) for tensor in (answer.logits, *answer.joint_logits)]
        with locked(self.lock_file):
            for row, position in enumerate(missing):
                for index, array in enumerate(self.arrays):
                    stored = array.read(entries[position])
                    if stored is None:
                        stored = values[index][row]
                        self._store(array, entries[position], stored)
                    found[position][index] = stored

    def _store(self, array: BankArray, entry: int, values: NDArray[Any]) -> None:
        if self.fallback:
            return
        try:
            array.write(entry, values)
        except OSError as error:
            self.fallback = f"bank filling stopped: {error.strerror}"

    def _on_device(self, values: list[NDArray[Any] | None], rows: Tensor) -> Tensor:
        tensor = torch.from_numpy(np.stack([value for value in values if value is not None]))
        if rows.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(rows.device, non_blocking=True).to(rows.dtype)

    def flush(self) -> None:
        """Ask the system to write what was filled to the disk."""
        for array in self.arrays:
            os.fdatasync(array.data_fd)
            os.fdatasync(array.mark_fd)


@contextmanager
def locked(file: IO[bytes]) -> Iterator[None]:
    """Hold an exclusive advisory lock on `file` for the block; a killed holder's lock is released by the system."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def bank_bytes(num_images: int, num_views: int, num_rotations: int, num_classes: int, num_branches: int, dtype: str) -> int:
    """Return the size of a full bank: class logits and joint logits of all branches (CIFAR-100, 3 branches, float16: 84 GB)."""
    width = num_classes * (1 + num_branches * 4)
    return num_images * num_views * num_rotations * width * np.dtype(dtype).itemsize


def open_predictions(
    teacher: HierarchicalNet,
    *,
    branches: tuple[int, ...],
    num_rotations: int,
    dataset: Dataset,
    numerics: NumericsConfig,
    weights_sha256: str,
    bank_dir: Path | None = None,
    budget_bytes: int | None = None,
) -> TeacherPredictions:
    """Return the teacher's predictions as `numerics` asks: live, or from its bank where that fits the budget (else live, saying why).

    The budget defaults to half of the free disk; least-recently-used banks that nobody has open are deleted to make room.
    """
    autocast = torch.bfloat16 if numerics.precision == "bfloat16" else None
    live = LivePredictions(teacher, branches=branches, num_rotations=num_rotations, autocast=autocast)
    if numerics.teacher_predictions == "live":
        return live
    root = default_bank_dir() if bank_dir is None else bank_dir
    identity = {
        "teacher": teacher.name,
        "weights_sha256": weights_sha256,
        "data": dataset.fingerprint,
        "padding": dataset.views.padding,
        "has_flip": dataset.views.has_flip,
        "num_rotations": num_rotations,
        "num_classes": teacher.num_classes,
        "dtype": numerics.bank_dtype,
        "precision": numerics.precision,
    }
    size = bank_bytes(
        len(dataset.train_labels), dataset.views.num_views, num_rotations, teacher.num_classes, len(branches), numerics.bank_dtype
    )
    folder = root / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    try:
        root.mkdir(parents=True, exist_ok=True)
        budget = int(shutil.disk_usage(root).free * DEFAULT_SHARE_OF_FREE_DISK) if budget_bytes is None else budget_bytes
        if size > budget:
            live.fallback = f"the bank needs {size / 1e9:.2f} GB, the budget is {budget / 1e9:.2f} GB"
            return live
        _make_room(root, size, budget, keep=folder)
        folder.mkdir(exist_ok=True)
        with replacing(folder / META_FILE) as temporary:
            temporary.write_text(json.dumps(identity, indent=1, sort_keys=True))
        return BankPredictions(folder, live, dataset, teacher.num_classes, np.dtype(numerics.bank_dtype))
    except OSError as error:
        live.fallback = f"the bank in {root} can't be used: {error.strerror}"
        return live


def _make_room(root: Path, size: int, budget: int, *, keep: Path) -> None:
    """Delete least-recently-used banks, none that is open, until `size` more bytes fit the budget."""
    banks = sorted(
        (path for path in root.iterdir() if (path / META_FILE).exists() and path != keep), key=lambda p: (p / META_FILE).stat().st_mtime
    )
    used = {path: sum(file.stat().st_blocks * 512 for file in path.iterdir()) for path in banks}
    for path in banks:
        if sum(used.values()) + size <= budget:
            return
        with (path / "use.lock").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(path)
            del used[path]
