"""The search trials of each study, read back from their configurations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import optuna
import pandas as pd

from analysis.aggregate import Results, records_of
from hsakd.network_table import network_table

MIN_TRIALS_FOR_IMPORTANCE = 4
MAX_TRIALS_FOR_IMPORTANCE = 100  # fANOVA takes minutes for thousands; more are thinned evenly
NUM_TREES = 16
_COLUMNS = ["study_number", "trial_id", "top1_val", "taps", "temperature", "learning_rate", "weights", "branch_weights"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTrial:
    """One setting and its validation accuracy (per cent; the best epoch's)."""

    number: int
    trial_id: str
    params: dict[str, float | str]
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """The complete trials of one study; `states` counts all.

    `label` is its name, with the data set where several are shown. `importances` are each varied parameter's share of the variance.
    """

    name: str
    dataset: str
    label: str
    num_branches: int
    complete: tuple[SearchTrial, ...]
    states: str
    importances: dict[str, float]

    @property
    def best(self) -> SearchTrial | None:
        """The trial with the best validation accuracy, the earlier one of equals."""
        return max(self.complete, key=lambda trial: (trial.value, -trial.number), default=None)

    @property
    def paper(self) -> SearchTrial | None:
        """Trial 0: the paper's setting."""
        return next((trial for trial in self.complete if trial.number == 0), None)

    @property
    def judged(self) -> tuple[SearchTrial, ...]:
        """The trials that importances rest on: all, or an even part of many."""
        return judged(self.complete)

    @property
    def varied(self) -> list[str]:
        """The parameters with more than one value."""
        return varied(self.complete)

    def describe(self, trial: SearchTrial) -> str:
        """Return the trial's varied parameters as text, in the space file's names."""
        texts = {name: trial.params.get(name, "-") for name in self.varied or sorted(trial.params)}
        texts = {displayed(name): self.placement(str(value)) if name == "taps" else value for name, value in texts.items()}
        return ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in texts.items())

    def placement(self, taps: str) -> str:
        """Return taps such as "all" or "c1+c2" as the space file's placement: "1+2+3", "1+2"; "all" where L is not known."""
        every = "+".join(str(tap) for tap in range(1, self.num_branches + 1))
        return (every or taps) if taps == "all" else taps.replace("c", "")


def displayed(name: str) -> str:
    """Return a parameter's name in the space file."""
    return "placement" if name == "taps" else name.removeprefix("weight_")


def judged(complete: Sequence[SearchTrial]) -> tuple[SearchTrial, ...]:
    """Return all of the trials, or an even part of many."""
    return tuple(complete[:: -(-len(complete) // MAX_TRIALS_FOR_IMPORTANCE) or 1])


def varied(complete: Sequence[SearchTrial]) -> list[str]:
    """Return the parameters with more than one value, by name."""
    names = sorted({name for trial in complete for name in trial.params})
    return [name for name in names if len({trial.params.get(name) for trial in complete}) > 1]


def importances(complete: Sequence[SearchTrial]) -> dict[str, float]:
    """Return each varied parameter's share of the variance (fANOVA, seed 0); empty with too few trials or equal values.

    A parameter that some trials don't have (a branch's weight under a placement without it) is left out: fANOVA can't hold it.
    """
    trials = judged(complete)
    names = [name for name in varied(complete) if all(name in trial.params for trial in trials)]
    if len(complete) < MIN_TRIALS_FOR_IMPORTANCE or not names or len({trial.value for trial in trials}) < 2:
        return {}
    spaces: dict[str, optuna.distributions.BaseDistribution] = {}
    for name in names:
        values = [trial.params[name] for trial in trials]
        numbers = [value for value in values if isinstance(value, float)]
        if len(numbers) == len(values):
            spaces[name] = optuna.distributions.FloatDistribution(min(numbers), max(numbers), log=min(numbers) > 0)
        else:
            spaces[name] = optuna.distributions.CategoricalDistribution(sorted({str(value) for value in values}))
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        params = {name: trial.params[name] for name in names}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=trial.value))
    found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(n_trees=NUM_TREES, seed=0))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def studies_of(results: Results) -> list[Study]:
    """Return the studies of the search rows, by name and data set; found once for all artefacts of a build."""
    if "studies" not in results.memo:
        results.memo["studies"] = _studies(results)
    return cast(list[Study], results.memo["studies"])


def _studies(results: Results) -> list[Study]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    entries = results.rows(purpose="search")
    several = entries["dataset"].fillna("").replace("", None).nunique() > 1
    known = entries.assign(dataset=entries["dataset"].fillna(""))
    datasets = known[known["dataset"] != ""].groupby("study")["dataset"].agg(lambda names: sorted(set(names)))
    studies = []
    for name, of_name in known.groupby("study"):
        for dataset in datasets.get(name, [""]):
            group = of_name[of_name["dataset"].isin([dataset, ""])]
            counts = group["status"].value_counts().sort_index()
            done = group[(group["status"] == "complete") & group["top1_val"].notna() & group["study_number"].notna()]
            done = done.sort_values(["study_number", "trial_id"]).drop_duplicates("trial_id")  # two numbers may have drawn one setting
            trials = tuple(
                SearchTrial(number=int(row["study_number"]), trial_id=row["trial_id"], params=_params(row), value=float(row["top1_val"]))
                for row in records_of(done[_COLUMNS])
            )
            student = str(group["student"].iloc[0])
            facts = network_table().get(student)
            studies.append(
                Study(
                    name=str(name),
                    dataset=str(dataset),
                    label=f"{name} [{dataset}]" if several else str(name),
                    num_branches=0 if facts is None else facts.num_branches,
                    complete=trials,
                    states=", ".join(f"{count} {state}" for state, count in counts.items()),
                    importances=importances(trials),
                )
            )
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
    taps = list(range(1, len(branches) + 1)) if row["taps"] == "all" else str(row["taps"]).replace("c", "").split("+")
    return params | {f"branch_weight_{tap}": float(weight) for tap, weight in zip(taps, branches, strict=False)}
