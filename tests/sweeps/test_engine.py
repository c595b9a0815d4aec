"""Parts of the engine that need no cluster: its temporary folder, what it reserves for a trial, what it says of a node."""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hsakd.config import DataConfig, TrialConfig
from hsakd.data import DataMissing
from hsakd.records import EpochMetrics, TrialRecord
from hsakd.store import ResultStore
from sweeps import packing
from sweeps.attempts import note_error, read_errors
from sweeps.check_study import differences
from sweeps.cli import SweepOptions
from sweeps.engine.cluster import LONGEST_ROOT, temporary_folder
from sweeps.engine.nodes import Nodes, check_gpus, num_slots
from sweeps.engine.options import EngineOptions, Unfit
from sweeps.engine.run import run_schedule
from sweeps.engine.searcher import ScheduleSearcher, Searcher, resources_of
from sweeps.engine.worker import EPOCH_JSON, run_unit
from sweeps.fitness import TOKEN_FILE, Expected, node_problem, present_versions
from sweeps.packing import Packing
from sweeps.schedule import Schedule


def test_a_killed_drivers_temporary_folder_is_deleted_and_a_living_ones_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (short / f"hsakd-{ended.pid}-abc").mkdir()
    (short / f"hsakd-{os.getpid()}-abc").mkdir()
    (short / "hsakd-banks").mkdir()
    own = temporary_folder()
    assert own.parent == short
    assert sorted(path.name for path in short.iterdir()) == sorted([own.name, f"hsakd-{os.getpid()}-abc", "hsakd-banks"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 40)))
    fallback = temporary_folder()
    assert len(str(fallback.parent)) <= LONGEST_ROOT
    fallback.rmdir()


def test_what_is_reserved_for_a_trial_keeps_it_off_unfit_nodes() -> None:
    free = resources_of({"resources": {"CPU": 1, "GPU": 0.25}, "avoided": []})
    assert free.required_resources == {"CPU": 1, "GPU": 0.25}
    bound = resources_of({"resources": {"CPU": 1, "GPU": 0.25}, "avoided": ["a", "b"]})
    assert bound != free


def test_more_threads_than_cores_are_said_before_they_start(tmp_path: Path) -> None:
    said: list[str] = []
    cores = len(os.sched_getaffinity(0))
    options = EngineOptions(out=tmp_path, gpus=2, packing=Packing(trials_per_gpu=cores), threads=3)
    check_gpus(options, Namespace(num_present=2.0), said.append)  # type: ignore[arg-type]
    assert said == [f"{2 * cores} trials of 3 CPUs each share {cores} CPU cores; fewer --trials-per-gpu may be faster"]
    check_gpus(replace(options, address="auto"), Namespace(num_present=2.0, fit={}), said.append)  # type: ignore[arg-type]
    assert len(said) == 1
    loading = EngineOptions(out=tmp_path, gpus=2, context={"loader_workers": cores})
    check_gpus(loading, Namespace(num_present=2.0), said.append)  # type: ignore[arg-type]
    assert said[1:] == [f"2 trials of {1 + cores} CPUs each share {cores} CPU cores; fewer --loader-workers may be faster"]
    node = Namespace(num_present=8.0, fit={"node": {"GPU": 8.0, "CPU": 16.0}})
    clustered = EngineOptions(out=tmp_path, gpus=8, address="auto", context={"loader_workers": 4})
    check_gpus(clustered, node, said.append)  # type: ignore[arg-type]
    assert said.pop().startswith("the nodes' CPUs are enough for 3 of 8 trials at once, 5 CPUs each; fewer")
    assert num_slots(clustered, node) == 3  # type: ignore[arg-type]
    growing = replace(clustered, gpus=16, packing=Packing(trials_per_gpu=2), context={})
    assert num_slots(growing, node) == 16 + 2  # type: ignore[arg-type]  # what waits for a GPU that isn't there has an autoscaler add it
    on_cpus = EngineOptions(out=tmp_path, gpus=0, threads=cores + 1)
    check_gpus(on_cpus, Namespace(num_present=float(cores)), said.append)  # type: ignore[arg-type]
    assert said[2:] == [f"a trial's {cores + 1} CPUs share {cores} CPU cores; fewer --threads may be faster"]


def test_processes_that_decode_images_count_as_cpus_of_each_rank(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, gpus=0, present=6, packing=Packing(ranks_per_trial=2), context={"loader_workers": 1})
    assert num_slots(searcher.options, searcher.nodes) == 1
    unit = searcher.suggest("a")
    assert unit["resources"] == {"CPU": 4}
    assert searcher.suggest("b") is None
    searcher.nodes.fit["late"] = {"CPU": 2.0}
    assert searcher.suggest("b") is not None


