"""Prices: an assumed throughput first, then what results have shown, the network's and kind's own before others'."""

from dataclasses import replace
from pathlib import Path

import pytest

from hsakd.config import DataConfig, FolderConfig, NumericsConfig
from hsakd.data import DATASETS
from hsakd.dataset_table import DATASET_TABLE
from hsakd.records import TrialRecord
from hsakd.store import ResultStore
from sweeps.cli import SweepOptions
from sweeps.cost import ASSUMED_RATES, CostModel, cost_of
from sweeps.forecast import Job, bank_needs, forecast, makespan, read_done, read_searched, unique_trials, weights_bytes_of
from sweeps.networks import network_facts
from sweeps.packing import Packing, parse_fractions
from sweeps.run_pairs import print_plan
from sweeps.schedule import Schedule
from sweeps.worklist import Pair, TrialFactory, known_work, num_train_images


def paper(**changes: object) -> SweepOptions:
    return SweepOptions(out=Path("absent"), preset="paper", gpus=16, **changes)  # type: ignore[arg-type]


def record(config, seconds: float, device: str = "cuda") -> TrialRecord:
    return TrialRecord.of(config, status="complete", epochs_done=config.optim.epochs, total_seconds=seconds, device=device)


def test_prices_are_assumed_until_something_was_measured() -> None:
    config = TrialFactory(paper()).baseline("resnet20", 0)
    model = CostModel("cuda")
    assert model.seconds(config) == pytest.approx(cost_of(config) / ASSUMED_RATES["cuda"])
    assert "assumed" in model.describe()
    model.observe_record(record(config, 100.0, device="cpu"))
    assert model.num_measured == 0
    model.observe_record(record(config, 100.0))
    assert model.seconds(config) == pytest.approx(100.0)
    assert model.describe().endswith("measured on 1 trial")


def test_a_networks_own_throughput_counts_more_than_others() -> None:
    factory, model = TrialFactory(paper()), CostModel("cuda")
    fast, slow = factory.baseline("resnet20", 0), factory.baseline("wrn_40_2", 0)
    for seed in range(4):
        model.observe_record(record(factory.baseline("resnet20", seed), 100.0))
        model.observe_record(record(factory.baseline("wrn_40_2", seed), cost_of(slow) / cost_of(fast) * 400.0))
    assert 100 <= model.seconds(fast) < 120
    assert model.seconds(slow) / cost_of(slow) > 3 * model.seconds(fast) / cost_of(fast)
    unknown = factory.baseline("vgg13_bn", 0)
    assert model.seconds(fast) / cost_of(fast) < model.seconds(unknown) / cost_of(unknown) < model.seconds(slow) / cost_of(slow)


def test_a_part_of_a_training_prices_the_whole_and_the_record_replaces_it() -> None:
    config, model = TrialFactory(paper()).baseline("resnet20", 0), CostModel("cuda")
    model.observe(config, 10.0, 24)
    assert model.seconds(config) == pytest.approx(100.0)
    model.observe_record(record(config, 130.0))
    assert model.num_measured == 1
    assert model.seconds(config) == pytest.approx(130.0)


def test_later_epochs_of_the_only_trial_revise_prices() -> None:
    config, model = TrialFactory(paper()).baseline("resnet20", 0), CostModel("cuda")
    model.observe(config, 30.0, 1)  # an epoch that waits for data and compiles
    first = model.revision
    model.observe(config, 40.0, 2)
    assert model.revision == first + 1
    for epochs in range(3, 241):
        model.observe(config, 20.0 + 10 * epochs, epochs)
    assert model.revision < first + 40  # sorting anew costs time


def test_measured_throughput_changes_what_starts_first(tmp_path: Path) -> None:
    options = SweepOptions(out=tmp_path, preset="digits", methods=("Student", "HSAKD*"), seeds=1)
    model = CostModel("cpu")
    first = Schedule(options, ResultStore(tmp_path), lambda _: None, cost=model).next_trial()
    assert first is not None
    factory = TrialFactory(options)
    other = next(c for _, c in known_work(options) if c.role == "teacher" and c.network != first.network)
    for seed in range(1, 9):
        model.observe_record(record(factory.joint_teacher(other.network, seed), 9000.0, device="cpu"))
        model.observe_record(record(factory.joint_teacher(first.network, seed), 1.0, device="cpu"))
    again = Schedule(options, ResultStore(tmp_path), lambda _: None, cost=model).next_trial()
    assert again == other


def test_a_running_schedule_revises_its_order(tmp_path: Path) -> None:
    options = SweepOptions(out=tmp_path, preset="digits", methods=("Student", "HSAKD*"), seeds=1)
    schedule = Schedule(options, ResultStore(tmp_path), lambda _: None)
    before = dict(schedule.costs)
    config = schedule.next_trial()
    assert config is not None
    schedule.complete(config.trial_id, record(config, 5000.0, device="cpu"))
    schedule.next_trial()
    assert schedule.costs[config.trial_id] == pytest.approx(5000.0)
    assert all(schedule.costs[trial_id] != seconds for trial_id, seconds in before.items())


