"""A plan's line has one name everywhere; counts, durations and what the system says read as sentences do."""

import errno

import pytest

from hsakd.config import DataConfig, TrialConfig
from hsakd.records import PlanEntry
from sweeps.wording import counted, duration, name_of, reason_of, row_of, subject_of


def entry(purpose: str, method: str, **changes: object) -> PlanEntry:
    probe = TrialConfig(network="resnet8_half", data=DataConfig(dataset="stl10"))
    values = {"trial_id": "id", "teacher": "resnet14", "student": "resnet8_half", "config_json": probe.to_json(), **changes}
    return PlanEntry(purpose=purpose, method=method, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "name", "subject"),
    [
        (entry("backbone", "Teacher"), "backbone", "resnet14"),
        (entry("teacher", "Teacher"), "Teacher", "resnet14"),
        (entry("teacher", "Teacher*", study="loss-terms"), "Teacher*", "resnet14"),
        (entry("teacher", "search"), "search teacher", "resnet14"),
        (entry("search", "search", study="resnet14-resnet8_half", study_number=3), "search 3", "resnet14-resnet8_half"),
        (entry("confirm", "confirm", study="resnet14-resnet8_half", study_number=3), "confirm 3", "resnet14-resnet8_half"),
        (entry("report", "HSSAKD (online)"), "HSSAKD (online)", "resnet14-resnet8_half"),
        (entry("report", "task", study="loss-terms"), "loss-terms: task", "resnet14-resnet8_half"),
        (entry("report", "HSAKD*", study="transfer"), "transfer to stl10: HSAKD*", "resnet14-resnet8_half"),
    ],
)
def test_a_line_is_named_for_what_it_is_for(line: PlanEntry, name: str, subject: str) -> None:
    assert (name_of(line), subject_of(line)) == (name, subject)
    assert name.startswith(row_of(line))


def test_counts_and_durations_are_in_the_form_they_are_read_in() -> None:
    assert [counted(number, "slot") for number in (0, 1, 1.0, 2.5)] == ["0 slots", "1 slot", "1 slot", "2.5 slots"]
    assert [duration(seconds) for seconds in (40, 90 * 60, 9000)] == ["40 s", "90 min", "2.5 h"]


def test_a_reason_is_the_systems_without_what_stands_around_it() -> None:
    assert reason_of(OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] ...")) == "No space left on device"
    assert reason_of(OSError(0, "told by a worker")) == "told by a worker"
