"""The result folder: Parquet files of records, each written whole, and what of them can be read; this module imports no torch.

The worker that ran a trial writes its two files once, at the trial's end (temporary file, then rename); the driver writes those of
pruned and failed trials, and the plan.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hsakd.config import TrialConfig, UnknownField
from hsakd.files import replacing
from hsakd.records import MAPS, SCHEMA_VERSION, EpochMetrics, PlanEntry, Row, TrialRecord, schema_of

ROWS_DIGEST = b"rows_sha256"  # of a file's metadata: pages have checksums, names and types of columns have none
ROWS_AT_ONCE = 1000  # as Python objects, of a plan that is digested
TRIAL_NAME = re.compile(r"\w[\w.+-]{0,99}", re.ASCII)  # a trial's id becomes a file name: no separators, no leading dot


def write_rows(path: Path, rows: Sequence[Row], record: type[Row]) -> None:
    """Write `rows` (all of class `record`) as one Parquet file, atomically."""
    values = [{item.name: getattr(row, item.name) for item in dataclasses.fields(row)} for row in rows]
    table = pa.Table.from_pylist(
        [{name: list(value.items()) if isinstance(value, dict) else value for name, value in row.items()} for row in values],
        schema=schema_of(record),
    )
    stored = (row for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE) for row in batch.to_pylist())
    table = table.replace_schema_metadata({**table.schema.metadata, ROWS_DIGEST: digest_of(stored)})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def digest_of(rows: Iterable[dict[str, Any]]) -> bytes:
    """Return the hexadecimal sha256 of a table's rows, names of columns included."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest().encode()


class DamagedFile(ValueError):
    """A file's content is not what was written, or not what its name says."""


class OtherVersion(ValueError):
    """A file is another version's: whole, but not for this code to read."""