def test_a_trial_may_wait_for_a_node_whose_check_is_under_way(tmp_path: Path) -> None:
    nodes = Nodes(EngineOptions(out=tmp_path, gpus=2), print)
    nodes.problems, nodes.checks = {"unfit": "no torch"}, {"late": object()}
    assert nodes.avoided == ("unfit",)  # else it could go nowhere once the other nodes are lost


class Joining(Nodes):
    """Nodes of 2 CPUs and 2 GPUs that join one by one, each after so many looks."""

    after: tuple[int, ...] = ()
    looks = 0

    def refresh(self) -> None:
        self.looks += 1
        self.fit = {f"node{number}": {"CPU": 2.0, "GPU": 2.0} for number, after in enumerate(self.after) if after <= self.looks}


def test_the_first_node_of_a_cluster_is_waited_for_and_with_require_gpus_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    beats: list[int] = []

    def waited(*after: int, **changes: object) -> Joining:
        nodes = Joining(EngineOptions(out=tmp_path, address="auto", **changes), said.append)  # type: ignore[arg-type]
        nodes.after = after
        nodes.wait_for_checks(lambda: beats.append(nodes.looks))
        return nodes

    assert waited(3, 5).num_present == 2
    assert said == ["the cluster has 0 CPUs yet; waiting for more, up to 300 s"]
    assert waited(3, 5, gpus=4).num_present == 2
    assert waited(3, 5, gpus=4, requires_gpus=True).num_present == 4
    assert not beats
    monkeypatch.setattr("sweeps.engine.nodes.HEARTBEAT_SECONDS", 0.0)
    waited(3)
    assert len(beats) == 2  # status.py does not take the driver for silent
    monkeypatch.setattr("sweeps.engine.nodes.JOIN_SECONDS", 0.2)
    with pytest.raises(Unfit, match="--address is auto, whose nodes have no CPU for trials; accepted"):
        waited(1000)
    nodes = waited(1, 1000, gpus=4, requires_gpus=True)
    with pytest.raises(Unfit, match="--gpus is 4, but the cluster has 2"):
        check_gpus(nodes.options, nodes, said.append)


class Checked(Joining):
    """A node that joins at the last moment and whose check takes longer."""

    def refresh(self) -> None:
        self.looks += 1
        self.checks = {"late": object()} if 3 <= self.looks < 8 else {}
        self.fit = {"late": {"CPU": 2.0, "GPU": 2.0}} if self.looks >= 8 else {}


def test_a_node_that_joins_last_is_checked_before_the_cluster_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.engine.nodes.JOIN_SECONDS", 0.35)
    nodes = Checked(EngineOptions(out=tmp_path, address="auto", gpus=2), lambda _: None)
    nodes.wait_for_checks()
    assert nodes.num_present == 2


def test_a_cluster_that_lacks_gpus_is_asked_for_one_place_more(tmp_path: Path) -> None:
    packing, address = Packing(ranks_per_trial=2), "auto"
    searcher = searcher_of(tmp_path, seeds=4, gpus=8, present=4, packing=packing, address=address)
    assert [searcher.suggest(name) is not None for name in "abc"] == [True, True, True]
    assert searcher.suggest("d") is None
    assert num_slots(searcher.options, searcher.nodes) == 3
    limited = replace(searcher.options, time_limit_seconds=3600.0)
    assert num_slots(limited, searcher.nodes) == 2  # what waits in Ray may start too late


def test_nodes_that_join_while_nothing_runs_are_seen(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, gpus=0, present=0)
    nodes = Joining(searcher.options, print)
    searcher.nodes, nodes.after = nodes, (2,)
    assert searcher.suggest("a") is None  # Ray asks for ten minutes, and does nothing else
    assert searcher.suggest("a") is None
    assert searcher.suggest("a") is not None


