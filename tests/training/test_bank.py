"""The bank's promises: stored once, served as stored, shared, never wrong after a kill, a full disk or a damaged file."""

import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import tyro

from hsakd.banks import BankOptions
from hsakd.banks import main as banks_main
from hsakd.config import DataConfig, NumericsConfig
from hsakd.data import load_dataset
from hsakd.data.batches import gather_batch
from hsakd.data.datasets import Dataset
from hsakd.data.views import Batch, ViewSpace, rotate_rows
from hsakd.models import HierarchicalNet, create_network
from hsakd.training.bank import (
    META_FILE,
    BankPredictions,
    bank_bytes,
    bank_folders,
    default_bank_dir,
    disk_bytes,
    full_bytes,
    open_predictions,
)
from hsakd.training.predictions import LivePredictions, Predictions, TeacherPredictions

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.sharedctypes import Synchronized
    from multiprocessing.synchronize import Barrier

DATA = load_dataset(DataConfig(dataset="digits", train_subset=48))
VIEWS = DATA.views.num_views
FLOAT32 = NumericsConfig(teacher_predictions="bank", bank_dtype="float32")


def make_teacher(seed: int = 0) -> HierarchicalNet:
    teacher = create_network("resnet8_half", num_classes=10, seed=seed)
    with torch.no_grad():
        for _ in range(20):
            teacher(rotate_rows(gather_batch(DATA, torch.arange(48), torch.zeros(48, dtype=torch.int64), dtype=torch.float32).images, 4))
    return teacher


TEACHER = make_teacher()


def opened(
    root: Path | None,
    *,
    teacher: HierarchicalNet = TEACHER,
    numerics: NumericsConfig = FLOAT32,
    branches: tuple[int, ...] = (1, 2, 3),
    digest: str = "a",
    budget: int | None = 10**9,
    dataset: Dataset = DATA,
) -> TeacherPredictions:
    return open_predictions(
        teacher,
        branches=branches,
        num_rotations=4,
        dataset=dataset,
        numerics=numerics,
        weights_sha256=digest,
        bank_dir=root,
        budget_bytes=budget,
    )


def bank(root: Path, *, teacher: HierarchicalNet = TEACHER, numerics: NumericsConfig = FLOAT32) -> BankPredictions:
    predictions = opened(root, teacher=teacher, numerics=numerics)
    assert isinstance(predictions, BankPredictions)
    return predictions


def batch_of(indices: list[int], views: list[int]) -> tuple[Batch, torch.Tensor]:
    batch = gather_batch(DATA, torch.tensor(indices), torch.tensor(views), dtype=torch.float32)
    return batch, rotate_rows(batch.images, 4)


def same(left: Predictions, right: Predictions) -> bool:
    return all(torch.equal(a, b) for a, b in zip((left.logits, *left.joint_logits), (right.logits, *right.joint_logits), strict=True))


def distance(left: Predictions, right: Predictions) -> float:
    pairs = zip((left.logits, *left.joint_logits), (right.logits, *right.joint_logits), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-3)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cold_warm_and_live_agree_and_warm_repeats_cold_bit_for_bit(tmp_path: Path, dtype: str, tolerance: float, precision: str) -> None:
    numerics = replace(FLOAT32, bank_dtype=dtype, precision=precision)  # type: ignore[arg-type]
    asked = batch_of([3, 1, 4], [0, 5, 8])
    first = bank(tmp_path, numerics=numerics)
    cold, warm = first.predict(*asked), first.predict(*asked)
    assert (first.misses, first.hits) == (3, 3)
    assert same(cold, warm)
    assert same(cold, bank(tmp_path, numerics=numerics).predict(*asked))
    autocast = torch.bfloat16 if precision == "bfloat16" else None
    live = LivePredictions(TEACHER, branches=(1, 2, 3), num_rotations=4, autocast=autocast).predict(*asked)
    assert distance(cold, live) < tolerance
    assert cold.logits.shape == (3, 4, 10)
    assert [joint.shape for joint in cold.joint_logits] == [(3, 4, 40)] * 3


