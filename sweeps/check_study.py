"""`python sweeps/check_study.py OUT`: whether the Optuna studies say what the Parquet files say; prints each difference."""

from dataclasses import dataclass
from pathlib import Path

import optuna
import tyro
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState

from hsakd.command_line import parse, refuse, run_command
from hsakd.result_folder import check_trials, read_plan
from hsakd.store import ResultStore
from sweeps.search import AGAIN, STATES, TRIAL_ID, open_storage
from sweeps.status import read_records


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckOptions:
    """Compare the studies of a result folder with its trials."""

    out: tyro.conf.Positional[Path]
    """Result folder."""


def differences(store: ResultStore) -> list[str]:
    """Return a sentence for each study trial whose state, value or intermediate values differ from its record, or that a study lacks."""
    records, storage, found = read_records(store), open_storage(store.journal_path), []
    planned: dict[str, set[str]] = {}
    for entry in read_plan(store):
        if entry.purpose == "search":
            planned.setdefault(entry.study, set()).update({entry.trial_id} & records.keys())
    summaries = optuna.get_all_study_summaries(storage)
    found += [
        f"{name} is in the plan, but not a study of the journal" for name in sorted(planned.keys() - {s.study_name for s in summaries})
    ]
    for summary in summaries:
        study = optuna.load_study(study_name=summary.study_name, storage=storage)
        seen: dict[str, int] = {}
        trials = study.get_trials(deepcopy=False)
        lacking = planned.get(summary.study_name, set()) - {trial.user_attrs.get(TRIAL_ID, "") for trial in trials}
        found += [f"{summary.study_name} lacks trial {trial_id}, which is {records[trial_id].status}" for trial_id in sorted(lacking)]
        tried_again = {trial.user_attrs.get(AGAIN) for trial in trials}
        for trial in trials:
            name, trial_id = f"{summary.study_name} trial {trial.number}", trial.user_attrs.get(TRIAL_ID, "")
            record = records.get(trial_id)
            if trial.state in (TrialState.RUNNING, TrialState.WAITING):
                found.append(f"{name} is {trial.state.name}")
                continue
            if record is None:
                found.append(f"{name} is {trial.state.name}, but trial {trial_id or '?'} has no record")
                continue
            if trial.state == TrialState.FAIL and trial.number in tried_again:
                continue
            expected = STATES.get(record.status, TrialState.FAIL)
            if trial.state != expected:
                found.append(f"{name} is {trial.state.name}, but trial {trial_id} is {record.status}")
            elif trial.state == TrialState.COMPLETE and trial.value != record.top1_val:
                found.append(f"{name} has the value {trial.value}, but trial {trial_id} has {record.top1_val}")
            if trial_id in seen and not all(map(is_fixed, trial.distributions.values())):
                found.append(f"{name} repeats trial {seen[trial_id]}: both are {trial_id}")
            seen[trial_id] = trial.number
            values = {row.epoch: row.top1_val for row in store.read_epochs(trial_id)}
            wrong = [epoch for epoch, value in trial.intermediate_values.items() if values.get(epoch) != value]
            if wrong:
                found.append(f"{name} has other validation accuracies than trial {trial_id} at epochs {wrong}")
    return found


def is_fixed(distribution: BaseDistribution) -> bool:
    """Whether a parameter has one value, or few, so that a setting may well come up again."""
    return not isinstance(distribution, FloatDistribution) or distribution.single()


def main() -> int:
    """Run the command; status 0 if studies and records agree."""
    options = parse(CheckOptions)
    store = ResultStore(options.out)
    if not store.journal_path.exists():
        refuse(f"OUT is {options.out}; accepted: a folder with a studies.journal")
    try:
        check_trials("OUT", options.out)
        found = differences(store)
    except ValueError as error:
        refuse(str(error))
    print("\n".join(found) if found else "studies and records agree")
    return 1 if found else 0


if __name__ == "__main__":
    run_command(main)