def test_a_node_with_another_version_or_folder_is_not_fit(tmp_path: Path) -> None:
    (tmp_path / TOKEN_FILE).write_text("words")
    versions = present_versions()
    assert node_problem(Expected(out=tmp_path, token="words", versions=tuple(versions.items()))) == ""
    other = {**versions, "torch": "1.0.0"}
    problem = node_problem(Expected(out=tmp_path, token="words", versions=tuple(other.items())))
    assert problem == f"torch is {versions['torch']}; the driver has 1.0.0"
    assert "timm is " in node_problem(Expected(out=tmp_path, token="words", versions=(("timm", "0.0.1"),)))
    assert node_problem(Expected(out=tmp_path, token="words", versions=(("timm", ""),))) == ""
    assert "is not the driver's folder" in node_problem(Expected(out=tmp_path, token="other", versions=tuple(versions.items())))
    assert "is not the driver's folder" in node_problem(Expected(out=tmp_path / "no", token="words", versions=tuple(versions.items())))


def test_a_node_is_unfit_without_the_data_it_was_checked_for_and_not_without_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_trial(*_: object, **__: object) -> TrialRecord:
        raise DataMissing("not there")

    monkeypatch.setattr("hsakd.training.trial.run_trial", run_trial)
    monkeypatch.setattr("ray.get_runtime_context", lambda: Namespace(get_node_id=lambda: "node"))
    (tmp_path / TOKEN_FILE).write_text("words")
    config = TrialConfig(network="resnet8_half", data=DataConfig(dataset="stl10"))
    expected = Expected(out=tmp_path, token="words", versions=(), dataset="stl10")
    unit = {
        "out": str(tmp_path),
        "expected": expected,
        "run": EngineOptions(out=tmp_path).run,
        "config_json": config.to_json(),
        "context": {},
    }
    assert run_unit(unit) == {"outcome": "unfit", "node": "node", "problem": "not there"}
    with pytest.raises(DataMissing):
        run_unit({**unit, "expected": replace(expected, dataset="cifar100")})


def searcher_of(
    out: Path,
    *,
    methods: tuple[str, ...] = ("Student",),
    seeds: int = 2,
    gpus: int = 2,
    present: float = 1,
    **changes: object,
) -> ScheduleSearcher:
    """Ray's view of a small sweep, without Ray: `present` GPUs and CPUs are there."""
    store = ResultStore(out)
    sweep = SweepOptions(out=out, preset="digits", pairs=("resnet14-resnet8_half",), methods=methods, trials=2, epochs=3, seeds=seeds)
    options = EngineOptions(out=out, gpus=gpus, **changes)  # type: ignore[arg-type]
    nodes = Nodes(options, print)
    nodes.fit = {"node": {"GPU": present, "CPU": present}}
    return ScheduleSearcher(Schedule(sweep, store, lambda config: store.finished(config.trial_id)), options, nodes, print)


def write_complete(store: ResultStore, config: TrialConfig) -> None:
    """Leave behind what a worker leaves, on paper."""
    store.weights_path(config.trial_id).parent.mkdir(parents=True, exist_ok=True)
    store.weights_path(config.trial_id).touch()
    store.write_trial(TrialRecord.of(config, status="complete", epochs_done=3, weights_sha256=f"digest of {config.trial_id}"), [])


def test_a_trial_that_waits_for_a_place_is_not_started_when_its_time_has_passed(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, time_limit_seconds=1000.0)
    assert searcher.suggest("a") is not None
    assert searcher.suggest("b") is None
    held = searcher.held
    assert held is not None
    searcher.options = replace(searcher.options, started=time.monotonic() - 999)
    searcher.on_trial_complete("a", {"outcome": "interrupted"})
    assert searcher.suggest("c") in (None, Searcher.FINISHED)
    assert held.trial_id not in searcher.schedule.running
    assert searcher.held is None


@pytest.mark.parametrize("gpus", [0, 2])
def test_trials_that_ran_when_a_machines_memory_ended_are_tried_again_one_at_a_time(tmp_path: Path, gpus: int) -> None:
    def fresh() -> ScheduleSearcher:
        return searcher_of(tmp_path, gpus=gpus, present=2, seeds=9, packing=Packing(trials_per_gpu=4))

    searcher, ran = fresh(), list[str]()
    while searcher.suggest(f"t{len(ran)}") is not None:
        ran.append(searcher.trial_ids[f"t{len(ran)}"])
    waited = searcher.held
    assert waited is not None
    assert len(ran) == (8 if gpus else 2)
    searcher.take_lack_of_host_memory("Task was killed due to the node running low on memory.")
    store, schedule, packing = searcher.schedule.store, searcher.schedule, searcher.packing
    assert not schedule.running
    assert packing.host_alone == set(ran)
    assert [len(read_errors(store, trial_id)) for trial_id in (ran[0], waited.trial_id)] == [1, 0]
    assert packing.fractions == {"resnet8_half": 1 / 3}
    again = ScheduleSearcher(schedule, searcher.options, searcher.nodes, print)  # the same command's next Ray
    unit = again.suggest("alone")
    assert again.trial_ids["alone"] in ran
    assert unit["resources"] == ({"CPU": 1, "GPU": 1 / 3} if gpus else {"CPU": 1})
    again.nodes.fit["late"] = {"GPU": 2.0, "CPU": 2.0}
    assert again.suggest("beside") is None  # not on another GPU, nor on another node
    again.take_lack_of_host_memory("Task was killed due to the node running low on memory.")
    records = [store.read_trial(trial_id) for trial_id in store.trial_ids()]
    assert [(record.status, record.attempts) for record in records if record is not None] == [("out_of_memory", 2)]
    assert packing.fractions == fresh().packing.fractions == {"resnet8_half": 1 / 3}
    assert fresh().packing.host_alone == set(ran)  # the next command's