def test_a_batch_of_hits_and_misses_is_answered_in_its_order(tmp_path: Path) -> None:
    predictions = bank(tmp_path)
    predictions.predict(*batch_of([5, 7], [1, 1]))
    mixed = predictions.predict(*batch_of([2, 7, 9, 5], [1, 1, 1, 1]))
    live = LivePredictions(TEACHER, branches=(1, 2, 3), num_rotations=4).predict(*batch_of([2, 7, 9, 5], [1, 1, 1, 1]))
    assert distance(mixed, live) < 1e-5
    assert (predictions.hits, predictions.misses) == (2, 4)


def test_the_first_write_wins_between_openings(tmp_path: Path) -> None:
    first, second = bank(tmp_path), bank(tmp_path, teacher=make_teacher(seed=9))  # the same digest, so that a difference would show
    asked = batch_of([1, 2], [3, 3])
    told = first.predict(*asked)
    assert same(second.predict(*asked), told)
    assert second.misses == 0


def _answer_everything(root: Path, seed: int, start: "Barrier", answers: "Queue[list[float]]") -> None:
    predictions = bank(root, teacher=make_teacher(seed=seed))
    start.wait()
    told = [predictions.predict(*batch_of(list(range(first, first + 4)), [0] * 4)).logits for first in range(0, 48, 4)]
    answers.put(torch.cat(told).flatten().tolist())


