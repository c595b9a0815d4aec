"""The search trials of each study, read back from their configurations."""

from dataclasses import dataclass

import optuna
import pandas as pd

from analysis.aggregate import Results, records_of

MIN_TRIALS_FOR_IMPORTANCE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTrial:
    """One setting and its validation accuracy (per cent; the best epoch's)."""

    number: int
    trial_id: str
    params: dict[str, float | str]
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """The complete trials of one study; `states` counts all."""

    name: str
    complete: tuple[SearchTrial, ...]
    states: str

    @property
    def best(self) -> SearchTrial | None:
        """The trial with the best validation accuracy, the earlier one of equals."""
        return max(self.complete, key=lambda trial: (trial.value, -trial.number), default=None)

    @property
    def paper(self) -> SearchTrial | None:
        """Trial 0: the paper's setting."""
        return next((trial for trial in self.complete if trial.number == 0), None)

    @property
    def varied(self) -> list[str]:
        """The parameters with more than one value."""
        names = sorted({name for trial in self.complete for name in trial.params})
        return [name for name in names if len({trial.params.get(name) for trial in self.complete}) > 1]

    def describe(self, trial: SearchTrial) -> str:
        """Return the trial's varied parameters as text."""
        texts = {name: trial.params.get(name, "-") for name in self.varied or sorted(trial.params)}
        return ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in texts.items())

    def importances(self) -> dict[str, float]:
        """Return each varied parameter's share of the variance (fANOVA, seed 0); empty with fewer than 4 trials or equal values."""
        names = [name for name in self.varied if all(name in trial.params for trial in self.complete)]
        if len(self.complete) < MIN_TRIALS_FOR_IMPORTANCE or not names or len({trial.value for trial in self.complete}) < 2:
            return {}
        spaces: dict[str, optuna.distributions.BaseDistribution] = {}
        for name in names:
            values = [trial.params[name] for trial in self.complete]
            numbers = [value for value in values if isinstance(value, float)]
            if len(numbers) == len(values):
                spaces[name] = optuna.distributions.FloatDistribution(min(numbers), max(numbers), log=min(numbers) > 0)
            else:
                spaces[name] = optuna.distributions.CategoricalDistribution(sorted({str(value) for value in values}))
        study = optuna.create_study(direction="maximize")
        for trial in self.complete:
            params = {name: trial.params[name] for name in names}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=trial.value))
        found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def studies_of(results: Results) -> list[Study]:
    """Return the studies of the search rows, by name."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    entries = results.rows(purpose="search")
    studies = []
    for name, group in entries.groupby("study"):
        counts = group["status"].value_counts().sort_index()
        done = group[(group["status"] == "complete") & group["top1_val"].notna() & group["study_number"].notna()].sort_values(
            "study_number"
        )
        trials = tuple(
            SearchTrial(number=int(row["study_number"]), trial_id=row["trial_id"], params=_params(row), value=float(row["top1_val"]))
            for row in records_of(done.drop_duplicates("study_number"))
        )
        studies.append(Study(name=str(name), complete=trials, states=", ".join(f"{count} {state}" for state, count in counts.items())))
    return studies


def _params(row: dict[str, object]) -> dict[str, float | str]:
    params: dict[str, float | str] = {"taps": str(row["taps"])}
    for name in ("temperature", "learning_rate"):
        if pd.notna(row[name]):  # type: ignore[call-overload]
            params[name] = float(str(row[name]))
    weights = row["weights"]
    assert isinstance(weights, dict)
    params |= {f"weight_{name}": float(weight) for name, weight in weights.items() if name != "task"}
    branches = row["branch_weights"]
    assert isinstance(branches, tuple)
    return params | {f"branch_weight_{number}": float(weight) for number, weight in enumerate(branches, 1)}
