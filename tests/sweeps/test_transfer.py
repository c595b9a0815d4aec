"""The work-list of linear probes: what is asked for, and what stays of earlier commands."""

import re
from pathlib import Path
from typing import Any

import pytest

from hsakd.records import TrialRecord
from hsakd.store import ResultStore
from sweeps.cli import SweepOptions, TransferOptions
from sweeps.plan_lines import lines_to_keep
from sweeps.transfer import transfer_work
from sweeps.worklist import known_work


def test_probes_need_images_that_fit_into_memory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--dataset is imagenet; accepted: cifar10, cifar100, digits, fashion_mnist, imagefolder, stl10"):
        TransferOptions(out=tmp_path, dataset="imagenet")
    with pytest.raises(ValueError, match="the data set to transfer to, cifar10, cifar100, digits, fashion_mnist, imagefolder, stl10"):
        TransferOptions(out=tmp_path)


def test_probes_of_other_rows_and_data_sets_stay_in_the_plan_and_are_not_trained(tmp_path: Path) -> None:
    store, options = ResultStore(tmp_path), SweepOptions(out=tmp_path, preset="digits", methods=("KD", "HSAKD"), seeds=1)
    sweep = known_work(options)
    for _, config in sweep:
        store.weights_path(config.trial_id).parent.mkdir(parents=True, exist_ok=True)
        store.weights_path(config.trial_id).touch()
        store.write_trial(TrialRecord.of(config, status="complete"), [])
    plan = [entry for entry, _ in sweep]
    commands = ({"dataset": "stl10"}, {"dataset": "tinyimagenet", "students": ("HSAKD",)}, {"dataset": "tinyimagenet", "students": ("KD",)})
    for changes in commands:
        store.write_plan(plan)
        work = transfer_work(TransferOptions(out=tmp_path, **changes))  # type: ignore[arg-type]
        assert {(entry.method, config.data.dataset) for entry, config in work} == {
            (method, changes["dataset"]) for method in changes.get("students", ("KD", "HSAKD"))
        }
        plan = [*lines_to_keep(plan, work), *(entry for entry, _ in work)]
    num_pairs = len({(entry.teacher, entry.student) for entry in plan})
    assert len(plan) == len(sweep) + 4 * num_pairs
    again = transfer_work(TransferOptions(out=tmp_path, dataset="stl10", students=("KD",), epochs=7))
    assert len(lines_to_keep(plan, again)) == len(plan) - num_pairs  # the same row on the same data set is planned anew
    damaged = store.trial_path(again[0][1].requirements()[0].trial_id)
    damaged.write_bytes(b"cut")
    assert len(transfer_work(TransferOptions(out=tmp_path, dataset="stl10"))) == 2 * num_pairs - 1
    assert damaged.exists()  # the work-list is made for --dry-run, too, and beside a running driver


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"students": ("KD", "Foo")}, "--students is Foo; accepted for {out}, separated by blanks: KD, HSAKD"),
        ({"students": ("KD,HSAKD",)}, "--students is KD,HSAKD; accepted for {out}, separated by blanks: KD, HSAKD"),
        (
            {"pairs": ("resnet20-resnet8",)},
            "--pairs is resnet20-resnet8; accepted for {out}, separated by blanks: resnet14-resnet8_half, wrn_16_1-resnet8_half",
        ),
        ({"students": ("HSAKD",)}, "--out is {out}; accepted: a sweep's folder with finished students (of 2 planned, 0 are)"),
    ],
)
def test_students_and_pairs_that_the_plan_does_not_have_are_named(more: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    plan = known_work(SweepOptions(out=tmp_path, preset="digits", methods=("KD", "HSAKD"), seeds=1))
    ResultStore(tmp_path).write_plan([entry for entry, _ in plan])
    with pytest.raises(ValueError, match=f"^{re.escape(sentence.format(out=tmp_path))}$"):
        transfer_work(TransferOptions(out=tmp_path, dataset="stl10", **more))
