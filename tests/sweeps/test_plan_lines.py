"""Several commands in one folder: a new one's rows replace their like, and the others stay."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from hsakd.records import PlanEntry
from sweeps.cli import SweepOptions
from sweeps.plan_lines import lines_to_keep, rows_that_leave
from sweeps.presets import TUNED
from sweeps.schedule import WorkLines
from sweeps.worklist import known_work

PAIR, OTHER = "resnet14-resnet8_half", "wrn_16_1-resnet8_half"
ALL = ("Student", "KD", "HSAKD*", TUNED)


def work(out: Path, *pairs: str, methods: tuple[str, ...] = ALL, epochs: int = 4, seeds: int = 2) -> WorkLines:
    return known_work(SweepOptions(out=out, preset="digits", pairs=pairs, methods=methods, epochs=epochs, seeds=seeds))


def rows(entries: Iterable[PlanEntry]) -> set[tuple[str, str]]:
    return {(f"{entry.teacher}-{entry.student}", entry.method) for entry in entries if entry.purpose == "report"}


def plan_of(lines: WorkLines) -> list[PlanEntry]:
    """Return the lines as a plan, with a search's as its schedule adds them."""
    plan = [entry for entry, _ in lines]
    for entry, config in lines:
        if entry.method == "search":
            pair = f"{entry.teacher}-{entry.student}"
            shared = {"teacher": entry.teacher, "student": entry.student, "trial_id": config.trial_id, "config_json": config.to_json()}
            plan.append(PlanEntry(purpose="search", method="search", study=pair, study_number=0, **shared))
            plan.append(PlanEntry(purpose="confirm", method="confirm", study=pair, study_number=0, **shared))
            plan.append(PlanEntry(purpose="report", method=TUNED, **(shared | {"trial_id": "", "config_json": ""})))
    return plan


def test_a_command_for_another_pair_or_method_leaves_the_other_rows_and_their_searches(tmp_path: Path) -> None:
    first = plan_of(work(tmp_path, PAIR))
    assert lines_to_keep(first, work(tmp_path, OTHER)) == first
    kept = lines_to_keep(first, work(tmp_path, PAIR, methods=("Student", "DKD"), seeds=1))
    assert rows(kept) == {(PAIR, "KD"), (PAIR, "HSAKD*"), (PAIR, TUNED)}
    assert {entry.purpose for entry in kept} == {"backbone", "teacher", "report", "search", "confirm"} - {"backbone"}  # DKD plans KD's anew
    assert rows_that_leave(first, kept, work(tmp_path, PAIR, methods=("Student", "DKD"))) == []


def test_a_row_planned_anew_replaces_its_lines_and_a_tuned_one_its_search(tmp_path: Path) -> None:
    first = plan_of(work(tmp_path, PAIR))
    assert lines_to_keep(first, work(tmp_path, PAIR, seeds=1)) == []
    kept = lines_to_keep(first, work(tmp_path, PAIR, methods=(TUNED,)))
    assert rows(kept) == {(PAIR, "Student"), (PAIR, "KD")}
    assert not [entry for entry in kept if entry.purpose in ("search", "confirm") or entry.method == "search"]


def test_teachers_and_what_a_search_has_not_asked_for_stay_or_leave_with_their_pairs_rows(tmp_path: Path) -> None:
    first = plan_of(work(tmp_path, PAIR, methods=("KD", "HSAKD", TUNED)))  # the frozen teacher has a schedule of its own
    assert lines_to_keep(first, work(tmp_path, OTHER, methods=("KD",))) == first
    longer = work(tmp_path, PAIR, methods=("KD",), epochs=6)
    assert lines_to_keep(first, longer) == []
    assert rows_that_leave(first, [], longer) == [f"{method} of {PAIR}" for method in ("HSAKD", "HSAKD*", TUNED)]
    imported = [replace(e, config_json=json.dumps({**json.loads(e.config_json), "optim": {"epochs": 0}})) for e in first[:1]]
    assert lines_to_keep(imported + first[1:], work(tmp_path, OTHER, methods=("KD",))) == imported + first[1:]


def test_rows_of_another_schedule_leave_the_plan_and_are_named(tmp_path: Path) -> None:
    first = plan_of(work(tmp_path, PAIR, methods=("Student", "KD")))
    longer = work(tmp_path, PAIR, methods=("Student",), epochs=6)
    kept = lines_to_keep(first, longer)
    assert kept == []
    assert rows_that_leave(first, kept, longer) == [f"KD of {PAIR}"]


@pytest.mark.parametrize("config", [{}, {"data": {"colour": 1}, "optim": {"momentums": 2}}, {"data": None}])
def test_lines_that_other_code_planned_leave_and_end_nothing(tmp_path: Path, config: dict[str, object]) -> None:
    line = PlanEntry(
        trial_id="a", purpose="report", method="KD", teacher="resnet14", student="resnet8_half", config_json=json.dumps(config)
    )
    assert lines_to_keep([line], work(tmp_path, PAIR, methods=("Student",))) == []
