"""What a search varies and what it may spend: files, refusals, budgets, resumption."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hsakd.command_line import parse
from hsakd.config import TrialConfig
from hsakd.records import EpochMetrics, TrialRecord
from hsakd.store import ResultStore
from sweeps.cli import SweepOptions
from sweeps.schedule import Schedule
from sweeps.search import PairSearch, make_pruner, open_storage
from sweeps.space import SearchBudget, SearchSpace, placements, read_space
from sweeps.worklist import PAPER_SETTING, Pair

PAIR = Pair(teacher="resnet14", student="resnet8_half")
ROOT = Path(__file__).parents[2]
WIDE = """
temperature = [2, 8]
kl_p = 1.0
branch_weight = [0.1, 10]
learning_rate = [0.01, 0.1]
placement = ["1", "2+3"]
"""


def schedule_of(out: Path, **changes: object) -> Schedule:
    store = ResultStore(out)
    options = SweepOptions(out=out, preset="digits", pairs=(PAIR.name,), methods=("HSAKD-tuned",), **changes)  # type: ignore[arg-type]
    return Schedule(options, store, lambda config: store.read_trial(config.trial_id))


def record(config: TrialConfig, status: str = "complete", epochs_done: int = 6) -> TrialRecord:
    value = 50 + int(config.trial_id[:4], 16) % 400 / 10
    return TrialRecord(
        trial_id=config.trial_id,
        status=status,
        role=config.role,
        network=config.network,
        dataset="digits",
        seed=config.seed,
        num_epochs=6,
        epochs_done=epochs_done,
        top1_val=value,
        config_json=config.to_json(),
    )


def space_file(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "space.toml").write_text(text)
    return folder / "space.toml"


def test_a_file_overrides_ranges_and_adds_branch_weights_and_the_learning_rate(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path / "out", trials=12, space=space_file(tmp_path, WIDE))
    while (config := schedule.next_trial()) is not None:
        schedule.complete(config.trial_id, record(config))
    search = schedule.searches[PAIR.name]
    settings = [search.setting(number) for number in range(12)]
    assert settings[0] == PAPER_SETTING
    tried = [schedule.factory.hsakd(PAIR, 0, schedule.search_teachers[PAIR.name], setting) for setting in settings[1:]]
    assert {config.taps for config in tried} <= {None, (1,), (2, 3)}
    assert len({config.taps for config in tried}) > 1
    for config in tried:
        assert 2 <= config.objective.temperature <= 8
        assert dict(config.objective.terms)["kl_p"] == 1.0
        assert 0.01 <= config.optim.learning_rate <= 0.1
        assert config.objective.branch_weights is not None
        assert len(config.objective.branch_weights) == len(config.taps or (1, 2, 3))
    assert len({config.optim.learning_rate for config in tried}) > 1


def test_the_example_of_the_options_help_is_a_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(SweepOptions, ["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    lines = re.findall(r"(?:temperature|kl_p|placement) = (?:\[.*?\]|[\d.]+)", text)
    space = read_space(space_file(tmp_path, "\n".join(lines)))
    assert space == SearchSpace(temperature=(1.0, 10.0), kl_p=(1.0, 1.0), placement=("1+2", "3"))


def test_trial_zero_of_a_wide_space_is_the_same_training_as_the_papers_setting(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path / "out", trials=1, space=space_file(tmp_path, WIDE))
    while (config := schedule.next_trial()) is not None:
        schedule.complete(config.trial_id, record(config))
    entry = next(entry for entry in schedule.plan() if entry.purpose == "search")
    assert entry.trial_id == schedule.factory.hsakd(PAIR, 0, schedule.search_teachers[PAIR.name]).trial_id


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("temperature = [4, 20]", r"temperature is \[4, 20\]; accepted: .* with the paper's 3 \(always trial 0\) in it"),
        ("temperature = [9, 1]", r"temperature is \[9, 1\]; accepted"),
        ("kl_q = 'high'", "kl_q is 'high'; accepted"),
        ("kl_q = [-1, 2]", r"kl_q is \[-1, 2\]; accepted"),
        ("kl_q = [true, 2]", r"kl_q is \[True, 2\]; accepted"),
        ("tau = [1, 2]", "unknown key 'tau'; accepted: temperature, kl_q"),
        ("placement = ['1+9']", r"placement is '1\+9'; accepted for 3 auxiliary classifiers: 1\+2\+3, "),
        ("placement = 7", "placement is 7; accepted"),
        (
            "learning_rate = [0.001, 0.01]",
            r"learning_rate is \[0.001, 0.01\]; accepted for resnet8_half: a range with the paper's 0.05 in it",
        ),
        ("temperature = [1", "which is not TOML"),
    ],
)
def test_a_bad_space_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = space_file(tmp_path, text)
    with pytest.raises(ValueError, match=rf"^--space (is )?{re.escape(str(file))}.*{sentence}"):
        SweepOptions(out=tmp_path / "out", preset="digits", pairs=(PAIR.name,), space=file)


def test_the_command_refuses_a_bad_space_and_a_bad_budget_with_status_2(tmp_path: Path) -> None:
    file = str(space_file(tmp_path, "tau = 1"))
    common = [sys.executable, str(ROOT / "sweeps/run_pairs.py"), "--preset", "digits", "--out", str(tmp_path / "out")]
    for more in (("--space", file), ("--space", str(tmp_path / "none.toml")), ("--search-budget", "lots"), ("--search-budget", "0x")):
        result = subprocess.run([*common, *more], capture_output=True, text=True, timeout=900, check=False)
        assert result.returncode == 2
        assert "accepted" in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_study_goes_on_with_its_own_space_only(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path / "out", trials=3)
    while (config := schedule.next_trial()) is not None:
        schedule.complete(config.trial_id, record(config))
    schedule_of(tmp_path / "out", trials=4)
    with pytest.raises(
        ValueError, match=r"the study resnet14-resnet8_half was begun with the space .* accepted: the space it was begun with"
    ):
        schedule_of(tmp_path / "out", trials=4, space=space_file(tmp_path, "temperature = [1, 5]"))


def test_budgets_are_trials_or_student_runs() -> None:
    assert SearchBudget.parse("20") == SearchBudget(trials=20)
    assert SearchBudget.parse("12x") == SearchBudget(student_runs=12.0)
    for text in ("", "x", "0", "-3", "1.5", "nanx", "infx", "0.2x", "12 x y"):
        with pytest.raises(ValueError, match="--search-budget is"):
            SearchBudget.parse(text)


def spend(search: PairSearch, status: str, epochs_done: int) -> int:
    number = 0
    while search.num_left():
        asked = search.ask()
        config = replace(TrialConfig.from_json(BASE), seed=number)
        search.tell(asked, record(config, "complete" if asked == 0 else status, 6 if asked == 0 else epochs_done))
        number += 1
    return number


BASE = '{"network": "resnet8_half", "data": {"dataset": "digits"}}'


@pytest.mark.parametrize(("status", "epochs_done", "expected"), [("complete", 6, 5), ("pruned", 3, 8), ("diverged", 1, 5)])
def test_pruned_trials_count_in_part_against_a_budget_in_student_runs(tmp_path: Path, status: str, epochs_done: int, expected: int) -> None:
    def fresh() -> PairSearch:
        storage = open_storage(tmp_path / "studies.journal")
        return PairSearch(PAIR, storage, budget=SearchBudget(student_runs=5.0), pruner=make_pruner("none", 6))

    search = fresh()
    assert spend(search, status, epochs_done) == expected
    assert search.spent() <= 5
    again = fresh()
    assert again.num_left() == 0
    assert again.spent() == search.spent()


def test_cheaper_placements_leave_room_for_more_trials(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path / "out", search_budget="6x")
    while (config := schedule.next_trial()) is not None:
        schedule.complete(config.trial_id, record(config))
    search = schedule.searches[PAIR.name]
    assert 5 < search.spent() <= 6
    assert len(search.study.get_trials()) >= 6
    assert schedule.is_complete


def test_placements_follow_the_number_of_branches(tmp_path: Path) -> None:
    assert SearchSpace().placements(3) == placements(3)
    assert SearchSpace(placement="all").placements(4) == ["1+2+3+4"]
    assert SearchSpace(placement=("2", "1+2")).placements(3) == ["1+2+3", "2", "1+2"]
    assert read_space(space_file(tmp_path, "placement = 'all'")).placement == "all"


def test_the_tuned_row_never_stands_without_the_papers_setting(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path / "out", trials=2)
    assert {entry.method for entry in schedule.plan() if entry.purpose == "report"} == {"HSAKD*", "HSAKD-tuned"}


def test_watchers_hear_of_every_epoch_and_of_the_end(tmp_path: Path) -> None:
    schedule = schedule_of(tmp_path / "out", trials=1)
    heard: list[tuple[str, int | None]] = []
    schedule.watchers.append(lambda config, metrics: heard.append((config.trial_id, None if metrics is None else metrics.epoch)))
    config = schedule.next_trial()
    assert config is not None
    schedule.on_epoch(config.trial_id, EpochMetrics(trial_id=config.trial_id, epoch=0, learning_rate=0.1, loss=1.0, loss_terms={}))
    schedule.put_back(config.trial_id)
    assert schedule.next_trial() == config
    schedule.complete(config.trial_id, record(config, "pruned"))
    assert heard == [(config.trial_id, 0), (config.trial_id, None), (config.trial_id, None)]
