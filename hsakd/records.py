"""What a trial leaves behind: one Parquet row per trial, one Parquet file of epochs per trial; this module imports no torch.

The worker that ran a trial writes its two files once, at the trial's end (temporary file, then rename); the driver writes those of
pruned and failed trials only.
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
import re
import tempfile
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from hsakd.config import TrialConfig, UnknownField

SCHEMA_VERSION = 1
MAPS = ("loss_terms", "versions")  # columns that Arrow reads as lists of pairs
ROWS_DIGEST = b"rows_sha256"  # of a file's metadata: pages have checksums, names and types of columns have none
ROWS_AT_ONCE = 1000  # as Python objects, of a plan that is digested
TRIAL_NAME = re.compile(r"\w[\w.+-]{0,99}", re.ASCII)  # a trial's id becomes a file name: no separators, no leading dot
STATUSES = ("complete", "pruned", "diverged", "out_of_memory", "failed")


def _column(unit: str, default: Any = dataclasses.MISSING) -> Any:
    """A record field whose Parquet column carries `unit` as metadata."""
    if default is dataclasses.MISSING:
        return field(metadata={"unit": unit})
    return field(default=default, metadata={"unit": unit})


def _result(top1: float | None, map50: float | None) -> str:
    """Return "top-1 76.20 %" or, of a detector, "mAP 76.20 %"; empty without a number."""
    if map50 is not None:
        return f"mAP {map50:.2f} %"
    return "" if top1 is None else f"top-1 {top1:.2f} %"


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochMetrics:
    """One epoch of one trial. Accuracies are per cent (0-100); losses are means over the epoch's steps, over all ranks and attempts.

    `bank_hits` and `bank_misses` count the images whose predictions a teacher bank had and lacked; without one both are 0.
    """

    trial_id: str = _column("id")
    epoch: int = _column("0-based epoch")
    attempt: int = _column("1-based attempt", 1)
    learning_rate: float = _column("per step")
    loss: float = _column("nats, weighted total")
    loss_terms: dict[str, float] = _column("nats, unweighted")
    top1_test: float | None = _column("per cent", None)
    top5_test: float | None = _column("per cent", None)
    top1_val: float | None = _column("per cent", None)
    top1_test_peer: float | None = _column("per cent, of the peer in online mutual distillation", None)
    map50_test: float | None = _column("per cent, mAP of a detector: VOC 2007's, at IoU 0.5", None)
    branch_top1_joint: list[float] = field(default_factory=list, metadata={"unit": "per cent, as the trial's; empty unless measured"})
    branch_top1_class: list[float] = field(default_factory=list, metadata={"unit": "per cent, as the trial's; empty unless measured"})
    train_seconds: float = _column("seconds", 0.0)
    eval_seconds: float = _column("seconds", 0.0)
    bank_hits: int = _column("images", 0)
    bank_misses: int = _column("images", 0)
    predictions_source: str = _column("none, live or bank", "none")
    predictions_fallback: str = _column("why a bank was not used, or not filled", "")

    @property
    def result(self) -> str:
        """The number that the epoch was tested with, as text."""
        return _result(self.top1_test, self.map50_test)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One trial: what it was, what came out, how it was obtained. Accuracies are per cent (0-100), None where not measured.

    `status` is one of `STATUSES`; `top1_best_test` is the paper's selection (best test epoch), `top1_at_best_val` the test accuracy at the
    epoch that validation selects, `top1_last` the last epoch's.
    """

    trial_id: str = _column("id")
    status: str = _column("one of complete, pruned, diverged, out_of_memory, failed")
    error: str = _column("text", "")
    attempts: int = _column("count", 1)
    role: str = _column("baseline, teacher, student, probe or detector")
    network: str = _column("name")
    dataset: str = _column("name")
    seed: int = _column("seed")
    terms: str = _column("names joined by +", "")
    teacher_network: str = _column("name", "")
    teacher_regime: str = _column("joint, frozen, plain or empty", "")
    teacher_trial_id: str = _column("id", "")
    num_epochs: int = _column("planned epochs")
    epochs_done: int = _column("epochs", 0)
    top1_last: float | None = _column("per cent", None)
    top5_last: float | None = _column("per cent", None)
    top1_best_test: float | None = _column("per cent", None)
    best_test_epoch: int | None = _column("0-based epoch", None)
    top1_val_last: float | None = _column("per cent", None)
    top1_val: float | None = _column("per cent, best validation epoch", None)
    best_val_epoch: int | None = _column("0-based epoch", None)
    top1_at_best_val: float | None = _column("per cent", None)
    peer_network: str = _column("name", "")
    peer_top1_last: float | None = _column("per cent", None)
    peer_top1_best_test: float | None = _column("per cent", None)
    map50_last: float | None = _column("per cent, mAP of a detector: VOC 2007's, at IoU 0.5", None)
    map50_best_test: float | None = _column("per cent, of the best test epoch", None)
    branch_top1_joint: list[float] = field(default_factory=list, metadata={"unit": "per cent, joint label, all rotations, per branch"})
    branch_top1_class: list[float] = field(default_factory=list, metadata={"unit": "per cent, class marginal, all rotations, per branch"})
    diverged_step: int | None = _column("0-based step", None)
    num_train_images: int = _column("images", 0)
    parameters: int = _column("count, backbone", 0)
    multi_adds: int = _column("per unrotated image, backbone", 0)
    train_seconds: float = _column("seconds", 0.0)
    total_seconds: float = _column("seconds, all attempts, as far as checkpoints tell", 0.0)
    peak_memory_bytes: int = _column("bytes: allocated on a GPU, else the resident set; of the last attempt's first process", 0)
    predictions_source: str = _column("none, live or bank", "none")
    predictions_fallback: str = _column("why a bank was not used, or not filled", "")
    bank_hits: int = _column("images", 0)
    bank_misses: int = _column("images", 0)
    weights_sha256: str = _column("sha256 of the final tensors", "")
    has_weights: bool = _column("whether the final weights are kept", True)
    teacher_weights_sha256: str = _column("sha256 of the teacher's tensors", "")
    backbone_weights_sha256: str = _column("sha256 of the tensors of the trial whose backbone was loaded", "")
    device: str = _column("torch device type", "")
    device_name: str = _column("name", "")
    num_threads: int = _column("CPU threads of each rank", 0)
    num_ranks: int = _column("processes with a device each", 1)
    versions: dict[str, str] = field(default_factory=dict, metadata={"unit": "package versions"})
    git_commit: str = _column("commit, + where modified", "")
    started_at: str = _column("UTC, ISO 8601", "")
    finished_at: str = _column("UTC, ISO 8601", "")
    config_json: str = _column("JSON of TrialConfig")
    schema_version: int = _column("version", SCHEMA_VERSION)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status is {self.status!r}; accepted: {', '.join(STATUSES)}")

    @classmethod
    def of(cls, config: TrialConfig, *, status: str, **measured: Any) -> Self:
        """Return a record of `config`: what identifies the trial follows from its configuration, `measured` are the other columns."""
        teacher = config.teacher
        return cls(
            trial_id=config.trial_id,
            status=status,
            role=config.role,
            network=config.network,
            dataset=config.data.dataset,
            seed=config.seed,
            terms="+".join(name for name, _ in config.objective.terms),
            teacher_network=teacher.network if teacher is not None else "",
            teacher_regime=config.teacher_regime,
            teacher_trial_id=teacher.trial_id if teacher is not None else "",
            num_epochs=config.optim.epochs,
            config_json=config.to_json(),
            **measured,
        )

    @property
    def result(self) -> str:
        """The number that the trial was for, as text."""
        return _result(self.top1_last, self.map50_last)

    @property
    def config(self) -> TrialConfig:
        """The trial's configuration."""
        return TrialConfig.from_json(self.config_json)


