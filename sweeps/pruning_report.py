"""`python sweeps/pruning_report.py OUT`: what pruning saved in each study, and whether the pruners would have killed the best trial.

A pruner that did not run is replayed on the recorded epochs: every trial reports its validation accuracies in the order in which they
came in, and the pruner is asked as it would have been. The rows go to `<out>/pruning.parquet`, of which `analysis/build.py` makes a table.
"""

import heapq
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import optuna
import tyro
from optuna.trial import TrialState

from hsakd.command_line import parse, refuse, run_command
from hsakd.records import EpochMetrics, PruningRow, TrialRecord
from hsakd.result_folder import check_trials
from hsakd.store import OtherVersion, ResultStore, write_rows
from sweeps.search import PROTECTED, TRIAL_ID, make_pruner, open_storage

REPLAYED = ("median", "hyperband")
PRUNING_FILE = "pruning.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class PruningOptions:
    """Report what pruning saved, and what it would have done."""

    out: tyro.conf.Positional[Path]
    """Result folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A search trial that ran: its record and its epochs; the paper's setting is protected from pruners."""

    number: int
    record: TrialRecord
    epochs: tuple[EpochMetrics, ...]
    is_protected: bool

    @property
    def seconds_per_epoch(self) -> float:
        """Training and evaluation, mean over the epochs that ran."""
        return sum(row.train_seconds + row.eval_seconds for row in self.epochs) / max(1, len(self.epochs))

    @property
    def missing_epochs(self) -> int:
        """Epochs that pruning spared."""
        return self.record.num_epochs - len(self.epochs) if self.record.status == "pruned" else 0


def curves_of(store: ResultStore, study: optuna.Study) -> list[Curve]:
    """Return the study's complete and pruned trials, by number; a setting that was asked for twice counts once."""
    curves: dict[str, Curve] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        trial_id = str(trial.user_attrs.get(TRIAL_ID, ""))
        record = store.peek_trial(trial_id) if trial_id else None
        if record is not None and trial_id not in curves:
            epochs = tuple(row for row in store.read_epochs(trial_id) if row.top1_val is not None)
            is_protected = bool(trial.user_attrs.get(PROTECTED, False))
            curves[trial_id] = Curve(number=trial.number, record=record, epochs=epochs, is_protected=is_protected)
    return sorted(curves.values(), key=lambda curve: curve.number)


def reports_in_order(curves: list[Curve]) -> Iterator[tuple[Curve, EpochMetrics]]:
    """Yield every epoch of every trial in the order of their ends: the trial's start plus the seconds of its epochs so far.

    A trial without a recorded start is taken to begin when the one before it ended.
    """
    events: list[tuple[float, int, int, Curve]] = []
    clock = 0.0
    for curve in curves:
        clock = datetime.fromisoformat(curve.record.started_at).timestamp() if curve.record.started_at else clock
        for position, row in enumerate(curve.epochs):
            clock += row.train_seconds + row.eval_seconds
            heapq.heappush(events, (clock, curve.number, position, curve))
    while events:
        _, _, position, curve = heapq.heappop(events)
        yield curve, curve.epochs[position]


def replay(name: str, pruner_name: str, curves: list[Curve]) -> dict[int, int]:
    """Return the epochs (a count) after which the pruner would have stopped trials, by trial number; the others run to their end."""
    num_epochs = max(curve.record.num_epochs for curve in curves)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(study_name=name, direction="maximize", pruner=make_pruner(pruner_name, num_epochs))
        asked: dict[int, optuna.Trial] = {}
        for curve in curves:
            while len(asked) <= curve.number:  # a trial's number decides its bracket
                trial = study.ask()
                asked[trial.number] = trial
        for number in set(asked) - {curve.number for curve in curves}:
            study.tell(number, state=TrialState.FAIL)
        stopped: dict[int, int] = {}
        for curve, row in reports_in_order(curves):
            if curve.number in stopped or row.top1_val is None:
                continue
            asked[curve.number].report(row.top1_val, row.epoch)
            is_last = row is curve.epochs[-1]
            if not is_last and not curve.is_protected and asked[curve.number].should_prune():
                stopped[curve.number] = row.epoch + 1
                study.tell(curve.number, state=TrialState.PRUNED)
            elif is_last:
                study.tell(curve.number, max(other.top1_val or 0.0 for other in curve.epochs))
    return stopped


