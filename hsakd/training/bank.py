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
import re
import shutil
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hsakd.bank_size import MARK_BYTES, bank_bytes
from hsakd.config import NumericsConfig
from hsakd.data.datasets import DATASETS
from hsakd.data.streams import TrainingData
from hsakd.data.views import Batch, ViewSpace
from hsakd.devices import sent
from hsakd.files import replacing
from hsakd.models import HierarchicalNet
from hsakd.training.predictions import LivePredictions, Predictions, TeacherPredictions, prefers_channels_last

DEFAULT_SHARE_OF_FREE_DISK = 0.5
META_FILE = "meta.json"
USE_LOCK = "use.lock"
BANK_NAME = re.compile(r"[0-9a-f]{24}")
BRANCH_PREFIX = "joint_"
ROOT_LOCK = "banks.lock"  # held while a bank is opened or deleted, so that neither meets the other half-way
LAYOUT = 3  # raised when a stored bank would be read, or its numbers made, in another way


def default_bank_dir() -> Path:
    """Return `hsakd-banks` in the node-local folder: $SLURM_TMPDIR, $TMPDIR or /tmp."""
    return Path(os.environ.get("SLURM_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "hsakd-banks"


class BankArray:
    """One array of entries [num_entries, M, width] of `dtype`, and its marks; read through memory maps, written by `pwrite`.

    (A full disk is then an OSError, where a write through a map would be a deadly signal.) What is opened is added to `descriptors`.
    """

    def __init__(
        self, folder: Path, name: str, num_entries: int, shape: tuple[int, int], dtype: np.dtype[Any], descriptors: list[int]
    ) -> None:
        self.entry_bytes = shape[0] * shape[1] * dtype.itemsize
        descriptors.extend(os.open(folder / f"{name}.{kind}", os.O_RDWR | os.O_CREAT, 0o644) for kind in ("data", "marks"))
        self.data_fd, self.mark_fd = descriptors[-2:]
        os.ftruncate(self.data_fd, num_entries * self.entry_bytes)
        os.posix_fallocate(self.mark_fd, 0, num_entries * MARK_BYTES)
        self.data = np.memmap(folder / f"{name}.data", dtype=dtype, mode="r", shape=(num_entries, *shape))
        self.marks = np.memmap(folder / f"{name}.marks", dtype="<u4", mode="r", shape=(num_entries,))
        self.verified = np.zeros(num_entries, dtype=bool)  # entries that this process has seen to match their mark

    def filled(self, entries: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of `entries` are filled; an entry's checksum is looked at once per process."""
        unsure = entries[~self.verified[entries] & (self.marks[entries] != 0)]
        if len(unsure):
            own_marks = _marks_of(self.data[unsure])  # read before the stored marks are, as the data are written before
            self.verified[unsure] = own_marks == self.marks[unsure]
        return np.asarray(self.verified[entries])

    def write(self, entry: int, values: NDArray[Any]) -> None:
        """Store an entry: the data, then the mark; raises OSError on a full disk, leaving it unfilled."""
        _write_all(self.data_fd, np.ascontiguousarray(values).tobytes(), entry * self.entry_bytes)
        _write_all(self.mark_fd, _marks_of(values[None]).tobytes(), entry * MARK_BYTES)

    def flush(self) -> None:
        """Ask the system to write what was filled to the disk."""
        os.fdatasync(self.data_fd)
        os.fdatasync(self.mark_fd)


def _marks_of(values: NDArray[Any]) -> NDArray[np.uint32]:
    """Return the marks of entries [n, M, width]: their CRC-32, 1 where that is 0."""
    rows = np.ascontiguousarray(values).reshape(len(values), -1)
    sums = np.fromiter((zlib.crc32(row.data) for row in rows), dtype="<u4", count=len(rows))
    return np.asarray(np.maximum(sums, 1), dtype="<u4")


def _write_all(descriptor: int, content: bytes, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


class BankPredictions:
    """Answers from the bank; misses are asked of `live` and stored. On a full disk it goes on live and says so in `fallback`.

    An entry is asked for and stored in all its rotations, so that predictions of unrotated images only (KD's) are a bank of their own.
    The images that a batch misses are one batch to the teacher, and what a kill left of such a batch is a smaller one: on CPUs the same
    to the bit with ResNets, WRN and VGG (measured at 1 to 15 of 16 images), not with depthwise convolutions (MobileNetV2, ShuffleNetV1:
    5e-7 of the largest logit, at 1 to 3 images).
    """

    source = "bank"

    def __init__(self, folder: Path, live: LivePredictions, dataset: TrainingData, num_classes: int, dtype: np.dtype[Any]) -> None:
        descriptors: list[int] = []
        self.close = weakref.finalize(self, _close_all, descriptors)  # gives the bank up: it may be deleted from then on
        descriptors.extend(os.open(folder / lock, os.O_RDWR | os.O_CREAT, 0o644) for lock in (USE_LOCK, "write.lock"))
        use_lock, self.write_lock = descriptors
        fcntl.flock(use_lock, fcntl.LOCK_SH)  # held while open: a bank in use is never deleted
        self.live = live
        self.num_views = dataset.views.num_views
        num_entries = len(dataset.train_labels) * self.num_views
        widths = {"logits": num_classes} | {f"{BRANCH_PREFIX}{tap}": live.joint_width for tap in live.branches}
        self.dtype = torch.float16 if dtype == np.float16 else torch.float32
        self.arrays = [
            BankArray(folder, name, num_entries, (live.num_rotations, width), dtype, descriptors) for name, width in widths.items()
        ]
        self.fallback = ""
        self.hits = 0
        self.misses = 0

    def predict(self, batch: Batch, rows: Tensor) -> Predictions:
        entries = (batch.indices * self.num_views + batch.views).numpy()
        found = np.logical_and.reduce([array.filled(entries) for array in self.arrays])
        missing = np.flatnonzero(~found)
        self.hits += len(entries) - len(missing)
        self.misses += len(missing)
        fresh = self._filled_now(missing, entries, batch, rows) if len(missing) else None
        tensors = []
        for index, array in enumerate(self.arrays):
            if fresh is None:
                values = array.data[entries]
            else:
                values = np.empty((len(entries), *array.data.shape[1:]), array.data.dtype)
                values[found] = array.data[entries[found]]
                values[missing] = fresh[index]
            tensors.append(sent(torch.from_numpy(values), rows.device).to(rows.dtype))
        return Predictions(tensors[0], tuple(tensors[1:]))

    def _filled_now(self, missing: NDArray[np.int64], entries: NDArray[np.int64], batch: Batch, rows: Tensor) -> list[NDArray[Any]]:
        """Ask the teacher about the missing images, store what nobody stored meanwhile, and return what is stored, per array."""
        if len(missing) < len(entries):
            positions = torch.from_numpy(missing)
            batch = Batch(*(part[positions.to(part.device)] for part in batch))
            rows = rows.unflatten(0, (len(entries), -1))[positions.to(rows.device)].flatten(0, 1)  # type: ignore[no-untyped-call]
        answer = self.live.predict(batch, rows)
        limit = torch.finfo(self.dtype).max
        values = [tensor.float().clamp(-limit, limit).to(self.dtype).cpu().numpy() for tensor in (answer.logits, *answer.joint_logits)]
        asked = entries[missing]
        with locked(self.write_lock):
            for array, own in zip(self.arrays, values, strict=True):
                stored = array.filled(asked)
                own[stored] = array.data[asked[stored]]
                for row in np.flatnonzero(~stored):
                    self._store(array, int(asked[row]), own[row])
        return values

    def _store(self, array: BankArray, entry: int, values: NDArray[Any]) -> None:
        if self.fallback:
            return
        try:
            array.write(entry, values)
        except OSError as error:
            self.fallback = f"bank filling stopped: {error.strerror}"

    def flush(self) -> None:
        """Ask the system to write what was filled to the disk; the loop does so before each checkpoint."""
        try:
            for array in self.arrays:
                array.flush()
        except OSError as error:
            self.fallback = self.fallback or f"bank filling stopped: {error.strerror}"


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


@contextmanager
def locked(file: IO[bytes] | int) -> Iterator[None]:
    """Hold an exclusive advisory lock on `file` for the block; a killed holder's lock is released by the system."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def open_predictions(
    teacher: HierarchicalNet,
    *,
    branches: tuple[int, ...],
    num_rotations: int,
    dataset: TrainingData,
    numerics: NumericsConfig,
    weights_sha256: str,
    bank_dir: Path | None = None,
    budget_bytes: int | None = None,
    feature_terms: tuple[str, ...] = (),
) -> TeacherPredictions:
    """Return the teacher's predictions as `numerics` asks: live, or from its bank where that fits the budget (else live, saying why).

    `feature_terms` names the loss terms that read the teacher's maps or embedding; a bank keeps logits only, so that they are live.

    The budget defaults to half of the disk that is free or already taken by banks, and is for all banks of `bank_dir` together;
    least-recently-used banks that nobody has open are deleted to make room, open ones count with their full size.
    """
    autocast = torch.bfloat16 if numerics.precision == "bfloat16" else None
    is_channels_last = prefers_channels_last(teacher, numerics)
    live = LivePredictions(
        teacher,
        branches=branches,
        num_rotations=num_rotations,
        autocast=autocast,
        is_channels_last=is_channels_last,
        with_features=bool(feature_terms),
    )
    if numerics.teacher_predictions == "live":
        return live
    views = dataset.views
    if feature_terms:
        live.fallback = f"a bank keeps logits only, and {', '.join(feature_terms)} reads the teacher's feature maps"
        return live
    if not isinstance(views, ViewSpace):
        live.fallback = "resized crops are too many to be kept"
        return live
    root = default_bank_dir() if bank_dir is None else bank_dir
    identity = {
        "teacher": teacher.name,
        "weights_sha256": weights_sha256,
        "data": dataset.fingerprint,
        "padding": views.padding,
        "has_flip": views.has_flip,
        "num_rotations": num_rotations,
        "num_classes": teacher.num_classes,
        "dtype": numerics.bank_dtype,
        "precision": numerics.precision,
        "tf32": numerics.tf32,
        "channels_last": is_channels_last,
        "device": next(teacher.parameters()).device.type,
        "layout": LAYOUT,
    }
    if (dataset.mean, dataset.std) not in {(DATASETS[name].mean, DATASETS[name].std) for name in DATASETS}:
        identity |= {"mean": dataset.mean, "std": dataset.std}  # a registered data set's own follow from its images
    folder = root / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / ROOT_LOCK).open("ab") as root_lock, locked(root_lock):
            kept = {int(file.stem.removeprefix(BRANCH_PREFIX)) for file in folder.glob(f"{BRANCH_PREFIX}*.data")}  # of other placements
            num_branches = len(kept | set(branches))
            size = bank_bytes(
                len(dataset.train_labels), dataset.views.num_views, num_rotations, teacher.num_classes, num_branches, numerics.bank_dtype
            )
            used = sum(disk_bytes(path) for path in bank_folders(root))
            room = int((shutil.disk_usage(root).free + used) * DEFAULT_SHARE_OF_FREE_DISK)
            budget = room if budget_bytes is None else budget_bytes
            promised = _make_room(root, size, budget, keep=folder)
            if promised + size > budget:
                others = f", and the full size of other open banks is {promised / 1e9:.3g} GB" if promised else ""
                live.fallback = f"the bank needs {size / 1e9:.3g} GB, the budget is {budget / 1e9:.3g} GB{others}"
                return live
            folder.mkdir(exist_ok=True)
            if (folder / META_FILE).exists():
                os.utime(folder / META_FILE)  # the newest; a full disk has no room for writing it anew
            else:
                with replacing(folder / META_FILE) as temporary:
                    temporary.write_text(json.dumps(identity, indent=1, sort_keys=True))
            return BankPredictions(folder, live, dataset, teacher.num_classes, np.dtype(numerics.bank_dtype))
    except OSError as error:
        live.fallback = f"the bank in {root} can't be used: {error.strerror}"
        return live


def bank_folders(root: Path) -> list[Path]:
    """Return the banks of `root`, least recently opened first; what a killed deletion or opening left (no description) leads."""

    def opened_at(folder: Path) -> int:
        meta = folder / META_FILE
        return meta.stat().st_mtime_ns if meta.exists() else 0

    return sorted((path for path in root.glob("*/") if BANK_NAME.fullmatch(path.name)), key=opened_at)


def disk_bytes(folder: Path) -> int:
    """Return the disk that a bank takes now (its files are sparse)."""
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir())


def full_bytes(folder: Path) -> int:
    """Return the disk that a bank takes once it is full."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".data", ".marks"))


def delete_bank(folder: Path) -> bool:
    """Delete a bank, unless a process has it open; return whether it is gone."""
    if is_in_use(folder):
        return False
    shutil.rmtree(folder)
    return True


def is_in_use(folder: Path) -> bool:
    """Return whether a process has a bank open; stays true or false while the caller holds the root's lock."""
    with (folder / USE_LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _make_room(root: Path, size: int, budget: int, *, keep: Path) -> int:
    """Delete least-recently-used banks, none that is open, until the others and a full bank of `size` bytes fit the budget.

    Returns what the other open banks will take, which counts in full from the start: they are being filled. Where not even deleting all
    that are closed would do, none is deleted.
    """
    others = [path for path in bank_folders(root) if path != keep]
    promised = {path: full_bytes(path) for path in others if is_in_use(path)}
    closed = {path: disk_bytes(path) for path in others if path not in promised}
    taken = sum(promised.values()) + size
    for path in list(closed):
        if taken <= budget < taken + sum(closed.values()):
            shutil.rmtree(path)
            del closed[path]
    return sum(promised.values())