def test_the_first_write_wins_between_processes_that_fill_at_once(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    forks = multiprocessing.get_context("fork")
    start, answers = forks.Barrier(2), forks.Queue()
    writers = [forks.Process(target=_answer_everything, args=(tmp_path, seed, start, answers)) for seed in (0, 9)]
    for writer in writers:
        writer.start()
    told = [answers.get(timeout=900) for _ in writers]
    for writer in writers:
        writer.join()
    assert told[0] == told[1]
    stored = bank(tmp_path).predict(*batch_of(list(range(48)), [0] * 48))
    assert stored.logits.flatten().tolist() == told[0]


def test_a_changed_teacher_precision_or_dtype_never_meets_an_old_bank(tmp_path: Path) -> None:
    opened(tmp_path)
    opened(tmp_path, digest="b")
    opened(tmp_path, numerics=replace(FLOAT32, bank_dtype="float16"))
    opened(tmp_path, numerics=replace(FLOAT32, precision="bfloat16"))
    opened(tmp_path)
    assert len(bank_folders(tmp_path)) == 4


def test_objectives_that_read_other_branches_share_one_bank(tmp_path: Path) -> None:
    asked = batch_of([1, 2], [3, 4])
    opened(tmp_path, branches=(2,)).predict(*asked)
    few = opened(tmp_path, branches=(2,))
    few.predict(*asked)
    assert (few.hits, few.misses) == (2, 0)
    all_branches = opened(tmp_path)
    all_branches.predict(*asked)
    assert (all_branches.hits, all_branches.misses) == (0, 2)
    assert len(bank_folders(tmp_path)) == 1


def test_an_entry_that_does_not_match_its_mark_is_computed_again(tmp_path: Path) -> None:
    asked = batch_of([6], [2])
    told = bank(tmp_path).predict(*asked)
    (folder,) = bank_folders(tmp_path)
    with (folder / "logits.data").open("r+b") as file:
        file.seek((6 * VIEWS + 2) * 4 * 10 * 4 + 17)
        file.write(b"\xff\xff")
    again = bank(tmp_path)
    assert distance(again.predict(*asked), told) < 1e-5
    assert again.misses == 1


def test_a_bank_above_its_budget_is_refused_with_the_reason_and_answers_live(tmp_path: Path) -> None:
    predictions = opened(tmp_path, budget=1000)
    assert predictions.source == "live"
    assert predictions.fallback == "the bank needs 0.000905 GB, the budget is 1e-06 GB"
    assert bank_bytes(50_000, 162, 4, 100, 3, "float16") == 84_240_000_000 + 4 * 4 * 50_000 * 162  # entries and their marks
    assert bank_folders(tmp_path) == []


@pytest.mark.parametrize("has_turns", [False, True])
def test_a_full_bank_has_the_size_that_was_computed(tmp_path: Path, has_turns: bool) -> None:
    teacher = TEACHER if has_turns else create_network("resnet8_half", num_classes=10, num_rotations=2)
    num_rotations = teacher.num_rotations
    predictions = open_predictions(
        teacher,
        branches=(1, 3),
        num_rotations=num_rotations,
        dataset=DATA,
        numerics=FLOAT32,
        weights_sha256="a",
        bank_dir=tmp_path,
        budget_bytes=bank_bytes(48, VIEWS, num_rotations, 10, 2, "float32"),
    )
    assert predictions.source == "bank"
    (folder,) = bank_folders(tmp_path)
    assert full_bytes(folder) == bank_bytes(48, VIEWS, num_rotations, 10, 2, "float32")


def test_a_folder_that_cannot_be_used_is_a_reason_not_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    predictions = opened(tmp_path / "file")
    assert predictions.source == "live"
    assert "can't be used" in predictions.fallback


def test_least_recently_used_banks_make_room_but_never_one_in_use(tmp_path: Path) -> None:
    size = bank_bytes(48, VIEWS, 4, 10, 3, "float32")
    for digest in "abc":
        predictions = opened(tmp_path, digest=digest)
        predictions.predict(*batch_of(list(range(48)), [0] * 48))
        predictions.close()
    oldest, older, newest = bank_folders(tmp_path)
    in_use = opened(tmp_path, digest="a")  # now the last to be deleted, and open
    opened(tmp_path, digest="d", budget=2 * size + disk_bytes(newest)).close()
    assert (oldest.exists(), older.exists(), newest.exists()) == (True, False, True)
    refused = opened(tmp_path, digest="e", budget=2 * size - 1)
    assert refused.fallback == "the bank needs 0.000905 GB, the budget is 0.00181 GB, and the full size of other open banks is 0.000905 GB"
    assert newest.exists()  # deleting it would not have been enough
    assert in_use.predict(*batch_of([1], [0])).logits.shape == (1, 4, 10)


def test_trials_that_start_together_share_the_budget(tmp_path: Path) -> None:
    budget = 2 * bank_bytes(48, VIEWS, 4, 10, 3, "float32")
    together = [opened(tmp_path, digest=digest, budget=budget) for digest in "abcdabcd"]  # all empty yet
    assert [predictions.source for predictions in together] == ["bank", "bank", "live", "live"] * 2
    assert sum(full_bytes(folder) for folder in bank_folders(tmp_path)) <= budget


def test_a_full_disk_turns_filling_off_and_the_answers_go_on(tmp_path: Path) -> None:
    predictions = bank(tmp_path)
    asked = batch_of([40, 41], [0, 0])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        told = predictions.predict(*asked)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert predictions.fallback.startswith("bank filling stopped: ")
    assert distance(told, predictions.live.predict(*asked)) < 1e-5
    predictions.predict(*asked)
    assert predictions.hits == 0
    assert bank(tmp_path).predict(*asked).logits.shape == (2, 4, 10)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_fills_up_while_the_bank_does_serves_nothing_wrong(small_disk: Path) -> None:
    predictions = bank(small_disk)
    asked = [batch_of(list(range(first, first + 4)), [0] * 4) for first in range(0, 48, 4)]
    told = [predictions.predict(*one) for one in asked]
    assert predictions.fallback == "bank filling stopped: No space left on device"
    assert all(distance(one, predictions.live.predict(*batch)) < 1e-5 for one, batch in zip(told, asked, strict=True))
    again = bank(small_disk)
    assert all(distance(again.predict(*batch), one) < 1e-5 for one, batch in zip(told, asked, strict=True))
    assert 0 < again.hits < 48


def _fill_for_ever(root: Path, seed: int, fills: "Synchronized[int]") -> None:
    predictions, draw = bank(root), random.Random(seed)
    while True:
        indices = draw.sample(range(48), 4)
        predictions.predict(*batch_of(indices, [draw.randrange(VIEWS) for _ in indices]))
        fills.value += 1


def test_two_writers_killed_again_and_again_leave_no_wrong_prediction(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    everything = [(index, view) for index in range(48) for view in range(VIEWS)]
    asked = [batch_of([index for index, _ in chunk], [view for _, view in chunk]) for chunk in (everything[i::9] for i in range(9))]
    expected = [LivePredictions(TEACHER, branches=(1, 2, 3), num_rotations=4).predict(*one) for one in asked]
    forks, draw = multiprocessing.get_context("fork"), random.Random(0)
    for attempt in range(10):
        counts = [forks.Value("i", 0) for _ in range(2)]
        writers = [forks.Process(target=_fill_for_ever, args=(tmp_path, 2 * attempt + i, counts[i])) for i in range(2)]
        for writer in writers:
            writer.start()
        num_fills = draw.randrange(1, 6)
        while any(count.value < num_fills for count in counts):
            time.sleep(0.001)
        time.sleep(0.01 * draw.random())  # somewhere within a fill
        for writer in writers:
            writer.kill()
            writer.join()
            assert writer.exitcode == -9
        reader = bank(tmp_path)
        for one, right in zip(asked, expected, strict=True):
            entries = (one[0].indices * VIEWS + one[0].views).numpy()
            for array, values in zip(reader.arrays, (right.logits, *right.joint_logits), strict=True):
                filled = torch.from_numpy(array.filled(entries))
                stored = torch.from_numpy(array.data[entries].copy())[filled]
                assert torch.allclose(stored, values[filled], rtol=1e-4, atol=1e-5)
        reader.close()
    last = bank(tmp_path)
    for one, right in zip(asked, expected, strict=True):
        assert distance(last.predict(*one), right) < 1e-5
    assert last.hits > 0


def _die_in_a_write(root: Path, entry: tuple[int, int], calls_before: int, share: float) -> None:
    """Fill one entry; in the write after `calls_before` others, write `share` of its bytes and die."""
    write, calls = os.pwrite, iter(range(1000))

    def dying_write(descriptor: int, content: bytes, offset: int) -> int:
        if next(calls) < calls_before:
            return write(descriptor, content, offset)
        write(descriptor, content[: int(share * len(content))], offset)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    os.pwrite = dying_write
    bank(root).predict(*batch_of([entry[0]], [entry[1]]))


def test_a_writer_killed_between_and_within_any_two_writes_leaves_no_wrong_prediction(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    forks = multiprocessing.get_context("fork")
    points = [(calls_before, share) for calls_before in range(8) for share in (0.5, 1.0)]  # 4 arrays, data and mark of each
    for number, (calls_before, share) in enumerate(points):
        entry = (number, number % VIEWS)
        writer = forks.Process(target=_die_in_a_write, args=(tmp_path, entry, calls_before, share))
        writer.start()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        asked = batch_of([entry[0]], [entry[1]])
        live = LivePredictions(TEACHER, branches=(1, 2, 3), num_rotations=4).predict(*asked)
        reader = bank(tmp_path)
        assert distance(reader.predict(*asked), live) < 1e-5, (calls_before, share)
        assert reader.hits == (calls_before == 7 and share == 1.0)  # only what was marked whole is believed
        assert distance(bank(tmp_path).predict(*asked), live) < 1e-5


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def scramble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[::3] = bytes(random.Random(0).randrange(256) for _ in content[::3])
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, scramble, Path.unlink])
@pytest.mark.parametrize("name", ["joint_2.data", "joint_2.marks", "logits.data", "logits.marks", META_FILE, "use.lock"])
def test_a_damaged_file_costs_time_never_a_wrong_prediction(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    asked = batch_of(list(range(48)), [4] * 48)
    first = bank(tmp_path)
    told = first.predict(*asked)
    first.close()
    (folder,) = bank_folders(tmp_path)
    damage(folder / name)
    again = bank(tmp_path)
    assert distance(again.predict(*asked), told) < 1e-5
    assert (again.source, again.fallback) == ("bank", "")
    assert same(bank(tmp_path).predict(*asked), again.predict(*asked))


def test_what_a_killed_deletion_left_is_counted_and_goes_first(tmp_path: Path) -> None:
    for digest in "ab":
        predictions = opened(tmp_path, digest=digest)
        predictions.predict(*batch_of(list(range(48)), [0] * 48))
        predictions.close()
    older, newer = bank_folders(tmp_path)
    (newer / META_FILE).unlink()
    assert bank_folders(tmp_path) == [newer, older]
    opened(tmp_path, digest="c", budget=bank_bytes(48, VIEWS, 4, 10, 3, "float32") + disk_bytes(older)).close()
    assert (newer.exists(), older.exists()) == (False, True)


def test_other_images_views_or_statistics_are_another_bank(tmp_path: Path) -> None:
    different = [
        DATA,
        load_dataset(DataConfig(dataset="digits", train_subset=48, split_seed=1)),
        replace(DATA, views=ViewSpace(padding=2, has_flip=False)),
        replace(DATA, views=ViewSpace(padding=1, has_flip=True)),
        replace(DATA, mean=(0.4,)),
        replace(DATA, std=(0.5,)),
    ]
    for dataset in different:
        opened(tmp_path, dataset=dataset)
    assert len(bank_folders(tmp_path)) == len(different)


def test_banks_lie_on_the_nodes_own_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    assert default_bank_dir() == tmp_path / "tmp" / "hsakd-banks"
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "job"))
    assert opened(None).source == "bank"
    assert len(bank_folders(tmp_path / "job" / "hsakd-banks")) == 1