def test_the_makespan_is_that_of_the_longest_path_first() -> None:
    chain = [Job("a", 3, 1), Job("b", 3, 1, ("a",))]
    assert makespan([Job("x", 2, 1), Job("y", 2, 1), *chain], 2) == 6
    assert makespan([Job("x", 2, 0.5), Job("y", 2, 0.5), Job("z", 2, 0.5)], 1) == 4
    assert makespan([], 4) == 0


def test_the_papers_plan_is_forecast_with_its_disk() -> None:
    options = paper(predictions="bank")
    trials = unique_trials(known_work(options))
    result = forecast(options, trials, (), CostModel("cuda"), Packing(), 16)
    assert result.num_trials == 345
    assert result.makespan_hours >= result.slot_hours / 16
    only_teachers = forecast(paper(keep_checkpoints="teachers"), trials, (), CostModel("cuda"), Packing(), 16)
    everything = forecast(paper(keep_checkpoints="all"), trials, (), CostModel("cuda"), Packing(), 16)
    assert only_teachers.weights_bytes < result.weights_bytes
    assert everything.resume_bytes > result.resume_bytes
    assert result.bank_bytes > 84e9


FULL_BANK = 84_240_000_000 + 4 * 4 * 50_000 * 162  # CIFAR-100's entries in float16, three branches; and their marks


def test_a_full_bank_of_cifar100_has_the_known_size() -> None:
    factory = TrialFactory(paper(predictions="bank"))
    student = factory.hsakd(Pair(teacher="resnet56", student="resnet20"), 0, factory.joint_teacher("resnet56", 0))
    assert student.numerics == NumericsConfig(teacher_predictions="bank")
    assert list(bank_needs([student, replace(student, seed=1)]).values()) == [FULL_BANK]
    few_shot = replace(student, data=replace(student.data, few_shot_ratio=0.5))
    assert sum(bank_needs([student, few_shot]).values()) == 1.5 * FULL_BANK
    alone = [replace(student, taps=(tap,)) for tap in (1, 2, 3)]
    assert list(bank_needs(alone).values()) == [FULL_BANK]  # they fill one bank
    folder = FolderConfig(sha256="0" * 64, num_classes=100, num_train_images=50_000, padding=4, has_flip=True)
    own = DataConfig(dataset="imagefolder", image_size=32, folder=folder)
    assert list(bank_needs([replace(student, data=own)]).values()) == [FULL_BANK]
    assert bank_needs([replace(student, data=replace(own, augmentation="imagenet"))]) == {}  # too many crops to be kept


def test_a_student_of_streamed_images_asks_its_teacher_at_each_step() -> None:
    costs = []
    for predictions in ("live", "bank"):
        factory = TrialFactory(SweepOptions(out=Path("absent"), preset="imagenet", predictions=predictions))  # type: ignore[arg-type]
        pair = Pair(teacher="resnet34_imagenet", student="resnet18_imagenet")
        costs.append(cost_of(factory.hsakd(pair, 0, factory.joint_teacher(pair.teacher, 0))))
    assert costs[0] == costs[1]


def test_both_networks_of_online_distillation_take_disk(tmp_path: Path) -> None:
    methods = ("HSSAKD (online)",)
    options = SweepOptions(out=tmp_path, preset="digits", pairs=("resnet14-resnet8_half",), methods=methods, seeds=1)
    trials = unique_trials(known_work(options))
    result = forecast(options, trials, (), CostModel("cpu"), Packing(), 1)
    factory = TrialFactory(options)
    both = sum(weights_bytes_of(factory.joint_teacher(network, 0)) for network in ("resnet14", "resnet8_half"))
    assert (result.weights_bytes, result.resume_bytes) == (both, 2 * both)


