"""Trials on several devices, as processes of this machine that talk through gloo: the numbers of one process, and nothing left behind."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hsakd.config import DataConfig, FolderConfig, NumericsConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.image_folder import scan_image_folder
from hsakd.records import EpochMetrics
from hsakd.store import ResultStore
from hsakd.training import loop
from hsakd.training.checkpoint import RESUME_FILE, load_resume, save_resume
from hsakd.training.ranks import RankDied, cause_of, run_rank
from hsakd.training.team import Team
from hsakd.training.trial import RunContext, TrialInterrupted, run_trial
from sweeps.engine.cluster import temporary_folder

ROOT = Path(__file__).parents[2]
OPTIM = OptimConfig(epochs=2, batch_size=8, learning_rate=0.1, milestones=(1,), nesterov=False, weight_decay=1e-4, batch_shards=2)
EXACT = NumericsConfig(precision="float64")


def data_of(photos: Path) -> DataConfig:
    found = scan_image_folder(photos)
    folder = FolderConfig(sha256=found.sha256, num_classes=len(found.classes), num_train_images=len(found.train), padding=0, has_flip=True)
    return DataConfig(dataset="imagefolder", image_size=32, augmentation="imagenet", folder=folder)


def teacher_of(photos: Path, network: str = "resnet20") -> TrialConfig:
    terms = (("task", 1.0), ("ce_q", 1.0))
    optim = replace(OPTIM, epochs=1, milestones=())
    return TrialConfig(network=network, data=data_of(photos), optim=optim, objective=ObjectiveConfig(terms=terms), numerics=EXACT)


def student_of(teacher: TrialConfig, network: str = "resnet8_half") -> TrialConfig:
    objective = ObjectiveConfig(terms=(("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0)))
    return replace(teacher, network=network, teacher=teacher, objective=objective, optim=OPTIM, seed=1)


def context(root: Path, photos: Path, **changes: object) -> RunContext:
    return replace(RunContext(store=ResultStore(root), data_dir=photos), **changes)  # type: ignore[arg-type]


def differ_little(first: ResultStore, second: ResultStore, config: TrialConfig, tolerance: float) -> None:
    """Hold two runs of a trial together: each epoch's losses and accuracies, the weights and BN's statistics."""
    ours, theirs = (store.read_epochs(config.trial_id) for store in (first, second))
    assert [row.epoch for row in ours] == [row.epoch for row in theirs] == list(range(config.optim.epochs))
    for own, other in zip(ours, theirs, strict=True):
        assert own.loss == pytest.approx(other.loss, rel=tolerance)
        assert own.loss_terms == pytest.approx(other.loss_terms, rel=tolerance)
        assert (own.top1_test, own.top1_test_peer) == (other.top1_test, other.top1_test_peer)
    weights, other_weights = (load_file(store.weights_path(config.trial_id)) for store in (first, second))
    assert weights.keys() == other_weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, other_weights[name], rtol=1e3 * tolerance, atol=1e3 * tolerance, msg=name)
    records = [store.read_trial(config.trial_id) for store in (first, second)]
    assert records[0] is not None
    assert records[1] is not None
    assert records[0].branch_top1_joint == records[1].branch_top1_joint


def children_of(pid: int) -> list[int]:
    """The running processes that `pid` started, and theirs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found += [int(entry.name), *children_of(int(entry.name))]
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def alone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and its student, both trained by one process."""
    root = tmp_path_factory.mktemp("alone")
    teacher = teacher_of(photos)
    for config in (teacher, student_of(teacher)):
        assert run_trial(config, context(root, photos)).status == "complete"
    return root


def with_teacher(alone: Path, teacher: TrialConfig, root: Path) -> ResultStore:
    """A new folder that has the teacher only."""
    source, store = ResultStore(alone), ResultStore(root)
    for path in source.root.glob(f"*/{teacher.trial_id}*"):
        copy = root / path.relative_to(source.root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
    return store


def test_two_ranks_compute_the_losses_of_one_process_with_the_same_batch(alone: Path, photos: Path, tmp_path: Path) -> None:
    teacher = teacher_of(photos)
    store = with_teacher(alone, teacher, tmp_path)
    reported: list[EpochMetrics] = []
    record = run_trial(student_of(teacher), context(tmp_path, photos, num_ranks=2, loader_workers=1), report=reported.append)
    assert (record.status, record.num_ranks) == ("complete", 2)
    assert [row.epoch for row in reported] == [0, 1]
    differ_little(store, ResultStore(alone), student_of(teacher), 1e-9)
    assert multiprocessing.active_children() == []


def test_the_record_counts_what_a_bank_served_to_every_rank(tmp_path: Path) -> None:
    optim = replace(OPTIM, epochs=1, milestones=())
    teacher = TrialConfig(
        network="resnet8_half", data=DataConfig(dataset="digits", train_subset=16), optim=optim, taps=(), numerics=NumericsConfig()
    )
    objective = ObjectiveConfig(terms=(("task", 1.0), ("kd", 1.0)))
    student = replace(teacher, teacher=teacher, objective=objective, numerics=NumericsConfig(teacher_predictions="bank"), seed=1)
    own = RunContext(store=ResultStore(tmp_path), bank_dir=tmp_path / "banks")
    run_trial(teacher, own)
    cold = run_trial(student, replace(own, num_ranks=2))
    assert (cold.num_ranks, cold.predictions_source, cold.bank_hits, cold.bank_misses) == (2, "bank", 0, 16)


@pytest.mark.slow
def test_resnet34_teaches_resnet18_on_two_ranks_as_in_one_process(photos: Path, tmp_path: Path) -> None:
    teacher = replace(teacher_of(photos, "resnet34_imagenet"), numerics=NumericsConfig())
    student = replace(student_of(teacher, "resnet18_imagenet"), optim=replace(OPTIM, epochs=1, milestones=()))
    run_trial(teacher, context(tmp_path / "one", photos))
    run_trial(student, context(tmp_path / "one", photos))
    with_teacher(tmp_path / "one", teacher, tmp_path / "two")
    assert run_trial(student, context(tmp_path / "two", photos, num_ranks=2)).status == "complete"
    differ_little(ResultStore(tmp_path / "one"), ResultStore(tmp_path / "two"), student, 1e-4)  # float32


def test_a_batch_in_parts_has_statistics_of_its_own_in_each(photos: Path, tmp_path: Path) -> None:
    config = replace(teacher_of(photos, "resnet8_half"), optim=replace(OPTIM, epochs=1, milestones=()))
    whole = replace(config, optim=replace(config.optim, batch_shards=1))
    assert config.trial_id != whole.trial_id
    losses = [run_trial(each, context(tmp_path, photos)).epochs_done for each in (config, whole)]
    assert losses == [1, 1]
    store = ResultStore(tmp_path)
    assert store.read_epochs(config.trial_id)[0].loss != store.read_epochs(whole.trial_id)[0].loss


@pytest.mark.slow
def test_two_networks_taught_by_each_other_on_two_ranks_are_those_of_one_process(photos: Path, tmp_path: Path) -> None:
    terms = (("task", 1.0), ("ce_q", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))
    optim = replace(OPTIM, epochs=1, milestones=())
    config = replace(
        teacher_of(photos), network="resnet18_imagenet", peer="resnet18_imagenet", objective=ObjectiveConfig(terms=terms), optim=optim
    )
    run_trial(config, context(tmp_path / "one", photos))
    run_trial(config, context(tmp_path / "two", photos, num_ranks=2))
    differ_little(ResultStore(tmp_path / "one"), ResultStore(tmp_path / "two"), config, 1e-9)


@pytest.mark.slow
def test_the_frozen_regime_and_mixed_precision_on_two_ranks(photos: Path, tmp_path: Path) -> None:
    backbone = replace(teacher_of(photos, "resnet14"), taps=(), objective=ObjectiveConfig(), optim=OPTIM)
    frozen = replace(teacher_of(photos, "resnet14"), backbone=backbone)
    for root, ranks in ((tmp_path / "one", 1), (tmp_path / "two", 2)):
        for config in (backbone, frozen):
            assert run_trial(config, context(root, photos, num_ranks=ranks)).status == "complete"
    differ_little(ResultStore(tmp_path / "one"), ResultStore(tmp_path / "two"), frozen, 1e-9)
    weights = tmp_path / "two" / "checkpoints" / backbone.trial_id / "weights.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    imported = replace(backbone, optim=OptimConfig(epochs=0, milestones=()), imported_sha256=digest)
    store = ResultStore(tmp_path / "two")
    store.imported_path(digest).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(weights, store.imported_path(digest))
    known, read = (
        run_trial(backbone, context(tmp_path / "two", photos)),
        run_trial(imported, context(tmp_path / "two", photos, num_ranks=2)),
    )
    assert (read.status, read.top1_last, read.num_ranks) == ("complete", known.top1_last, 2)
    mixed = replace(teacher_of(photos, "resnet14"), numerics=NumericsConfig(precision="bfloat16"))
    assert run_trial(mixed, context(tmp_path / "two", photos, num_ranks=2)).status == "complete"
    run_trial(mixed, context(tmp_path / "one", photos))
    one, two = (ResultStore(tmp_path / name).read_epochs(mixed.trial_id)[0].loss for name in ("one", "two"))
    assert one == pytest.approx(two, rel=0.02)  # bfloat16 has 8 bits


@pytest.mark.slow
def test_two_ranks_that_were_stopped_or_found_a_broken_checkpoint_end_as_undisturbed_ones(
    alone: Path, photos: Path, tmp_path: Path
) -> None:
    teacher = teacher_of(photos)
    config = student_of(teacher)
    store = with_teacher(alone, teacher, tmp_path)
    asked: list[int] = []
    ranks = context(tmp_path, photos, num_ranks=2)
    with pytest.raises(TrialInterrupted, match=rf"trial {config.trial_id} stopped at epoch 1, step \d"):
        run_trial(config, ranks, report=lambda row: asked.append(row.epoch), should_stop=lambda: bool(asked))
    assert multiprocessing.active_children() == []
    resume = store.checkpoint_dir(config.trial_id) / RESUME_FILE
    kept = resume.read_bytes()
    assert run_trial(config, ranks).status == "complete"
    differ_little(store, ResultStore(alone), config, 1e-9)
    for path in tmp_path.glob(f"*/{config.trial_id}.parquet"):
        path.unlink()
    resume.write_bytes(kept[: len(kept) // 2])
    assert run_trial(config, ranks).status == "complete"
    assert len(list((tmp_path / "set_aside").iterdir())) == 1
    differ_little(store, ResultStore(alone), config, 1e-9)


def run_rank_on_a_slow_disk(team: Team, *others: Any) -> None:
    """A rank's process whose checkpoints take a second to write."""

    def write_slowly(folder: Path, state: dict[str, Any]) -> None:
        time.sleep(1)
        save_resume(folder, state)

    loop.save_resume = write_slowly
    run_rank(team, *others)


