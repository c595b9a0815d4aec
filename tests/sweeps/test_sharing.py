"""Teachers of another sweep: taken over once their digest was checked, and never trained again."""

from dataclasses import replace
from pathlib import Path

import pytest

from hsakd.config import TrialConfig
from hsakd.records import TrialRecord
from hsakd.store import ResultStore, checked_name
from hsakd.training.trial import RunContext, run_trial
from sweeps.cli import SweepOptions, parse_time
from sweeps.forecast import read_shared, unique_trials
from sweeps.run_pairs import print_plan
from sweeps.schedule import Schedule
from sweeps.sharing import TeacherSource
from sweeps.status import printable, read_progress
from sweeps.worklist import TrialFactory, known_work


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResultStore, TrialConfig]:
    """A result folder with one really trained joint teacher of the digits preset (one epoch)."""
    store = ResultStore(tmp_path_factory.mktemp("source"))
    options = SweepOptions(out=store.root, preset="digits", epochs=1)
    config = TrialFactory(options).joint_teacher("resnet8_half", 0)
    assert run_trial(config, RunContext(store=store)).status == "complete"
    return store, config


def test_a_finished_teacher_is_linked_with_its_record(source, tmp_path: Path) -> None:
    store, config = source
    own = ResultStore(tmp_path)
    record = TeacherSource(store, own).adopt(config)
    assert record == store.read_trial(config.trial_id) == own.finished(config.trial_id)
    assert own.weights_path(config.trial_id).samefile(store.weights_path(config.trial_id))
    assert own.read_epochs(config.trial_id) == store.read_epochs(config.trial_id)


def test_a_dry_run_counts_what_would_be_taken_over(source, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, config = source
    options = SweepOptions(out=tmp_path / "out", preset="digits", epochs=1, teachers_from=store.root)
    options = replace(options, pairs=("resnet8_half-resnet8_half",), methods=("HSAKD*",))
    trials = unique_trials(known_work(options))
    assert read_shared(options, trials, set()) == {config.trial_id}
    print_plan(options, known_work(options))
    assert f"3 trials known, 0 done, 1 to take over from {store.root}" in capsys.readouterr().out


def test_a_teacher_with_other_weights_than_recorded_is_refused_and_said(source, tmp_path: Path) -> None:
    store, config = source
    damaged = ResultStore(tmp_path / "damaged")
    record = store.read_trial(config.trial_id)
    assert record is not None
    content = bytearray(store.weights_path(config.trial_id).read_bytes())
    content[-5] ^= 1
    damaged.weights_path(config.trial_id).parent.mkdir(parents=True)
    damaged.weights_path(config.trial_id).write_bytes(bytes(content))
    damaged.write_trial(record, store.read_epochs(config.trial_id))
    teachers = TeacherSource(damaged, ResultStore(tmp_path / "own"))
    assert teachers.adopt(config) is None
    assert "isn't what its record says" in teachers.news[0]
    assert not (tmp_path / "own" / "trials").exists()


def test_students_and_unknown_trials_are_left_to_their_own_sweep(source, tmp_path: Path) -> None:
    store, _config = source
    factory = TrialFactory(SweepOptions(out=tmp_path, preset="digits", epochs=1))
    teachers = TeacherSource(store, ResultStore(tmp_path))
    assert teachers.adopt(factory.joint_teacher("resnet8_half", 7)) is None
    assert teachers.news == []


def test_a_trial_whose_weights_were_given_up_is_trained_again_when_someone_needs_them(tmp_path: Path) -> None:
    options = SweepOptions(out=tmp_path, preset="digits", pairs=("resnet14-resnet8_half",), methods=("KD",), seeds=1)
    store, factory = ResultStore(tmp_path), TrialFactory(options)
    backbone = factory.baseline("resnet14", 0)
    store.write_trial(TrialRecord.of(backbone, status="complete", has_weights=False), [])
    assert store.finished(backbone.trial_id) is not None
    schedule = Schedule(options, store, lambda config: store.finished(config.trial_id))
    assert schedule.next_trial() == backbone
    assert schedule.is_needed(backbone.trial_id)


def test_a_trial_name_from_elsewhere_is_no_path() -> None:
    assert checked_name("0063cf70e3c74a91") == "0063cf70e3c74a91"
    for name in ("../../etc/passwd", "a/b", "", ".hidden", "a\nb", "x" * 200):
        with pytest.raises(ValueError, match="trial_id"):
            checked_name(name)
        with pytest.raises(ValueError, match="trial_id"):
            ResultStore(Path("out")).trial_path(name)


def test_text_from_records_cannot_move_the_terminals_cursor() -> None:
    assert printable("red \x1b[31m\nline") == "red \\x1b[31m\\nline"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"host": "a"}', '{"host": 1, "pid": 1, "running": [], "slots": 1, "seconds_left": 1, "basis": ""}']
)
def test_a_progress_file_that_cannot_be_read_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "progress.json").write_text(content)
    assert read_progress(ResultStore(tmp_path)) is None


def test_time_limits_are_minutes_or_slurms_forms() -> None:
    assert parse_time("90") == 5400
    assert parse_time("1.5") == 90
    assert parse_time("01:30:05") == 5405
    assert parse_time("2-00:00:01") == 172801
    assert parse_time(None) is None
    for text in ("", "0", "-5", "1:2", "tomorrow", "1:00:00:00"):
        with pytest.raises(ValueError, match="--time-limit"):
            parse_time(text)