@pytest.mark.parametrize("changes", [{"ranks_per_trial": 4}, {"trials_per_gpu": 2}])
def test_the_hours_of_a_trial_are_those_that_the_makespan_is_made_of(
    changes: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = SweepOptions(out=tmp_path, preset="imagenet", methods=("Student",), gpus=4, **changes)  # type: ignore[arg-type]
    print_plan(options, known_work(options))
    words = capsys.readouterr().out.split()
    hours, makespan_hours = float(words[words.index("to") - 1]), float(words[words.index("h") - 1])
    assert hours == pytest.approx(makespan_hours, rel=1e-2)


def test_a_dry_run_says_which_banks_the_budget_has_room_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(budget: float | None) -> str:
        options = SweepOptions(
            out=tmp_path,
            preset="digits",
            pairs=("resnet14-resnet8_half",),
            methods=("KD", "HSAKD*"),
            predictions="bank",
            bank_budget=budget,
        )
        print_plan(options, known_work(options))
        return capsys.readouterr().out.rpartition("; ")[2].strip()

    assert said(None) == "the budget is half of the disk that is free there (--bank-budget)"
    assert said(1e-6) == "the budget is 1e-06 GB, but a bank takes up to 0.01366 GB: teachers whose bank is larger are asked live"
    assert said(0.0138) == "the budget is 0.0138 GB: a bank gives way to others once no trial has it open"
    assert said(0.014) == "the budget is 0.014 GB"


def test_a_dry_run_says_where_no_bank_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = SweepOptions(out=tmp_path, preset="imagenet", methods=("HSAKD*",), predictions="bank", bank_budget=1.0)
    print_plan(options, known_work(options))
    assert "disk of --bank-dir: none, as crops of images that stay in their files are too many" in capsys.readouterr().out


def test_what_is_done_is_neither_priced_nor_counted(tmp_path: Path) -> None:
    options = SweepOptions(out=tmp_path, preset="digits", methods=("Student",), pairs=("resnet14-resnet8_half",))
    trials, store, cost = unique_trials(known_work(options)), ResultStore(tmp_path), CostModel("cpu")
    config = next(iter(trials.values()))
    store.weights_path(config.trial_id).parent.mkdir(parents=True)
    store.weights_path(config.trial_id).write_bytes(b"weights")
    store.write_trial(record(config, 60.0, device="cpu"), [])
    done = read_done(store, trials, cost)
    assert done == {config.trial_id}
    result = forecast(options, trials, done, cost, Packing(), 1)
    assert result.num_trials == 1
    assert result.makespan_hours == pytest.approx(60 / 3600)


def test_what_a_search_has_trained_is_not_forecast_again(tmp_path: Path) -> None:
    options = SweepOptions(out=tmp_path, preset="digits", pairs=("resnet14-resnet8_half",), methods=("HSAKD-tuned",), trials=3, seeds=2)
    store, cost = ResultStore(tmp_path), CostModel("cpu")
    schedule, trials = Schedule(options, store, lambda config: store.finished(config.trial_id)), unique_trials(known_work(options))
    left: list[int] = []
    while True:
        store.write_plan(schedule.plan())
        done = read_done(store, trials, cost) | read_searched(options, store)
        left.append(forecast(options, trials, done, cost, Packing(), 2).num_trials)
        config = schedule.next_trial()
        if config is None:
            break
        value = 90.0 if config.objective.temperature != 3.0 else 50.0  # another setting than the paper's wins
        ended = TrialRecord.of(config, status="complete", top1_val=value, epochs_done=config.optim.epochs, total_seconds=60.0)
        store.weights_path(config.trial_id).parent.mkdir(parents=True)
        store.weights_path(config.trial_id).touch()
        store.write_trial(ended, [])
        schedule.complete(config.trial_id, ended)
    assert left == list(range(len(left) - 1, -1, -1))
    other = replace(options, epochs=2)
    assert read_searched(other, store) == set()


def test_the_table_of_data_sets_is_that_of_their_readers() -> None:
    assert set(DATASET_TABLE) == set(DATASETS)
    for name, facts in DATASET_TABLE.items():
        views = DATASETS[name].views
        assert facts.num_views == (0 if views is None else views.num_views)


def test_shares_of_a_gpu_are_by_network_and_grow_when_memory_runs_out() -> None:
    packing = Packing(trials_per_gpu=2, fractions=parse_fractions(["resnet20=0.25"]))
    assert packing.share("resnet20") == 0.25
    assert packing.share("wrn_40_2") == 0.5
    assert packing.most_per_gpu() == 4
    assert packing.loosen("resnet20") == pytest.approx(1 / 3)
    assert packing.loosen("wrn_40_2") == packing.loosen("wrn_40_2") == 1.0
    packing.alone.add("abc")
    assert packing.share("resnet20", "abc") == 1.0
    for text in ("resnet20", "resnet20=0", "resnet20=1.5", "nothing=0.5", "resnet20=a"):
        with pytest.raises(ValueError, match="--gpu-fraction"):
            parse_fractions([text])


def test_a_frozen_backbone_costs_its_forward_pass_only() -> None:
    factory = TrialFactory(paper())
    frozen, joint, facts = factory.frozen_teacher("wrn_40_2", 0), factory.joint_teacher("wrn_40_2", 0), network_facts("wrn_40_2")
    rows = num_train_images(joint) * 4
    branches = sum(facts.branch_multi_adds)
    assert cost_of(joint) == pytest.approx(rows * joint.optim.epochs * 3 * (facts.multi_adds + branches))
    assert cost_of(frozen) == pytest.approx(rows * frozen.optim.epochs * (facts.multi_adds + 3 * branches))