def rows_of(store: ResultStore, study: optuna.Study) -> list[PruningRow]:
    """Return what happened in a study, then what each replayed pruner would have done with its complete trials."""
    curves = [curve for curve in curves_of(store, study) if curve.epochs]
    complete = [curve for curve in curves if curve.record.status == "complete" and curve.record.top1_val is not None]
    if not complete:
        return []
    best = max(complete, key=lambda curve: (curve.record.top1_val or 0.0, -curve.number))
    best_value = best.record.top1_val or 0.0
    rows = [
        PruningRow(
            study=study.study_name,
            pruner="as run",
            num_trials=len(curves),
            num_pruned=sum(curve.record.status == "pruned" for curve in curves),
            epochs_run=sum(len(curve.epochs) for curve in curves),
            epochs_saved=sum(curve.missing_epochs for curve in curves),
            seconds_saved=sum(curve.missing_epochs * curve.seconds_per_epoch for curve in curves),
            best_trial_id=best.record.trial_id,
            best_top1_val=best_value,
            kills_best=False,
            top1_val_left=best_value,
        )
    ]
    for name in REPLAYED:
        stopped = replay(study.study_name, name, complete)
        kept = [curve.record.top1_val or 0.0 for curve in complete if curve.number not in stopped]
        saved = {curve.number: len(curve.epochs) - stopped[curve.number] for curve in complete if curve.number in stopped}
        rows.append(
            PruningRow(
                study=study.study_name,
                pruner=name,
                num_trials=len(complete),
                num_pruned=len(stopped),
                epochs_run=sum(len(curve.epochs) for curve in complete) - sum(saved.values()),
                epochs_saved=sum(saved.values()),
                seconds_saved=sum(saved[curve.number] * curve.seconds_per_epoch for curve in complete if curve.number in saved),
                best_trial_id=best.record.trial_id,
                best_top1_val=best_value,
                kills_best=best.number in stopped,
                top1_val_left=max(kept, default=0.0),
            )
        )
    return rows


def describe(row: PruningRow) -> str:
    """Return a row as a sentence."""
    share = row.epochs_saved / max(1, row.epochs_saved + row.epochs_run)
    verb = "" if row.pruner == "as run" else "would have "
    sentence = (
        f"{row.study}, {row.pruner}: {verb}pruned {row.num_pruned} of {row.num_trials} trials and saved {row.epochs_saved} epochs "
        f"({share:.0%}, {row.seconds_saved / 3600:.3g} h)"
    )
    if row.pruner == "as run":
        return f"{sentence}; best trial {row.best_trial_id} ({row.best_top1_val:.2f} %)"
    loss = row.best_top1_val - row.top1_val_left
    fate = f"would have killed the best trial, {loss:.2f} points lost" if row.kills_best else "would have kept the best trial"
    return f"{sentence}; {fate}"


def main() -> int:
    """Run the command."""
    options = parse(PruningOptions)
    store = ResultStore(options.out)
    if not store.journal_path.exists():
        refuse(f"OUT is {options.out}; accepted: a folder with a studies.journal")
    try:
        check_trials("OUT", options.out)
        storage = open_storage(store.journal_path)
    except ValueError as error:
        refuse(str(error))
    names = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
    try:
        rows = [row for name in names for row in rows_of(store, optuna.load_study(study_name=name, storage=storage))]
    except OtherVersion as error:
        refuse(str(error))
    write_rows(store.root / PRUNING_FILE, rows, PruningRow)
    print("\n".join(map(describe, rows)) if rows else "no study has a complete trial with validation accuracies yet")
    return 0


if __name__ == "__main__":
    run_command(main)
