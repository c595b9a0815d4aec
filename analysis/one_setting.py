"""One setting for all pairs: which of the settings that any study tried would cost the pairs least, and how much each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor

from analysis.search import SearchTrial, Study, judged

MIN_TRIALS_FOR_FOREST = 8
MAX_TRIALS_FOR_FOREST = 300  # more are thinned evenly
NUM_TREES = 50
Key = tuple[tuple[str, float | str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """A setting's validation accuracy in one study (per cent): measured there, or estimated from the trials it has."""

    value: float
    trial: SearchTrial | None


@dataclass(frozen=True, kw_only=True, slots=True)
class OneSetting:
    """The setting with the best mean over studies, of `num_compared`; `guesses` by study label, `text` for a note."""

    text: str
    guesses: dict[str, Guess]
    mean_regret: float
    num_compared: int


def one_setting(studies: Sequence[Study]) -> OneSetting | None:
    """Return the setting with the lowest mean regret among those that studies tried (of many, `judged`, the best and the paper's).

    None with fewer than two studies that have a complete trial.

    Where a study did not try it, its accuracy is estimated by a random forest (50 trees, seed 0) of that study's complete trials; a study
    with fewer than eight complete trials can't estimate, so then only settings that it tried itself stand for choice.
    """
    with_best = [study for study in studies if study.best is not None]
    if len(with_best) < 2:
        return None
    varies_rate = {study.label: "learning_rate" in study.varied for study in with_best}
    tried = {s.label: {_key(trial, with_rate=varies_rate[s.label]): trial for trial in s.complete} for s in with_best}
    candidates = {
        _key(trial, with_rate=varies_rate[study.label]): (study, trial)
        for study in with_best
        for trial in (*judged(study.complete), study.best, study.paper)
        if trial is not None
    }
    few = [study for study in with_best if len(study.complete) < MIN_TRIALS_FOR_FOREST]
    keys = sorted((key for key in candidates if all(key in tried[study.label] for study in few)), key=str)
    smallest = min(study.num_branches for study in with_best)
    keys = [key for key in keys if _fits(candidates[key][1], smallest)]
    if not keys:
        return None
    columns = {study.label: _values(study, keys, candidates, tried[study.label]) for study in with_best}
    regrets = np.array([_best(study) - columns[study.label] for study in with_best])
    chosen = int(regrets.mean(axis=0).argmin())
    key, (study, trial) = keys[chosen], candidates[keys[chosen]]
    guesses = {s.label: Guess(value=float(columns[s.label][chosen]), trial=tried[s.label].get(key)) for s in with_best}
    regret = float(regrets[:, chosen].mean())
    is_general = len({study.num_branches for study in with_best}) > 1  # then "all" is another subset in each
    text = (replace(study, num_branches=0) if is_general else study).describe(trial)
    return OneSetting(text=text, guesses=guesses, mean_regret=regret, num_compared=len(keys))


def _best(study: Study) -> float:
    assert study.best is not None
    return study.best.value


def _fits(trial: SearchTrial, num_branches: int) -> bool:
    """Return whether a placement exists for students with `num_branches` auxiliary classifiers."""
    taps = str(trial.params["taps"])
    return taps in ("all", "none") or all(int(tap[1:]) <= num_branches for tap in taps.split("+"))


def _key(trial: SearchTrial, *, with_rate: bool) -> Key:
    """Return a setting as comparable across studies: a learning rate that a study never varies is its student's own business."""
    return tuple(sorted((name, value) for name, value in trial.params.items() if name != "learning_rate" or with_rate))


def _features(trial: SearchTrial, names: Sequence[str], num_branches: int) -> list[float]:
    taps = str(trial.params["taps"])
    bits = [float(taps == "all" or f"c{tap}" in taps.split("+")) for tap in range(1, num_branches + 1)]
    numbers = [trial.params.get(name, 1.0) for name in names]
    return bits + [math.log(value) if isinstance(value, float) and value > 0 else 0.0 for value in numbers]


def _values(
    study: Study,
    keys: Sequence[Key],
    candidates: dict[Key, tuple[Study, SearchTrial]],
    tried: dict[Key, SearchTrial],
) -> NDArray[np.float64]:
    """Return the accuracy of every candidate in one study, measured where it was tried."""
    values = np.full(len(keys), np.nan)
    unknown = [i for i, key in enumerate(keys) if key not in tried]
    if unknown:
        names = sorted({name for trial in study.complete for name in trial.params} - {"taps"})
        known = study.complete[:: -(-len(study.complete) // MAX_TRIALS_FOR_FOREST)]
        rows = [_features(trial, names, study.num_branches) for trial in known]
        forest = RandomForestRegressor(NUM_TREES, random_state=0).fit(rows, [trial.value for trial in known])
        values[unknown] = forest.predict([_features(candidates[keys[i]][1], names, study.num_branches) for i in unknown])
    for i, key in enumerate(keys):
        if key in tried:
            values[i] = tried[key].value
    return values