def test_why_a_bank_is_not_used_is_said_once_and_as_soon_as_it_is_known(tmp_path: Path) -> None:
    said: list[str] = []
    searcher = searcher_of(tmp_path, present=2)
    searcher.ends.say = said.append
    own_ids = []
    for name in "ab":
        assert searcher.suggest(name) is not None
        own_ids.append(searcher.trial_ids[name])
        epoch = EpochMetrics(
            trial_id=own_ids[-1], epoch=0, learning_rate=0.1, loss=1.0, loss_terms={"task": 1.0}, predictions_fallback="no room"
        )
        searcher.on_epoch(name, {EPOCH_JSON: json.dumps(asdict(epoch))})
    assert said == ["teachers are asked live: no room"]
    config, store = searcher.schedule.configs[own_ids[0]], searcher.schedule.store
    write_complete(store, config)
    full = TrialRecord.of(config, status="complete", predictions_fallback="bank filling stopped: No space left on device")
    store.write_trial(full, [])
    searcher.on_trial_complete("a", {"outcome": "complete"})
    assert said[-1] == "teachers are asked live: bank filling stopped: No space left on device"


def test_attempts_that_died_without_a_word_count_as_those_that_left_one(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path)
    assert searcher.suggest("a") is not None
    own_id, store = searcher.trial_ids["a"], searcher.schedule.store
    searcher.ends.note_crash(own_id)
    note_error(store, own_id, 2, RuntimeError("a word"))
    searcher.on_trial_complete("a", error=True)  # Ray may give a trial up before --max-failures
    assert store.read_trial(own_id) is None
    assert searcher.suggest("b") is not None
    assert searcher.trial_ids["b"] == own_id
    assert [error.partition("\n")[0] for error in read_errors(store, own_id)] == [
        "1: WorkerDied: the worker process died without a word (killed, or its node was lost)",
        "2: RuntimeError: a word",
    ]
    searcher.on_trial_complete("b", error=True)
    record = store.read_trial(own_id)
    assert record is not None
    assert (record.status, record.attempts, record.error.partition(": ")[0]) == ("failed", 3, "3")


def test_a_stop_file_that_somebody_else_put_there_ends_the_sweep_as_a_signal_does(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path)
    assert searcher.suggest("a") is not None
    searcher.on_trial_complete("a", {"outcome": "interrupted"})
    assert searcher.schedule.is_stopping
    assert not searcher.schedule.failed
    assert not searcher.schedule.running


def test_the_earlier_record_of_a_trial_whose_weights_are_wanted_now_is_not_taken_for_its_end(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, methods=("HSAKD*",))
    store, schedule = searcher.schedule.store, searcher.schedule
    assert searcher.suggest("a") is not None
    teacher = schedule.configs[searcher.trial_ids["a"]]
    store.write_trial(TrialRecord.of(teacher, status="complete", has_weights=False), [])
    searcher.on_trial_complete("a", {"outcome": "interrupted"})
    assert teacher.trial_id not in schedule.done
    schedule.is_stopping = False
    assert searcher.suggest("b") is not None
    write_complete(store, teacher)
    searcher.on_trial_complete("b", {"outcome": "complete"})
    assert schedule.done[teacher.trial_id].has_weights