def read_rows(path: Path, record: type[Any]) -> list[Any]:
    """Read the rows of a file that `write_rows` wrote; absent columns take their defaults.

    Raises:
        DamagedFile: the file is not Parquet, is cut or damaged, or has rows of another class.
        OtherVersion: it has an unknown schema version.
        ValueError: it can't be opened or read; the OSError is the cause.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path.name} can't be read: {error.strerror or error}") from error
    names = {item.name for item in dataclasses.fields(record)}
    try:
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            rows = file.read(use_threads=False).to_pylist()  # a pool thread that holds `content` at exit aborts the process
        versions = {row.get("schema_version", SCHEMA_VERSION) for row in rows} - {SCHEMA_VERSION}
        if versions:
            raise OtherVersion(f"{path.name} has schema_version {versions.pop()}; accepted: {SCHEMA_VERSION}")
        written = (file.schema_arrow.metadata or {}).get(ROWS_DIGEST)
        if written not in (None, digest_of(rows)):  # older code wrote none
            raise DamagedFile(f"{path.name} has other rows than were written")
        known = [{name: value for name, value in row.items() if name in names} for row in rows]
        return [record(**{name: dict(row[name]) if name in MAPS else row[name] for name in row}) for row in known]
    except (DamagedFile, OtherVersion):
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedFile(f"{path.name} is not a readable Parquet file: {error}") from error
    except TypeError as error:
        raise DamagedFile(f"{path.name} is not a {record.__name__} file: {error}") from error


def checked_name(trial_id: str) -> str:
    """Return a trial's id if it can be a file name; ids read from a plan or a record of another machine are data, not paths.

    Raises:
        ValueError: it has other characters than letters, digits and _.+-, or begins with a dot.
    """
    if TRIAL_NAME.fullmatch(trial_id) is None:
        raise ValueError(f"trial_id is {trial_id!r}; accepted: letters, digits and _.+-, not beginning with a dot")
    return trial_id


class ResultStore:
    """A result folder: `trials/`, `epochs/`, `checkpoints/`, `plan.parquet`, `studies.journal`. One writer a file.

    A damaged file is moved to `set_aside/` by `read_trial`, so that its trial is done again; nothing is ever deleted. What can't be read
    for another reason stays where it is: the file system fails or refuses (OSError), or other code has written it (`OtherVersion`).
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def trial_path(self, trial_id: str) -> Path:
        return self.root / "trials" / f"{checked_name(trial_id)}.parquet"

    def epochs_path(self, trial_id: str) -> Path:
        return self.root / "epochs" / f"{checked_name(trial_id)}.parquet"

    def checkpoint_dir(self, trial_id: str) -> Path:
        """The trial's own folder: `resume.pt` while it trains, `weights.safetensors` once it has ended."""
        return self.root / "checkpoints" / checked_name(trial_id)

    def errors_path(self, trial_id: str) -> Path:
        """What a trial's attempts ended with, if they raised."""
        return self.root / "errors" / f"{checked_name(trial_id)}.txt"

    def weights_path(self, trial_id: str) -> Path:
        return self.checkpoint_dir(trial_id) / "weights.safetensors"

    def imported_path(self, sha256: str) -> Path:
        """Where the weights of a foreign file lie in our layout, named by that file's digest."""
        return self.root / "imported" / f"{checked_name(sha256)}.safetensors"

    @property
    def plan_path(self) -> Path:
        return self.root / "plan.parquet"

    @property
    def journal_path(self) -> Path:
        return self.root / "studies.journal"

    def write_trial(self, record: TrialRecord, epochs: Sequence[EpochMetrics]) -> None:
        """Write a trial's epochs, then its row: a row that exists has its epochs."""
        write_rows(self.epochs_path(record.trial_id), epochs, EpochMetrics)
        write_rows(self.trial_path(record.trial_id), [record], TrialRecord)

    def read_trial(self, trial_id: str) -> TrialRecord | None:
        """Return a trial's record, or None where there is none; a damaged file is set aside and counts as none.

        Raises:
            OSError: the file system fails or refuses; the file may be whole, and stays where it is.
            OtherVersion: other code has written the record.
        """
        try:
            return self._record_of(trial_id)
        except ValueError as error:
            self._set_aside_if_damaged(self.trial_path(trial_id), error)
            return None

    def _record_of(self, trial_id: str) -> TrialRecord:
        """Return the record in a trial's file, if it is that trial's; raises what `read_rows` raises."""
        path = self.trial_path(trial_id)
        records: list[TrialRecord] = read_rows(path, TrialRecord)
        try:
            is_own = [(record.trial_id, record.config.trial_id) for record in records] == [(trial_id, trial_id)]
        except UnknownField as error:
            raise OtherVersion(f"{path.name} has a configuration of another version ({error})") from error
        except (ValueError, TypeError) as error:
            raise DamagedFile(f"{path.name} has a damaged configuration: {error}") from error
        if not is_own:
            raise DamagedFile(f"{path.name} is not the record of trial {trial_id}")
        return records[0]

    def _set_aside_if_damaged(self, path: Path, error: ValueError) -> None:
        """Set a file aside that can't be read since it is damaged; raises what else is wrong with it, unless it isn't there."""
        if isinstance(error, DamagedFile):
            self.set_aside(path)
        elif not isinstance(error.__cause__, FileNotFoundError):
            raise (error.__cause__ if isinstance(error.__cause__, OSError) else error) from None

    def weights_digest(self, config: TrialConfig | None) -> str:
        """Return the sha256 of a trial's final tensors, as it recorded it; empty without a trial or its record."""
        record = self.read_trial(config.trial_id) if config is not None else None
        return "" if record is None else record.weights_sha256

    def finished(self, trial_id: str) -> TrialRecord | None:
        """Return the record of a trial that needs no more work: pruned or diverged, or complete with its weights in place or given up."""
        record = self.read_trial(trial_id)
        return record if record is not None and self.is_finished(record) else None

    def peek_trial(self, trial_id: str) -> TrialRecord | None:
        """Return a trial's record, or None where there is no readable one; a reader beside the driver sets nothing aside.

        Raises:
            OtherVersion: other code has written the record.
        """
        try:
            return self._record_of(trial_id)
        except OtherVersion:
            raise
        except ValueError:
            return None

    def is_finished(self, record: TrialRecord) -> bool:
        """Whether a trial with this record needs no more work."""
        if record.status in ("failed", "out_of_memory"):
            return False
        return record.status != "complete" or not record.has_weights or self.weights_path(record.trial_id).exists()

    def offered(self, trial_id: str) -> TrialRecord | None:
        """Return the record of a trial that another sweep may take over: complete, its weights here, and for this code to read."""
        try:
            record = self.peek_trial(trial_id)
        except OtherVersion:
            return None
        return record if record is not None and record.status == "complete" and self.weights_path(trial_id).exists() else None

    def read_epochs(self, trial_id: str) -> list[EpochMetrics]:
        """Return a trial's epochs, none where there is no readable file; no trial is done again for them, so nothing is set aside."""
        try:
            return read_rows(self.epochs_path(trial_id), EpochMetrics)
        except ValueError:
            return []

    def set_aside(self, path: Path) -> Path:
        """Move a broken file to `set_aside/` under a free name and return where it went."""
        folder = self.root / "set_aside"
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        while (target := folder / f"{path.parent.name}-{path.name}.{number}").exists():
            number += 1
        path.replace(target)
        return target

    def trial_ids(self) -> list[str]:
        """Return the ids of all trials that have a row, sorted."""
        return sorted(path.stem for path in (self.root / "trials").glob("*.parquet"))

    def write_plan(self, entries: Sequence[PlanEntry]) -> None:
        write_rows(self.plan_path, entries, PlanEntry)

    def read_plan(self) -> list[PlanEntry]:
        """Return the work-list of the last command on this folder (empty where there is none); raises ValueError if unreadable."""
        return read_rows(self.plan_path, PlanEntry) if self.plan_path.exists() else []
