"""Which lines of a folder's plan stay when another command runs in it, and which give way to its own."""

from collections.abc import Sequence
from dataclasses import replace

from hsakd.config import DataConfig, TrialConfig
from hsakd.records import PlanEntry
from sweeps import detection, transfer
from sweeps.presets import TUNED
from sweeps.schedule import WorkLines


def lines_to_keep(plan: Sequence[PlanEntry], lines: WorkLines) -> list[PlanEntry]:
    """Return the lines of an earlier plan that stay beside the new `lines`: those in places that `lines` do not plan anew.

    A place is a pair's row for `run_pairs.py` (the tuned row with its search), a pair's ablation study, or a row of one data set for probes
    and detectors. Rows of `run_pairs.py` stay only beside rows of the same data and schedule: a table shows one.
    """
    planned = {place(entry) for entry, _ in lines}
    schedules = {schedule_of(config) for entry, config in lines if is_of_pairs(entry)}

    def stays(entry: PlanEntry) -> bool:
        if place(entry) in planned:
            return False
        if not schedules or not is_of_pairs(entry) or not entry.config_json:
            return True
        try:
            return schedule_of(TrialConfig.from_json(entry.config_json)) in schedules
        except ValueError:  # of another version: tables say what they can't read
            return True

    return [entry for entry in plan if stays(entry)]


def rows_that_leave(plan: Sequence[PlanEntry], lines: WorkLines) -> list[str]:
    """Return "method of pair" of the rows of an earlier plan that the new `lines` neither plan nor let stay."""
    kept, planned = {place(entry) for entry in lines_to_keep(plan, lines)}, {place(entry) for entry, _ in lines}
    leaving = [entry for entry in plan if entry.purpose == "report" and place(entry) not in kept | planned]
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


def schedule_of(config: TrialConfig) -> tuple[DataConfig, int, int]:
    """Return what rows of one table share: data (a held-out part aside), epochs and images of a step."""
    return (replace(config.data, validation_fraction=0.0), config.optim.epochs, config.optim.batch_size)