def test_a_pruned_trial_that_two_drivers_have_seen_keeps_the_epochs_of_both(tmp_path: Path) -> None:
    """The checkpoint's epochs are reported again, so the second driver's record has them; the study has each once."""

    def row(trial_id: str, epoch: int) -> dict[str, object]:
        metrics = EpochMetrics(
            trial_id=trial_id,
            epoch=epoch,
            learning_rate=0.1,
            loss=1.0,
            loss_terms={"task": 1.0},
            top1_val=10.0 + epoch,
            train_seconds=2.0,
            predictions_source=("live", "bank")[epoch],
            predictions_fallback=("no room", "")[epoch],
            bank_hits=epoch * 7,
        )
        return {EPOCH_JSON: json.dumps(asdict(metrics))}

    def asked(searcher: ScheduleSearcher) -> str:
        for number in range(20):
            name = f"t{number}"
            assert searcher.suggest(name) is not None
            own_id = searcher.trial_ids[name]
            config = searcher.schedule.configs[own_id]
            if config.role == "student" and config.data.validation_fraction > 0:
                return name
            write_complete(searcher.schedule.store, config)
            searcher.on_trial_complete(name, {"outcome": "complete"})
        raise AssertionError("no search trial was started")

    first = searcher_of(tmp_path, methods=("HSAKD-tuned",), present=2)
    name = asked(first)
    own_id = first.trial_ids[name]
    assert not first.on_epoch(name, row(own_id, 0))
    second = searcher_of(tmp_path, methods=("HSAKD-tuned",), present=2)
    name = asked(second)
    assert second.trial_ids[name] == own_id
    for epoch in (0, 1):
        second.on_epoch(name, row(own_id, epoch))
    second.ends.pruned.add(own_id)
    second.on_trial_complete(name, {})
    store = second.schedule.store
    record = store.read_trial(own_id)
    assert record is not None
    assert (record.status, record.epochs_done, record.train_seconds) == ("pruned", 2, 4.0)
    assert (record.predictions_source, record.predictions_fallback, record.bank_hits) == ("bank", "no room", 7)
    assert record.config.teacher is not None
    assert record.teacher_weights_sha256 == f"digest of {record.config.teacher.trial_id}"
    assert set(record.versions) >= {"python", "torch", "numpy"}
    assert [epoch.top1_val for epoch in store.read_epochs(own_id)] == [10.0, 11.0]
    assert not second.ends.epochs  # of trials that have ended nothing is kept
    assert not second.ends.begun
    assert differences(store) == []


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", None), ("50000 100000", 1), ("100000 100000", 1), ("garbage", None)])
def test_a_containers_share_of_the_cores_bounds_the_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int | None
) -> None:
    monkeypatch.setattr(packing, "CPU_QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(quota)
    assert packing.num_cores() == (len(os.sched_getaffinity(0)) if cores is None else cores)


def test_news_say_what_a_trial_is_for_and_of_a_search_never_the_test_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    searcher = searcher_of(tmp_path, methods=("Student", "HSAKD-tuned"), seeds=1, present=2)
    store, said, number = searcher.schedule.store, list[str](), 0
    while isinstance(searcher.suggest(f"t{number}"), dict):
        config = searcher.schedule.configs[searcher.trial_ids[f"t{number}"]]
        write_complete(store, config)
        accuracies = {"top1_last": 99.0, "top1_val": 40.0} if config.data.validation_fraction else {"top1_last": 50.0}
        store.write_trial(TrialRecord.of(config, status="complete", **accuracies), [])
        searcher.on_trial_complete(f"t{number}", {"outcome": "complete"})
        said += capsys.readouterr().out.splitlines()
        number += 1
    news = {re.split(r" {2,}", line.removeprefix("complete "), maxsplit=4)[1]: line for line in said}
    assert not [line for line in said if "99.00" in line]
    assert {"Teacher*", "search teacher", "search 0", "search 1", "Student", "HSAKD*"} <= set(news)
    assert news["search teacher"].endswith("  resnet14               seed 0  40.00 % validation top-1")
    assert news["Student"].endswith("  resnet14-resnet8_half  seed 0  50.00 % test top-1, last epoch")
    assert news["search 0"].endswith("  40.00 % validation top-1  temperature 3, kl_q 1, kl_p 1, placement 1+2+3")


def test_a_disk_that_is_full_before_the_first_trial_is_a_sentence(tmp_path: Path) -> None:
    searcher, said = searcher_of(tmp_path, gpus=0), list[str]()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # what is written fails, as on a full disk
    try:
        run_schedule(searcher.schedule, searcher.options, said.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(said) == 1
    assert re.fullmatch(r"--out can't be written \(File too large\): nothing was started; make room, then go on", said[0])
    assert searcher.schedule.is_stopping
    assert list(tmp_path.iterdir()) == []
