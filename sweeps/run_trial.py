"""`python sweeps/run_trial.py TRIAL_ID|FILE --out OUT`: runs one trial without Ray, for debugging and for reproducing a table entry."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from hsakd.config import TrialConfig
from hsakd.records import ResultStore
from sweeps.cli import parse, refuse


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialOptions:
    """Run one trial, in this process, and print its epochs."""

    trial: tyro.conf.Positional[str]
    """A trial id of --out, or a JSON file of a trial's configuration."""
    out: Path
    """Result folder."""
    data_dir: Path | None = None
    """Where data sets lie."""
    device: str = "cpu"
    """Torch device."""
    threads: int = 1
    """CPU threads."""


def find_config(trial: str, store: ResultStore) -> TrialConfig:
    """Return the configuration of a trial id (from its record or the plan) or of a JSON file; raises ValueError if there is none."""
    if Path(trial).is_file():
        return TrialConfig.from_json(Path(trial).read_text())
    record = store.read_trial(trial)
    if record is not None:
        return record.config
    entry = next((entry for entry in store.read_plan() if entry.trial_id == trial), None)
    if entry is None:
        raise ValueError(f"trial is {trial!r}; accepted: a trial id of {store.root}, or a JSON file")
    return TrialConfig.from_json(entry.config_json)


def main() -> int:
    """Run the command."""
    options = parse(TrialOptions)
    from hsakd.training.trial import RunContext, run_trial

    store = ResultStore(options.out.resolve())
    context = RunContext(store=store, data_dir=options.data_dir, device=options.device, num_threads=options.threads)
    try:
        config = find_config(options.trial, store)
        record = run_trial(config, context, report=lambda row: print(f"epoch {row.epoch}: loss {row.loss:.4f}, {row.result}"))
    except (ValueError, KeyError) as error:
        refuse(str(error.args[0]))
    best = record.top1_best_test if record.map50_best_test is None else record.map50_best_test
    print(f"{record.trial_id}: {record.status}, {record.result or 'no result'} (last), {best} % (best test epoch)")
    return 0 if record.status == "complete" else 1


if __name__ == "__main__":
    raise SystemExit(main())
