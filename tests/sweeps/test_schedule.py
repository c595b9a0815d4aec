"""The schedule without Ray: order, readiness, searches, confirmations and the winner."""

from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from hsakd.config import TrialConfig
from hsakd.network_table import network_table
from hsakd.records import TrialRecord
from hsakd.store import ResultStore
from sweeps.cli import SweepOptions
from sweeps.run_pairs import conclude
from sweeps.schedule import Schedule
from sweeps.search import repair_journal
from sweeps.space import placements
from sweeps.worklist import PAPER_SETTING, known_work


def options(out: Path, **changes: object) -> SweepOptions:
    return SweepOptions(out=out, preset="digits", **changes)  # type: ignore[arg-type]


def record_of(config: TrialConfig, status: str = "complete") -> TrialRecord:
    value = int(config.trial_id[:4], 16) % 1000 / 10
    return TrialRecord(
        trial_id=config.trial_id,
        status=status,
        role=config.role,
        network=config.network,
        dataset="digits",
        seed=config.seed,
        num_epochs=1,
        top1_last=value,
        top1_val=value if config.data.validation_fraction else None,
        config_json=config.to_json(),
    )


def drain(schedule: Schedule, slots: int = 3) -> list[TrialConfig]:
    """Run everything, `slots` at once, first in first out; return the order of starts."""
    order: list[TrialConfig] = []
    running: list[TrialConfig] = []
    while True:
        config = schedule.next_trial() if len(running) < slots else None
        if config is not None:
            running.append(config)
            order.append(config)
        elif running:
            ended = running.pop(0)
            schedule.complete(ended.trial_id, record_of(ended))
        else:
            return order


def fresh(out: Path, **changes: object) -> Schedule:
    store = ResultStore(out)
    return Schedule(options(out, **changes), store, lambda _: None)


def test_every_trial_starts_once_and_after_what_it_requires(tmp_path: Path) -> None:
    schedule = fresh(tmp_path)
    order = drain(schedule)
    ids = [config.trial_id for config in order]
    assert len(ids) == len(set(ids))
    for position, config in enumerate(order):
        assert all(requirement.trial_id in ids[:position] for requirement in config.requirements())
    assert schedule.is_complete
    assert {entry.trial_id for entry in schedule.plan()} <= set(ids)


def test_the_longest_chain_starts_first(tmp_path: Path) -> None:
    first = drain(fresh(tmp_path))[0]
    assert first.role == "teacher"
    assert first.data.validation_fraction > 0  # a search, its confirmation and its report wait for it


def test_search_students_see_validation_and_reported_ones_all_training_images(tmp_path: Path) -> None:
    schedule = fresh(tmp_path)
    drain(schedule)
    for entry in schedule.plan():
        config = schedule.configs[entry.trial_id]
        is_for_choosing = entry.purpose in ("search", "confirm") or entry.method == "search"
        assert (config.data.validation_fraction > 0) == is_for_choosing
        if config.teacher is not None:
            assert config.teacher.data == config.data


def test_the_papers_setting_is_trial_zero_and_the_winner_has_the_best_mean_validation(tmp_path: Path) -> None:
    schedule = fresh(tmp_path, top_k=2, trials=5)
    drain(schedule)
    for search in schedule.searches.values():
        assert search.setting(0) == PAPER_SETTING
        candidates = {PAPER_SETTING, *search.best(2)}
        assert len(candidates) == 3

        def mean(setting: object, search: object = search) -> float:
            teacher = schedule.search_teachers[search.pair.name]  # type: ignore[attr-defined]
            configs = [schedule.factory.hsakd(search.pair, seed, teacher, setting) for seed in range(2)]  # type: ignore[attr-defined, arg-type]
            return sum(schedule.done[config.trial_id].top1_val or 0 for config in configs) / 2

        best = max(candidates, key=mean)
        tuned = [entry for entry in schedule.plan() if entry.method == "HSAKD-tuned" and entry.student == search.pair.student]
        terms = {schedule.configs[entry.trial_id].objective for entry in tuned if entry.teacher == search.pair.teacher}
        assert terms == {best.objective}


