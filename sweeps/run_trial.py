"""`python sweeps/run_trial.py TRIAL_ID|FILE --out OUT`: runs one trial without Ray, for debugging and for reproducing a table entry."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from hsakd.command_line import parse, refuse, run_command
from hsakd.config import TrialConfig
from hsakd.records import EpochMetrics, TrialRecord
from hsakd.result_folder import check_trials, read_plan
from hsakd.store import ResultStore
from sweeps.driver_lock import driver_lock


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialOptions:
    """Run one trial in this process and print its epochs; before it, the trials whose weights it needs, if they aren't in --out."""

    trial: tyro.conf.Positional[str]
    """A trial id of --runs, or a JSON file of a trial's configuration."""
    out: Path
    """Result folder; what is finished there is not run again."""
    runs: Path | None = None
    """The folder in which a trial id is looked up; default: --out."""
    data_dir: Path | None = None
    """Where data sets lie (or go, with --download)."""
    download: bool = False
    """Fetch the data set into --data-dir if it isn't there."""
    device: str = "cpu"
    """Torch device."""
    threads: int = 1
    """CPU threads."""
    branch_accuracies: Literal["last", "every"] = "last"
    """After which epochs the auxiliary classifiers are tested, over all rotations; the numbers are in OUT/epochs."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"--threads is {self.threads}; accepted: 1 or more")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out is {self.out}; accepted: a folder")
        for name, folder in (("--out", self.out), ("--runs", self.runs)):
            if folder is not None:
                check_trials(name, folder)


def find_config(trial: str, runs: ResultStore) -> TrialConfig:
    """Return the configuration of a trial id (from its record or the plan) or of a JSON file; raises ValueError if there is none."""
    if Path(trial).is_file():
        try:
            return TrialConfig.from_json(Path(trial).read_text())
        except (ValueError, KeyError, OSError) as error:
            reason = f"not JSON: {error}" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else error
            raise ValueError(f"trial is {trial}; accepted: a JSON file of a trial's configuration ({reason})") from error
    record = runs.peek_trial(trial)
    if record is not None:
        return record.config
    entry = next((entry for entry in read_plan(runs) if entry.trial_id == trial), None)
    if entry is None:
        raise ValueError(f"trial is {trial!r}; accepted: a trial id of {runs.root}, or a JSON file")
    return TrialConfig.from_json(entry.config_json)


def with_requirements(config: TrialConfig) -> Iterator[TrialConfig]:
    """Yield the trials whose weights `config` reads, directly or not, each before those that read it; then `config`."""
    for required in config.requirements():
        yield from with_requirements(required)
    yield config


def take_imported(config: TrialConfig, runs: ResultStore, store: ResultStore) -> None:
    """Take the weights of a foreign file that a trial reads over from the folder that it is looked up in."""
    from sweeps.sharing import link_or_copy

    if config.imported_sha256 is not None:
        source, target = runs.imported_path(config.imported_sha256), store.imported_path(config.imported_sha256)
        if source.exists() and not target.exists():
            link_or_copy(source, target)


def main() -> int:
    """Run the command."""
    options = parse(TrialOptions)
    from hsakd.devices import usable_device
    from hsakd.training.trial import RunContext, TrialOutOfMemory, run_trial

    store, runs = ResultStore(options.out.resolve()), ResultStore((options.runs or options.out).resolve())
    context = RunContext(
        store=store,
        data_dir=options.data_dir,
        download=options.download,
        device=options.device,
        num_threads=options.threads,
        branch_accuracies=options.branch_accuracies,
    )
    with refusing(TrialOutOfMemory):
        config = find_config(options.trial, runs)
        usable_device(options.device)
    with driver_lock(store.root), refusing(TrialOutOfMemory):
        for trial in dict.fromkeys(with_requirements(config)):
            take_imported(trial, runs, store)
            is_finished = store.finished(trial.trial_id) is not None
            print(
                f"{trial.trial_id}: {trial.role} {trial.network}, {'already in' if is_finished else 'trained into'} {options.out}",
                flush=True,
            )
            record = run_trial(trial, context, report=print_epoch)
            print_result(record)
            if record.status != "complete":
                return 1
    return 0


@contextmanager
def refusing(*more: type[Exception]) -> Iterator[None]:
    """Turn what bad input raises, and `more`, into one sentence and status 2."""
    try:
        yield
    except (ValueError, KeyError) as error:
        refuse(str(error.args[0]))
    except BrokenPipeError:  # nobody reads what it prints
        raise
    except OSError as error:
        refuse(str(error))
    except more as error:
        refuse(str(error))


def print_epoch(row: EpochMetrics) -> None:
    """Print an epoch's line."""
    print(f"epoch {row.epoch}: loss {row.loss:.4f}, {row.result}", flush=True)


def print_result(record: TrialRecord) -> None:
    """Print how a trial ended."""
    best = record.top1_best_test if record.map50_best_test is None else record.map50_best_test
    best_text = "" if best is None else f" (last), {best:.2f} % (best test epoch)"
    print(f"{record.trial_id}: {record.status}, {record.result or record.error or 'no result'}{best_text}", flush=True)


if __name__ == "__main__":
    run_command(main)
