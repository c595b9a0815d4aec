"""Published numbers, under our names of networks and rows, each with its source in `reference.csv`; and which trials they stand beside."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import pandas as pd

from analysis.configurations import settings_of
from analysis.inference import Summary
from analysis.table import Cell
from hsakd.config import DataConfig, OptimConfig, TrialConfig
from hsakd.dataset_table import stored_size

T = TypeVar("T")
PUBLISHED_N = 3  # runs behind a published mean ± std; their ddof is not published
SLOW_LEARNERS, SLOW_LEARNING_RATE = ("mobilenetv2_half", "shufflenet_v1", "shufflenet_v2"), 0.01  # in the authors' commands
DATA_FIELDS = ("image_size", "train_subset", "few_shot_ratio", "validation_fraction")
OPTIM_FIELDS = ("epochs", "batch_size", "learning_rate", "milestones", "weight_decay", "warmup_epochs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How the paper trains on a data set, by the authors' scripts; `branches` is for the classifiers of a frozen teacher."""

    data: DataConfig
    optim: OptimConfig
    branches: OptimConfig


def _protocols() -> Iterator[Protocol]:
    steps = OptimConfig(epochs=100, milestones=(30, 60, 90))
    yield Protocol(data=DataConfig(dataset="cifar100", image_size=32), optim=OptimConfig(), branches=steps)
    imagenet = replace(steps, batch_size=256, learning_rate=0.1, weight_decay=1e-4)
    yield Protocol(data=DataConfig(dataset="imagenet", image_size=224, augmentation="imagenet"), optim=imagenet, branches=imagenet)
    probe = replace(steps, learning_rate=0.1, weight_decay=0.0)
    for dataset in ("stl10", "tinyimagenet"):
        yield Protocol(data=DataConfig(dataset=dataset, image_size=32, augmentation="resized_crop"), optim=probe, branches=probe)


PROTOCOLS = {protocol.data.dataset: protocol for protocol in _protocols()}  # the paper doesn't say how it trained its detectors


def reference() -> pd.DataFrame:
    """Return all published numbers."""
    return pd.read_csv(Path(__file__).with_name("reference.csv"), keep_default_na=True)


def published(tables: Collection[str], pair: tuple[str, str, str]) -> dict[str, Summary]:
    """Return a pair's numbers in some tables of `reference.csv`, by method; whether ours can stand beside them is not asked here."""
    rows = reference()
    rows = rows[rows["table"].isin(tables) & (rows["teacher"] == pair[1]) & (rows["student"] == pair[2])]
    spreads = [None if pd.isna(std) else float(std) for std in rows["std"]]
    return {
        str(method): Summary(mean=float(mean), std=std, n=1 if std is None else PUBLISHED_N)
        for method, mean, std in zip(rows["method"], rows["mean"], spreads, strict=True)
    }


def published_cell(summary: Summary | None) -> Cell:
    """Return the cell of a published number, of the best test epoch; it has no trials."""
    if summary is None:
        return Cell(text="-")
    text = f"{summary.mean:.2f}" + ("" if summary.std is None else f" ± {summary.std:.2f}")
    return Cell(text=text, mean=summary.mean, std=summary.std, selection="best-test")


@lru_cache(maxsize=4096)
def departures(config_json: str, *, varies_ratio: bool = False) -> tuple[str, ...]:
    """Return in what a trial's schedule and data differ from the paper's, as "epochs 12, not 240"; () where nothing does.

    What it stands on counts, too: of a student its teacher, unless its weights were imported, of a probe or a detector its student.
    `varies_ratio` says that the row names its part of the training set. A data set that the paper does not have is not judged.
    """
    try:
        trials = list(_trained(TrialConfig.from_json(config_json)))
    except ValueError:
        return ("a configuration that this version can't read",)
    found = dict[str, None]()
    for whose, trial in trials:
        if (protocol := PROTOCOLS.get(trial.data.dataset)) is None:
            continue
        data = replace(trial.data, image_size=trial.data.image_size or stored_size(trial.data.dataset))
        if varies_ratio and not whose:
            data = replace(data, few_shot_ratio=1.0)
        expected = protocol.optim if trial.backbone is None or trial.role != "teacher" else protocol.branches
        if trial.network in SLOW_LEARNERS and trial.data.dataset == "cifar100":
            expected = replace(expected, learning_rate=SLOW_LEARNING_RATE)
        compared = [(data, protocol.data, DATA_FIELDS)] + [(trial.optim, expected, OPTIM_FIELDS)] * (trial.imported_sha256 is None)
        for ours, theirs, names in compared:
            for name in names:
                if (own := getattr(ours, name)) != (other := getattr(theirs, name)):
                    found[f"{whose}{name} {own}, not {other}"] = None
    return tuple(found)


def _trained(config: TrialConfig) -> Iterator[tuple[str, TrialConfig]]:
    """Yield a row's student and what it stands on, with whose that is."""
    student = config
    if config.role in ("probe", "detector") and config.backbone is not None:
        yield f"{config.role}'s ", config
        student = config.backbone
    yield "", student
    needed = student.teacher or student.backbone
    while needed is not None:
        yield "teacher's ", needed
        needed = needed.backbone


def comparable(theirs: Mapping[str, T], rows: Mapping[str, pd.DataFrame], label: str, notes: list[str]) -> dict[str, T]:
    """Return which of a pair's published rows, by method, can stand beside its measured `rows`, and say in `notes` which can't and why.

    Those of the paper that we did not measure stand there unless all of ours differ.
    """
    texts = {method: dict.fromkeys(settings_of(own["config_json"])) for method, own in rows.items() if theirs}
    texts = {method: own for method, own in texts.items() if any(own)}
    odd = {method: "; ".join(dict.fromkeys(line for text in own if text for line in departures(text))) for method, own in texts.items()}
    odd = {method: why for method, why in odd.items() if why}
    for reason in dict.fromkeys(why for method, why in odd.items() if method in theirs):
        names = ", ".join(method for method, why in odd.items() if method in theirs and why == reason)
        notes.append(f"{label}: no published numbers beside {names}, not of the paper's schedule or data ({reason}).")
    if odd and len(odd) == len(texts):
        return {}
    return {method: found for method, found in theirs.items() if method not in odd}