def test_a_new_driver_goes_on_with_the_studies_and_repeats_nothing(tmp_path: Path) -> None:
    reference = fresh(tmp_path / "reference", trials=4)
    total = len(drain(reference))
    first = fresh(tmp_path / "x", trials=4)
    done: dict[str, TrialRecord] = {}
    running = [config for config in (first.next_trial() for _ in range(4)) if config is not None]
    for _ in range(18):
        ended = running.pop(0)
        done[ended.trial_id] = record_of(ended)
        first.complete(ended.trial_id, done[ended.trial_id])
        config = first.next_trial()
        if config is not None:
            running.append(config)
    second = Schedule(options(tmp_path / "x", trials=4), ResultStore(tmp_path / "x"), lambda config: done.get(config.trial_id))
    again = drain(second)
    assert not {config.trial_id for config in again} & set(done)
    assert abs(len(again) + len(done) - total) <= 4  # which settings are confirmed or win may differ
    assert second.is_complete
    for search in second.searches.values():
        states = [trial.state.name for trial in search.study.get_trials()]
        assert states == ["COMPLETE"] * 4


def test_a_failed_teacher_leaves_its_students_waiting_and_the_sweep_incomplete(tmp_path: Path) -> None:
    schedule = fresh(tmp_path, methods=("HSAKD*",), pairs=("resnet14-resnet8_half",))
    teacher = schedule.next_trial()
    assert teacher is not None
    schedule.complete(teacher.trial_id, record_of(teacher, "failed"))
    assert schedule.next_trial() is None
    assert schedule.is_stuck
    assert not schedule.is_complete
    assert schedule.num_waiting == 2


def test_a_diverged_teacher_is_named_and_nothing_is_advised_that_cannot_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = fresh(tmp_path, methods=("Student", "HSAKD*"), pairs=("resnet14-resnet8_half",))
    asked = [config for config in (schedule.next_trial() for _ in range(3)) if config is not None]
    [teacher] = [config for config in asked if config.role == "teacher"]
    schedule.complete(teacher.trial_id, replace(record_of(teacher, "diverged"), error="loss is not finite at step 12"))
    others = [config.trial_id for config in asked if config != teacher]
    schedule.put_back(others[0])
    assert conclude(schedule.options, schedule) == 1
    assert "go on with: python" in capsys.readouterr().out  # a student is left
    for trial_id in others:
        schedule.complete(trial_id, record_of(schedule.configs[trial_id]))
    assert conclude(schedule.options, schedule) == 1
    output, errors = capsys.readouterr()
    assert "not complete: 2 complete, 1 diverged, 2 waiting; they need a trial that diverged" in output
    assert "go on with" not in output
    assert errors == f"diverged: {teacher.trial_id} (resnet14): loss is not finite at step 12\n"


def test_failed_and_diverged_trials_are_fail_in_the_study_and_pruned_ones_pruned(tmp_path: Path) -> None:
    schedule = fresh(tmp_path, trials=3, pairs=("resnet14-resnet8_half",), methods=("HSAKD-tuned",))
    statuses = iter(["complete", "diverged", "pruned"])
    while (config := schedule.next_trial()) is not None:
        status = next(statuses, "complete") if config.role == "student" else "complete"
        schedule.complete(config.trial_id, record_of(config, status))
    states = [trial.state.name for trial in schedule.searches["resnet14-resnet8_half"].study.get_trials()]
    assert states == ["COMPLETE", "FAIL", "PRUNED"]


def test_same_seed_and_one_worker_give_the_same_suggestions(tmp_path: Path) -> None:
    settings = []
    for name in ("a", "b"):
        schedule = fresh(tmp_path / name, trials=8, pairs=("resnet14-resnet8_half",), methods=("HSAKD-tuned",))
        drain(schedule, slots=1)
        settings.append([schedule.searches["resnet14-resnet8_half"].setting(number) for number in range(8)])
    assert settings[0] == settings[1]


