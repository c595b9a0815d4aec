"""What a trial leaves behind, as rows: a trial's, its epochs', the plan's, and their Parquet schemas; this module imports no torch."""

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa

from hsakd.config import TrialConfig

SCHEMA_VERSION = 1
MAPS = ("loss_terms", "versions")  # columns that Arrow reads as lists of pairs
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
