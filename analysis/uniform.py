"""Which rows may stand in one column: those trained on the same data and, within a teacher's regime, on the same teacher."""

import json
from typing import Any

import pandas as pd

from analysis.aggregate import for_pair
from analysis.artefact import Options
from analysis.configurations import parsed, settings_of, with_neutral_fields
from analysis.table import Cell

Pair = tuple[str, str, str]
TEACHERS = ("Teacher", "Teacher*")


def uniform(
    entries: pd.DataFrame, pairs: list[Pair], options: Options, notes: list[str], *, varies_ratio: bool = False
) -> tuple[pd.DataFrame, dict[tuple[Pair, str], Cell]]:
    """Return the entries that may share their pair's column, and a "refused" cell for each row that may not.

    A row's networks must be its pair's. The rows of a column must have been trained on the same data (`varies_ratio`: but for the part of
    the training set), and those of one teacher regime on the same teacher, seeds aside; what most trials of the column have is right.
    With `force` nothing is refused, but the notes say it.
    """
    refused: dict[tuple[Pair, str], Cell] = {}
    kept = entries

    def refuse(pair: Pair, method: str, odd: pd.DataFrame, what: str) -> None:
        nonlocal kept
        where = f"{method}, {pair[1]} → {pair[2]}"
        if options.force:
            notes.append(f"{where}: forced, {what}.")
        elif (pair, method) not in refused:
            notes.append(f"{where}: refused, {what} (--force shows it).")
            refused[pair, method] = Cell(text="refused", trial_ids=tuple(odd["trial_id"]))
            kept = kept.drop(index=kept.index.intersection(odd.index))

    for pair in pairs:
        every = for_pair(entries, pair)
        expected = every["method"].isin(TEACHERS).map({True: pair[1], False: pair[2]})
        is_foreign = every["network"].fillna("").ne("") & (every["network"] != expected)
        named = every["teacher_network"].fillna("")
        has_other_teacher = named.ne("") & (named != pair[1]) & (expected == pair[2])
        for name, odd in every[is_foreign | has_other_teacher].groupby("method"):
            found = [str(network) for network in odd.loc[is_foreign[odd.index], "network"]]
            found += [f"teacher {network}" for network in odd.loc[has_other_teacher[odd.index], "teacher_network"]]
            refuse(pair, str(name), every[every["method"] == name], f"trained with {found[0]}")
        mine = every[(every["status"] == "complete") & (every["config_json"] != "")]
        facts = pd.DataFrame(
            [grounds(text, varies_ratio=varies_ratio) for text in mine["config_json"]],
            index=mine.index,
            columns=["data", "regime", "teacher"],
        )
        groups = [("the training data", "data", facts)]
        groups += [(f"the {regime!s} teacher", "teacher", group) for regime, group in facts.groupby("regime") if regime]
        for what, column, group in groups:
            counts = group[column].value_counts()
            usual = max(sorted(counts.index), key=lambda value: counts[value], default="")
            for name, odd in mine.loc[group.index[group[column] != usual]].groupby("method"):
                if len(odd) == (mine["method"] == name).sum():  # a row that differs within itself is refused by its own cell
                    refuse(pair, str(name), odd, f"{what} differs from the other rows of the column")
    return kept, refused


def grounds(config_json: str, *, varies_ratio: bool = False) -> tuple[str, str, str]:
    """Return what the rows of a column must share: the data, and under a teacher's regime its backbone's configuration, seeds aside.

    A probe or a detector stands on its student: the student's data and teacher count, too.
    """
    config = parsed(config_json)
    texts = []
    for part in filter(None, (config, config.get("backbone"))):
        data = {name: value for name, value in dict(part.get("data") or {}).items() if name != "few_shot_ratio" or not varies_ratio}
        texts.append(with_neutral_fields(json.dumps({"network": "", "data": data}, sort_keys=True)))
    regime, root = _teacher_of(config)
    (root_setting,) = settings_of([root])
    return "".join(texts), regime, root_setting


def teacher_of(config_json: str) -> tuple[str, str]:
    """Return under which regime a row's teacher was trained, "frozen" or "joint" ("": it has none), and its backbone's configuration.

    A frozen teacher and its backbone are one teacher; that of a probe or a detector is its student's.
    """
    return _teacher_of(parsed(config_json))


def _teacher_of(config: dict[str, Any]) -> tuple[str, str]:
    teacher: dict[str, Any] | None = config.get("teacher") or (config.get("backbone") or {}).get("teacher")
    if teacher is None:
        return "", ""
    root = teacher.get("backbone") or teacher
    is_plain = root is not teacher or "ce_q" not in dict((teacher.get("objective") or {}).get("terms", []))
    return "frozen" if is_plain else "joint", with_neutral_fields(json.dumps(root, sort_keys=True))