def test_the_default_budget_is_half_of_the_free_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = bank_bytes(48, VIEWS, 4, 10, 3, "float32")
    for free, source in ((2 * size + 1, "bank"), (2 * size - 1, "live")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Namespace(free=free))
        assert opened(tmp_path / source, budget=None).source == source


def test_banks_are_inspected_and_deleted_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = bank(tmp_path)
    predictions.predict(*batch_of([1], [0]))
    (folder,) = bank_folders(tmp_path)
    assert (folder / META_FILE).exists()
    assert banks_main(BankOptions(command="inspect", bank_dir=tmp_path)) == 0
    assert re.search(r"resnet8_half float32 float32 0\.000 GB filled: joint_1 0\.2%.* in use", capsys.readouterr().out)
    assert banks_main(BankOptions(command="delete", bank_dir=tmp_path, bank="all")) == 2
    assert "accepted: one that no process has open" in capsys.readouterr().err
    predictions.close()
    banks_main(BankOptions(command="inspect", bank_dir=tmp_path))
    assert "last opened 20" in capsys.readouterr().out
    (folder / META_FILE).write_text("[")
    assert banks_main(BankOptions(command="inspect", bank_dir=tmp_path)) == 0
    assert "without a description" in capsys.readouterr().out
    assert banks_main(BankOptions(command="delete", bank_dir=tmp_path, bank="nothing")) == 2
    assert banks_main(BankOptions(command="delete", bank_dir=tmp_path, bank="all")) == 0
    assert bank_folders(tmp_path) == []
    banks_main(BankOptions(command="inspect", bank_dir=tmp_path))
    assert capsys.readouterr().out == f"no banks in {tmp_path}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("delete --bank all", r"--bank-dir is .*nowhere; accepted: a folder with banks in it"),
        ("warm --teacher x", r"--teacher is 'x'; accepted: the id of a finished trial in runs"),
        ("warm --teacher x --threads 0", r"--threads is 0; accepted: 1 or more"),
        ("warm --teacher x --batch-size 0", r"--batch-size is 0; accepted: 1 or more"),
        ("warm --teacher x --bank-budget nan", r"--bank-budget is nan; accepted: gigabytes, 0 or more"),
        ("warm --teacher x --bank-budget inf", r"--bank-budget is inf; accepted: gigabytes, 0 or more"),
        ("warm --teacher x --device cuda:99", r"--device is cuda:99; accepted: cpu, or a GPU"),
        ("warm --teacher x --device abacus", r"--device is abacus; accepted: cpu, or a GPU"),
    ],
)
def test_what_the_command_cannot_use_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert banks_main(tyro.cli(BankOptions, args=[*arguments.split(), "--bank-dir", str(tmp_path / "nowhere")])) == 2
    assert re.fullmatch(rf"error: {sentence}.*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_banks_that_cannot_be_used_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank(tmp_path).close()
    (tmp_path / "banks.lock").unlink()
    (tmp_path / "banks.lock").mkdir()
    assert banks_main(BankOptions(command="inspect", bank_dir=tmp_path)) == 2
    assert "accepted: a folder that can be read and written (Is a directory)" in capsys.readouterr().err
