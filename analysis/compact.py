"""Merge a result folder's many small Parquet files into a few: `python analysis/compact.py RUN`.

A new generation is written beside the old one and becomes visible by one atomic rename of `compacted/CURRENT`. The small files stay: the
sweep goes on reading them, and a reader takes from the generation exactly those trials whose small file is unchanged since (its
modification time and size are in the generation's index), and the rest from the small files. So there is no moment at which a trial is
missing or counted twice.
"""

import argparse
import os
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from analysis.configurations import check
from hsakd.command_line import run_command
from hsakd.files import replacing
from hsakd.records import EPOCH_SCHEMA, SCHEMA_VERSION, STATUSES, TRIAL_SCHEMA

INDEX_SCHEMA = pa.schema([("trial_id", pa.string()), ("mtime_ns", pa.int64()), ("size", pa.int64())])
REQUIRED = ("config_json", "dataset", "network", "seed", "status", "trial_id")
ACCURACIES = tuple(name for name in TRIAL_SCHEMA.names if name.startswith(("top1", "top5", "peer_top1")))
PARTITIONS = "0123456789abcdef"  # by the first digit of the trial id: a reader of few trials opens few files
ROWS_PER_GROUP = 24_000  # 100 trials of 240 epochs: what is read for one learning curve


@dataclass(frozen=True, kw_only=True, slots=True)
class Small:
    """One small file of a trial: name, modification time, size."""

    path: Path
    mtime_ns: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """A committed merge: its folder and, per trial, the small file it was read from."""

    folder: Path
    index: dict[str, tuple[int, int]]


def small_files(folder: Path) -> dict[str, Small]:
    """Return the small files of `folder` by trial id, sorted."""
    if not folder.is_dir():
        return {}
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".parquet") and not entry.name.startswith("."):
                try:
                    status = entry.stat(follow_symlinks=Path(entry.path).exists())  # a link to nothing is a file that can't be read
                except FileNotFoundError:  # set aside meanwhile
                    continue
                found[entry.name.removesuffix(".parquet")] = Small(path=Path(entry.path), mtime_ns=status.st_mtime_ns, size=status.st_size)
    return dict(sorted(found.items()))


def current(run: Path) -> Generation | None:
    """Return the generation that `compacted/CURRENT` names, or None; raises ValueError where it can't be read."""
    pointer = run / "compacted" / "CURRENT"
    for _ in range(3):  # a compaction may replace the generation while we read it
        if not pointer.exists():
            return None
        name = pointer.read_text(errors="replace").strip()
        folder = pointer.parent / name
        try:
            index = pq.read_table(folder / "index.parquet", schema=INDEX_SCHEMA)
            if any(column.null_count for column in index.columns):
                raise pa.ArrowInvalid("index.parquet is not an index")
            columns = index.to_pydict()
        except FileNotFoundError:
            continue
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{run.name}/compacted/{name} is not readable ({error}); the small files are read instead") from error
        return Generation(
            folder=folder, index=dict(zip(columns["trial_id"], zip(columns["mtime_ns"], columns["size"], strict=True), strict=True))
        )
    raise ValueError(f"{run.name}/compacted/CURRENT names a generation that is not there; the small files are read instead")


def merged_ids(run: Path) -> set[str]:
    """Return the trials of the generation that `compacted/CURRENT` names, as far as its files can be read: its index may not be."""
    found = set[str]()
    pointer = run / "compacted" / "CURRENT"
    name = pointer.read_text(errors="replace").strip() if pointer.exists() else ""
    for digit in PARTITIONS if name else "":
        try:
            table = read_part(pointer.parent / name / "trials" / f"{digit}.parquet", pa.schema([TRIAL_SCHEMA.field("trial_id")]))
        except (pa.ArrowException, OSError, ValueError):
            continue
        found.update(table["trial_id"].drop_null().to_pylist())
    return found