def predictions_columns(epochs: Sequence[EpochMetrics]) -> dict[str, Any]:
    """Return a record's columns on who served its predictions: the last epoch's source, the latest fallback of any, all images."""
    return {
        "predictions_source": epochs[-1].predictions_source if epochs else "none",
        "predictions_fallback": next((row.predictions_fallback for row in reversed(epochs) if row.predictions_fallback), ""),
        "bank_hits": sum(row.bank_hits for row in epochs),
        "bank_misses": sum(row.bank_misses for row in epochs),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanEntry:
    """Why a trial is in a result folder: one line of the work-list. A trial may serve several lines (KD's and HSAKD's backbone).

    `purpose`: "backbone" and "teacher" are trained for others, "report" rows are the table's, "search" and "confirm" ran on train minus
    validation to choose the setting of HSAKD-tuned. `study` names the Optuna study, `study_number` its trial, for search and confirm rows.
    """

    trial_id: str = _column("id")
    purpose: str = _column("backbone, teacher, report, search or confirm")
    method: str = _column("table row")
    teacher: str = _column("network of the pair")
    student: str = _column("network of the pair")
    seed: int = _column("student seed", 0)
    teacher_seed: int = _column("teacher seed", 0)
    study: str = _column("study name", "")
    study_number: int | None = _column("Optuna trial number", None)
    config_json: str = _column("JSON of TrialConfig, empty until known", "")
    schema_version: int = _column("version", SCHEMA_VERSION)


@dataclass(frozen=True, kw_only=True, slots=True)
class PruningRow:
    """What a pruner did in a study ("as run"), or would have done with its complete trials ("median", "hyperband")."""

    study: str = _column("study name")
    pruner: str = _column("as run, median or hyperband")
    num_trials: int = _column("count")
    num_pruned: int = _column("count")
    epochs_run: int = _column("epochs")
    epochs_saved: int = _column("epochs")
    seconds_saved: float = _column("seconds")
    best_trial_id: str = _column("id")
    best_top1_val: float = _column("per cent")
    kills_best: bool = _column("whether the best trial is pruned")
    top1_val_left: float = _column("per cent, best trial that is not pruned")
    schema_version: int = _column("version", SCHEMA_VERSION)


Row = EpochMetrics | TrialRecord | PlanEntry | PruningRow

_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _arrow_type(hint: Any) -> pa.DataType:
    if hint in _ARROW:
        return _ARROW[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return pa.list_(_arrow_type(arguments[0]))
    if origin is dict:
        return pa.map_(_arrow_type(arguments[0]), _arrow_type(arguments[1]))
    return _arrow_type(next(option for option in arguments if option is not type(None)))


def schema_of(record: type[Row]) -> pa.Schema:
    """Return the Parquet schema of a record class: a column per field, its unit in the field's metadata."""
    hints = typing.get_type_hints(record)
    columns = [
        pa.field(item.name, _arrow_type(hints[item.name]), metadata={"unit": item.metadata["unit"]}) for item in dataclasses.fields(record)
    ]
    return pa.schema(columns, metadata={"schema_version": str(SCHEMA_VERSION), "record": record.__name__})


TRIAL_SCHEMA = schema_of(TrialRecord)
EPOCH_SCHEMA = schema_of(EpochMetrics)
PLAN_SCHEMA = schema_of(PlanEntry)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in `path`'s folder that becomes `path` atomically when the block ends, and vanishes if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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


FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # a person has to make room, or another folder


def is_passing(error: BaseException) -> bool:
    """Whether a file couldn't be read because the system refuses or fails, not because of what is in it: libraries give no errno then."""
    return isinstance(error, OSError) and error.errno is not None


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
            rows = file.read().to_pylist()
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
