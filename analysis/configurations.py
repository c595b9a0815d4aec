"""What tables ask of a trial's configuration, read from its JSON without building it: a folder may hold a hundred thousand."""

import json
import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, cast

from hsakd.config import TrialConfig

_BROKEN = (ValueError, TypeError, AttributeError, OverflowError)  # what reading a configuration of other types or sizes raises


def check(config_json: str) -> None:
    """Raise ValueError where tables could not read the configuration, or those of the trials that it stands on."""
    try:
        trials = [json.loads(config_json)]
        for trial in trials:
            if not _facts(trial)["config_dataset"]:
                raise ValueError("no data set")
            trials += [needed for name in ("teacher", "backbone") if (needed := trial.get(name)) is not None]
    except _BROKEN as error:
        raise ValueError("its configuration can't be read") from error


def facts_of(config_json: str) -> dict[str, Any]:
    """Return what tables ask of a configuration, as columns; of one that can't be read, those of an empty one."""
    try:
        return _facts(_without_teacher(config_json))
    except _BROKEN:
        return _facts({})


def parsed(config_json: str) -> dict[str, Any]:
    """Return the whole configuration; empty where it can't be parsed."""
    try:
        config = json.loads(config_json)
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def source_of(config_json: str) -> str:
    """Return the data set that a row's student was trained on: of a probe or a detector, its frozen backbone's."""
    config = parsed(config_json)
    return str(((config.get("backbone") or config).get("data") or {}).get("dataset", ""))


def settings_of(texts: Iterable[str]) -> list[str]:
    """Return configurations without their seeds, in order: trials of one cell must agree in it.

    Where they seem not to, the fields that an older version's text lacks are filled in; to do so always would take a hundred times longer.
    """
    settings = [_without_seeds(text) for text in texts]
    if len(set(settings)) > 1:
        settings = [with_neutral_fields(setting) for setting in settings]
    return settings


def _without_seeds(config_json: str) -> str:
    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: strip(item) for name, item in value.items() if name != "seed"}
        return value

    return json.dumps(strip(parsed(config_json)), sort_keys=True) if config_json else ""


@lru_cache(maxsize=4096)
def with_neutral_fields(config_json: str) -> str:
    """Return a configuration with the neutral fields that an older version's text lacks; what this version can't read stays as it is."""
    try:
        return TrialConfig.from_json(config_json).to_json()
    except ValueError:
        return config_json


def _without_teacher(config_json: str) -> dict[str, Any]:
    """Parse a configuration without its teacher (two thirds of it, and the last of its sorted keys); empty where it can't be parsed."""
    head, found, _ = config_json.partition(',"teacher":')
    for text in (head + "}" if found else "", config_json):
        try:
            return cast(dict[str, Any], json.loads(text))
        except ValueError:  # the cut was inside a backbone: the whole text
            continue
    return {}


def _facts(config: dict[str, Any]) -> dict[str, Any]:
    """Return what tables ask of a configuration; raises one of `_BROKEN` where it has other types."""
    data, optim, objective = config.get("data", {}), config.get("optim", {}), config.get("objective", {})
    taps, weights, branch_weights = config.get("taps"), dict(objective.get("terms", [])), tuple(objective.get("branch_weights") or ())
    numbers = {
        "validation_fraction": data.get("validation_fraction", 0.0),
        "few_shot_ratio": data.get("few_shot_ratio", 1.0),
        "train_subset": data.get("train_subset"),
        "image_size": data.get("image_size"),
        "num_rotations": config.get("num_rotations", 4),
        "epochs": optim.get("epochs"),
        "learning_rate": optim.get("learning_rate"),
        "temperature": objective.get("temperature"),
    }
    known = [number for name, number in numbers.items() if number is not None or name in ("few_shot_ratio", "num_rotations")]
    if not all(math.isfinite(number) for number in (*known, *weights.values(), *branch_weights)):
        raise ValueError("a number is not finite")
    if not all(isinstance(name, str) for name in (data.get("dataset", ""), *weights)) or not all(
        isinstance(tap, int) for tap in taps or ()
    ):
        raise TypeError("a name is not text, or a tap no stage's number")
    return {
        "config_dataset": data.get("dataset", ""),
        **numbers,
        "weights": weights,
        "branch_weights": branch_weights,
        "taps": "all" if taps is None else "+".join(f"c{tap}" for tap in taps) or "none",
    }