def read_part(path: Path, schema: pa.Schema, filters: pc.Expression | None = None) -> pa.Table:
    """Return the rows of a file in `schema`; a column that an older version did not have is null.

    Raises:
        FileNotFoundError: a compaction has replaced the file meanwhile.
        ArrowException, OSError: it is not readable.
        ValueError: it is of an unknown schema version, or foreign.
    """
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        version = (file.schema_arrow.metadata or {}).get(b"schema_version", b"").decode()
        if version not in ("", str(SCHEMA_VERSION)):
            raise ValueError(f"has schema_version {version}; accepted: {SCHEMA_VERSION}")
        names = [name for name in schema.names if name in file.schema_arrow.names]
        if "trial_id" not in names:
            raise ValueError("has no column trial_id")
        table = file.read(columns=names) if filters is None else None
    if table is None:
        table = pq.read_table(path, columns=names, filters=filters, page_checksum_verification=True)
    return pa.Table.from_arrays([_column(table, field) for field in schema], schema=schema)


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    """Return a column in the type of this version, null where the table does not have it."""
    if field.name not in table.column_names:
        return pa.chunked_array([pa.nulls(len(table), field.type)])
    column = table[field.name]
    return column if column.type == field.type else column.cast(field.type)


def read_trial_file(path: Path, columns: list[str]) -> pa.Table:
    """Return the row of one trial file, `columns` only, in the schema of this version.

    Raises:
        ValueError: the file is cut or foreign, of an unknown schema version, or its row is broken.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            missing = [name for name in REQUIRED if name not in names]
            if missing:
                raise ValueError(f"{path.parent.name}/{path.name} has no column {missing[0]}; it is not a trial's file")
            table = file.read()  # faster than a choice of columns: a trial's row is small
        if table.num_rows != 1:
            raise ValueError(f"{path.parent.name}/{path.name} has {table.num_rows} rows; a trial's file has 1")
        if not table.schema.equals(TRIAL_SCHEMA):  # of an older version; the check saves a fifth of a small file's time
            table = pa.Table.from_arrays([_column(table, field) for field in TRIAL_SCHEMA], schema=TRIAL_SCHEMA)
        row = table.to_pylist()[0]
        version = row["schema_version"] if "schema_version" in names else SCHEMA_VERSION
        if version != SCHEMA_VERSION:
            raise ValueError(f"{path.parent.name}/{path.name} has schema_version {version}; accepted: {SCHEMA_VERSION}")
        if (fault := _fault(row, path.stem)) is not None:
            raise ValueError(f"{path.parent.name}/{path.name} has a broken row ({fault})")
        return table.select(columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    why = f"can't be opened ({error.strerror})" if isinstance(error, PermissionError) else "is not readable Parquet (cut or half-written)"
    return f"{path.parent.name}/{path.name} {why}"


def _fault(row: dict[str, Any], trial_id: str) -> str | None:
    """Return what is wrong with a trial's row, or None: tables rely on what is checked here."""
    if row["trial_id"] != trial_id or row["status"] not in STATUSES:
        return "its id or its status is not valid"
    if (missing := next((name for name in REQUIRED if row[name] is None), None)) is not None:
        return f"{missing} is missing"
    for name in ACCURACIES:
        if row[name] is not None and not 0 <= row[name] <= 100:
            return f"{name} is {row[name]}; accepted: 0 to 100"
    try:
        check(row["config_json"])
    except ValueError as error:
        return str(error)
    return None


def read_epoch_file(path: Path, schema: pa.Schema) -> pa.Table:
    """Return the columns of `schema` of one trial's epochs.

    Raises:
        ValueError: the file is cut or foreign, of an unknown schema version, or of another trial.
    """
    try:
        table = read_part(path, schema)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_unreadable(path, error)) from error
    except ValueError as error:
        raise ValueError(f"{path.parent.name}/{path.name} {error}") from error
    if set(table["trial_id"].to_pylist()) - {path.stem} or table["epoch"].null_count:
        raise ValueError(f"{path.parent.name}/{path.name} has the epochs of another trial")
    return table