def test_a_journal_cut_in_the_middle_of_a_line_loses_that_line_only(tmp_path: Path) -> None:
    schedule = fresh(tmp_path, trials=2, pairs=("resnet14-resnet8_half",), methods=("HSAKD-tuned",))
    drain(schedule)
    path = ResultStore(tmp_path).journal_path
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    assert repair_journal(path) > 0
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    assert len(optuna.load_study(study_name="resnet14-resnet8_half", storage=storage).trials) == 2
    assert repair_journal(path) == 0


def test_placements_are_all_non_empty_subsets_with_the_papers_first() -> None:
    assert placements(3) == ["1+2+3", "1+2", "1+3", "2+3", "1", "2", "3"]
    assert len(placements(4)) == 15


def test_the_papers_plan_trains_each_distinct_teacher_once(tmp_path: Path) -> None:
    lines = known_work(SweepOptions(out=tmp_path / "none", preset="paper", gpus=16))
    teachers = {config.trial_id: config.network for entry, config in lines if entry.method == "Teacher*"}
    assert sorted(teachers.values()) == ["resnet32x4", "resnet50", "resnet56", "vgg13_bn", "wrn_40_2"]
    students = [config for entry, config in lines if entry.method == "HSAKD*"]
    assert len(students) == 24
    assert {config.optim.learning_rate for config in students} == {0.05, 0.01}
    assert all(config.network in network_table() for config in students)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pairs": ("resnet14-resnet9",)}, "--pairs is resnet14-resnet9; accepted, separated by blanks: TEACHER-STUDENT of"),
        ({"pairs": ("resnet14-vgg8_bn",)}, "--pairs is resnet14-vgg8_bn; accepted: networks with equally many branches"),
        ({"methods": ("FitNet2",)}, "--methods is FitNet2; accepted, separated by blanks: Student, KD"),
        ({"dataset": "mnist"}, "--dataset is mnist; accepted: cifar10, cifar100, digits, fashion_mnist"),
        ({"gpus": -1}, r"--gpus is -1; accepted: 0 \(CPU\) or more"),
        ({"epochs": 0}, "--epochs is 0; accepted: 1 or more"),
        ({"address": "ray://host:1"}, "--address is ray://host:1; accepted: auto or HOST:PORT"),
        ({"out": Path("s3://bucket/x")}, "--out is s3:/bucket/x; accepted: a folder that all nodes share"),
    ],
)
def test_bad_options_are_one_sentence(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SweepOptions(**{"out": tmp_path / "out", "preset": "digits", **changes})  # type: ignore[arg-type]


def test_concurrent_trials_get_different_suggestions_and_none_is_left_running(tmp_path: Path) -> None:
    schedule = fresh(tmp_path, trials=16, pairs=("resnet14-resnet8_half",), methods=("HSAKD-tuned",))
    drain(schedule, slots=8)
    search = schedule.searches["resnet14-resnet8_half"]
    settings = [search.setting(number) for number in range(16)]
    assert len(set(settings)) == 16
    assert {trial.state.name for trial in search.study.get_trials()} == {"COMPLETE"}


def test_a_trial_that_does_not_fit_the_time_left_gives_way_to_one_that_does(tmp_path: Path) -> None:
    schedule = fresh(tmp_path, methods=("Student", "HSAKD*"), pairs=("resnet14-resnet8_half",))
    first = schedule.next_trial(lambda config: config.role == "baseline")
    assert first is not None
    assert first.role == "baseline"
    assert schedule.next_trial(lambda _: False) is None
    second = schedule.next_trial()
    assert second is not None
    assert second.role == "teacher"
    schedule.put_back(second.trial_id)
    assert schedule.next_trial() == second