def test_ranks_that_are_stopped_wait_for_the_leader_s_checkpoint(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks meet in a folder with a space in its name."""
    (tmp_path / "a b").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a b"))
    monkeypatch.setattr("hsakd.training.ranks.run_rank", run_rank_on_a_slow_disk)
    monkeypatch.setattr("hsakd.training.ranks.GRACE_SECONDS", 0.0)
    config = teacher_of(photos, "resnet8_half")
    with pytest.raises(TrialInterrupted, match="stopped at epoch 0, step 0"):
        run_trial(config, context(tmp_path, photos, num_ranks=2), should_stop=lambda: True)
    assert load_resume(ResultStore(tmp_path).checkpoint_dir(config.trial_id), config.trial_id) is not None
    assert list((tmp_path / "a b").iterdir()) == []


@pytest.mark.slow
def test_an_error_in_one_rank_is_the_trial_s_and_ends_all(alone: Path, photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "photos"
    shutil.copytree(photos, broken)
    teacher = teacher_of(photos)
    config = student_of(teacher)
    with_teacher(alone, teacher, tmp_path / "out")
    scan_image_folder(broken)  # digested while whole
    (broken / "train" / "one" / "00.jpg").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"(00\.jpg can't be decoded|are not those that this trial was planned with)"):
        run_trial(config, context(tmp_path / "out", broken, num_ranks=2))
    with pytest.raises(ValueError, match="batch_shards is 2; accepted: a multiple of the trial's 3 ranks"):
        run_trial(config, context(tmp_path / "out", photos, num_ranks=3))
    assert multiprocessing.active_children() == []


SCRIPT = """
import sys
from pathlib import Path
from hsakd.config import TrialConfig
from hsakd.store import ResultStore
from hsakd.training.trial import RunContext, run_trial
if __name__ == "__main__":
    out, photos, config = sys.argv[1:]
    context = RunContext(store=ResultStore(Path(out)), data_dir=Path(photos), num_ranks=2, loader_workers=1)
    run_trial(TrialConfig.from_json(Path(config).read_text()), context, report=lambda row: print("epoch", flush=True))
"""


def test_a_trial_ends_for_the_error_that_is_nearest_to_the_cause() -> None:
    killed, aborted = RankDied("killed"), RankDied("aborted")
    aborted.has_aborted = True
    lost, own = RuntimeError("connection closed by peer"), ValueError("no such file")
    assert cause_of([lost, killed, own]) is own
    assert cause_of([lost, killed, aborted]) is killed
    assert cause_of([aborted, lost]) is lost


@pytest.mark.parametrize("killed", ["trial", pytest.param("rank", marks=pytest.mark.slow)])
def test_a_kill_of_the_trial_or_of_a_rank_leaves_no_rank(killed: str, photos: Path, tmp_path: Path) -> None:
    long = replace(teacher_of(photos, "resnet8_half"), optim=replace(OPTIM, epochs=10_000, milestones=()))
    (tmp_path / "trial.py").write_text(SCRIPT)
    (tmp_path / "config.json").write_text(long.to_json())
    trial = subprocess.Popen(
        [sys.executable, str(tmp_path / "trial.py"), str(tmp_path / "out"), str(photos), str(tmp_path / "config.json")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert trial.stdout is not None
    assert trial.stdout.readline() == "epoch\n", trial.communicate()
    ranks = children_of(trial.pid)
    assert len(ranks) >= 4  # two ranks with a loader each, and multiprocessing's own
    if killed == "trial":
        trial.kill()
    else:
        os.kill(next(pid for pid in ranks if children_of(pid)), signal.SIGKILL)
    _, errors = trial.communicate(timeout=900)
    assert trial.returncode != 0
    if killed == "rank":
        assert "of 2 ended with exit status -9" in errors
    until(lambda: not any(map(is_running, ranks)), seconds=900)
    left = list(Path(tempfile.gettempdir()).glob(f"hsakd-ranks-*-{trial.pid}-*"))
    assert len(left) == (killed == "trial")
    shutil.rmtree(temporary_folder())  # as the next sweep begins
    assert not any(folder.exists() for folder in left)


def until(happened: Callable[[], bool], *, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.1)