def compact(run: Path) -> tuple[int, list[str]]:
    """Merge all readable small files of `run`; return how many trials the new generation has, and a sentence per file left out.

    Raises:
        ValueError: `run` has no trials/, another compaction is at work in it, or compacted/ can't be written.
    """
    if not (run / "trials").is_dir():
        raise ValueError(f"RUN is {str(run)!r}; accepted: a result folder with a trials/ folder")
    try:
        (run / "compacted").mkdir(exist_ok=True)
        with FileLock(run / "compacted" / ".lock", timeout=0):
            return _compact(run)
    except Timeout as error:
        raise ValueError(f"RUN is {str(run)!r}, in which another compaction is at work; accepted: wait for it to end") from error
    except OSError as error:
        raise ValueError(f"RUN is {str(run)!r}, in which compacted/ can't be written ({error.strerror or error})") from error


def _compact(run: Path) -> tuple[int, list[str]]:
    pointer = run / "compacted" / "CURRENT"
    previous = pointer.read_text(errors="replace").strip() if pointer.exists() else ""
    folder = run / "compacted" / uuid.uuid4().hex[:12]
    (folder / "trials").mkdir(parents=True)
    (folder / "epochs").mkdir()
    try:
        notes: list[str] = []
        index: dict[str, Small] = {}
        trials, epochs = small_files(run / "trials"), small_files(run / "epochs")
        for digit in PARTITIONS:
            mine = {trial_id: file for trial_id, file in trials.items() if trial_id.startswith(digit)}
            index |= _merge(folder / "trials" / f"{digit}.parquet", TRIAL_SCHEMA, _trial_tables(mine, notes))
            with_row = {trial_id: file for trial_id, file in epochs.items() if trial_id in index and trial_id.startswith(digit)}
            _merge(folder / "epochs" / f"{digit}.parquet", EPOCH_SCHEMA, _epoch_tables(with_row, notes))
        columns = {
            "trial_id": list(index),
            "mtime_ns": [file.mtime_ns for file in index.values()],
            "size": [f.size for f in index.values()],
        }
        pq.write_table(pa.table(columns, schema=INDEX_SCHEMA), folder / "index.parquet")
        with replacing(pointer) as temporary:
            temporary.write_text(folder.name + "\n")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    for old in (run / "compacted").iterdir():
        if old.is_dir() and old.name not in (folder.name, previous):  # a slow reader may still be at the previous one
            shutil.rmtree(old, ignore_errors=True)
    return len(index), notes


def _trial_tables(files: dict[str, Small], notes: list[str]) -> Iterator[tuple[str, Small, pa.Table]]:
    for trial_id, file in files.items():
        try:
            yield trial_id, file, read_trial_file(file.path, TRIAL_SCHEMA.names)
        except ValueError as error:
            notes.append(f"{error}; it stays a small file.")


def _epoch_tables(files: dict[str, Small], notes: list[str]) -> Iterator[tuple[str, Small, pa.Table]]:
    for trial_id, file in files.items():
        try:
            yield trial_id, file, read_epoch_file(file.path, EPOCH_SCHEMA)
        except ValueError as error:
            notes.append(f"{error}; it stays a small file.")


def _merge(target: Path, schema: pa.Schema, tables: Iterable[tuple[str, Small, pa.Table]]) -> dict[str, Small]:
    """Write `tables` as one file of few row groups; return the small files that went in."""
    merged: dict[str, Small] = {}
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(target, schema, compression="zstd", write_page_checksum=True) as writer:
        for trial_id, file, table in tables:
            merged[trial_id] = file
            waiting.append(table)
            if sum(part.num_rows for part in waiting[-1:]) * len(waiting) >= ROWS_PER_GROUP or len(waiting) >= ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    return merged


def main(arguments: list[str] | None = None) -> int:
    """Compact each result folder named; exit status 2 with one sentence for a folder that is none."""
    parser = argparse.ArgumentParser(description="Merge the small Parquet files of result folders (nothing is deleted).")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    for run in parser.parse_args(arguments).runs:
        try:
            count, notes = compact(run)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        print("\n".join([*notes, f"{run}: {count} trials compacted"]))
    return 0


if __name__ == "__main__":
    run_command(main)
