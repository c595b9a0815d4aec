"""Which lines of a folder's plan stay when another command runs in it, and which give way to its own."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from hsakd.config import DataConfig, OptimConfig, TrialConfig
from hsakd.records import PlanEntry
from sweeps import detection, transfer
from sweeps.presets import TUNED
from sweeps.schedule import WorkLines

ROWS = ("report", "search", "confirm")  # purposes of students, which a table shows or a search compares


def lines_to_keep(plan: Sequence[PlanEntry], lines: WorkLines) -> list[PlanEntry]:
    """Return the lines of an earlier plan that stay beside the new `lines`: those in places that `lines` do not plan anew.

    A place is a pair's row for `run_pairs.py` (the tuned row with its search), a pair's ablation study, or a row of one data set for probes
    and detectors. Rows of `run_pairs.py` stay only beside rows of the same data and schedule: a table shows one. What has no schedule of
    its own (teachers, which may be files, and trainings of a search that are not known yet) stays with its pair's rows.
    """
    planned = {place(entry) for entry, _ in lines}
    schedules = {schedule_of(config.to_dict()) for entry, config in lines if is_of_pairs(entry) and entry.purpose in ROWS}
    of_lines = [(entry, place(entry)) for entry in plan]
    if not schedules:  # another command's study, beside which all rows stay
        return [entry for entry, own in of_lines if own not in planned]
    rows = [(e, own) for e, own in of_lines if is_of_pairs(e) and e.purpose in ROWS and e.config_json and own not in planned]
    others = {own for entry, own in rows if schedule_of(json.loads(entry.config_json)) not in schedules}
    known = {own for _, own in rows}
    pairs = {own[1:3] for own in known - others}

    def stays(entry: PlanEntry, own: tuple[str, ...]) -> bool:
        if own in planned:
            return False
        if not is_of_pairs(entry):
            return True
        return own not in others if own in known else own[1:3] in pairs

    return [entry for entry, own in of_lines if stays(entry, own)]


def rows_that_leave(plan: Sequence[PlanEntry], kept: Sequence[PlanEntry], lines: WorkLines) -> list[str]:
    """Return "method of pair" of the rows of an earlier plan that are neither `kept` nor planned anew by `lines`."""
    here = {place(entry) for entry in kept} | {place(entry) for entry, _ in lines}
    leaving = [entry for entry in plan if entry.purpose == "report" and place(entry) not in here]
    return sorted({f"{entry.method} of {entry.teacher}-{entry.student}" for entry in leaving})


def is_of_pairs(entry: PlanEntry) -> bool:
    """Whether a line is one of `run_pairs.py`'s, and of no other command's study."""
    return not entry.study or entry.purpose in ("search", "confirm")


def place(entry: PlanEntry) -> tuple[str, ...]:
    """Return what a command plans whole: its lines of a place replace those of an earlier command."""
    if is_of_pairs(entry):
        is_searched = entry.purpose in ("search", "confirm") or entry.method == "search"
        row = TUNED if is_searched else entry.method
        return ("", entry.teacher, entry.student, "" if is_searched else entry.purpose.replace("report", ""), row)
    is_by_row = entry.study in (transfer.STUDY, detection.STUDY)
    row_and_data = (entry.method, TrialConfig.from_json(entry.config_json).data.dataset) if is_by_row else ()
    return (entry.study, entry.teacher, entry.student, *row_and_data)


def schedule_of(config: dict[str, Any]) -> tuple[str, int, int]:
    """Return what rows of one table share, of a configuration as a table: data (a held-out part aside), epochs and images of a step."""
    optim, usual = config.get("optim", {}), OptimConfig()
    data = _data_of(json.dumps(config.get("data"), sort_keys=True))
    return data, optim.get("epochs", usual.epochs), optim.get("batch_size", usual.batch_size)


@lru_cache(maxsize=64)
def _data_of(text: str) -> str:
    """Return a data configuration with the neutral fields that an older version's text lacks."""
    try:
        return json.dumps(replace(DataConfig.from_dict(json.loads(text)), validation_fraction=0.0).to_dict(), sort_keys=True)
    except (ValueError, AttributeError):  # of other code: of no schedule that is known here
        return text
