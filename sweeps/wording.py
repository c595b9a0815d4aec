"""What commands call a plan's line, the accuracy it is judged by, a count and a duration: the same words in every table and message."""

import json
import os
from functools import cache

from hsakd.records import PlanEntry, TrialRecord

VALIDATION, LAST_TEST, LAST_MAP = "validation top-1", "test top-1, last epoch", "test mAP, last epoch"
SEARCH_ROWS = ("search teacher", "search", "confirm")  # on train minus validation


def pair_of(entry: PlanEntry) -> str:
    """Return TEACHER-STUDENT."""
    return f"{entry.teacher}-{entry.student}"


def row_of(entry: PlanEntry) -> str:
    """Return the row that a plan's line counts in: a table's, with its study before it, or what the trial is for."""
    if entry.purpose == "teacher":
        return "search teacher" if entry.method == "search" else entry.method
    if entry.purpose != "report":
        return entry.purpose
    if entry.study == "transfer":
        return f"transfer to {_dataset_of(entry.config_json)}: {entry.method}"
    return f"{entry.study}: {entry.method}" if entry.study else entry.method


@cache  # asked for at each refresh of the view
def _dataset_of(config_json: str) -> str:
    return str(json.loads(config_json)["data"]["dataset"])


def name_of(entry: PlanEntry) -> str:
    """Return the row, of a search's trial or its confirmation with the study's number."""
    return row_of(entry) if entry.study_number is None else f"{row_of(entry)} {entry.study_number}"


def subject_of(entry: PlanEntry) -> str:
    """Return the pair or, of what is trained for others, the network."""
    return entry.teacher if entry.purpose in ("backbone", "teacher") else pair_of(entry)


def judged(entry: PlanEntry, record: TrialRecord) -> tuple[float, str] | None:
    """Return the per cent that a plan's trial is judged by, and of what; of a search's trials, teacher included, never the test's."""
    if row_of(entry) in SEARCH_ROWS:
        return None if record.top1_val is None else (record.top1_val, VALIDATION)
    if record.map50_last is not None:
        return record.map50_last, LAST_MAP
    return None if record.top1_last is None else (record.top1_last, LAST_TEST)


def counted(number: float, noun: str) -> str:
    """Return "1 training" or "2 trainings"."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def reason_of(error: OSError) -> str:
    """Return why the system refused, in its own words, which PyArrow wraps in others."""
    return os.strerror(error.errno) if error.errno else str(error.strerror)


def duration(seconds: float) -> str:
    """Return a forecast in the unit it is read in: "40 s", "12 min" or "2.5 h"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
