"""Options of trials on several devices and of images that stay in their files: what they plan, how mistakes are answered."""

from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.cli import SweepOptions
from sweeps.cost import cost_of
from sweeps.packing import Packing
from sweeps.run_pairs import GPU_LOADER_WORKERS, loader_workers
from sweeps.worklist import TrialFactory, known_work, pairs_of


def test_the_imagenet_preset_is_the_authors_protocol_however_many_gpus_a_trial_gets(tmp_path: Path) -> None:
    one, eight = (SweepOptions(out=tmp_path, preset="imagenet", gpus=8, ranks_per_trial=ranks) for ranks in (1, 8))
    assert [config.trial_id for _, config in known_work(one)] == [config.trial_id for _, config in known_work(eight)]
    factory, (pair,) = TrialFactory(one), pairs_of(one)
    student = factory.hsakd(pair, 0, factory.joint_teacher(pair.teacher, 0))
    optim = student.optim
    assert (student.network, pair.teacher) == ("resnet18_imagenet", "resnet34_imagenet")
    assert (optim.epochs, optim.batch_size, optim.learning_rate, optim.milestones) == (100, 256, 0.1, (30, 60, 90))
    assert (optim.nesterov, optim.weight_decay, optim.momentum, student.objective.temperature) == (False, 1e-4, 0.9, 3.0)
    assert (student.data.image_size, student.data.augmentation) == (224, "imagenet")
    whole = 1_281_167 * 100 * 4 * (3 * (1.814e9 + student_branches()) + 3.664e9 + teacher_branches())
    assert cost_of(student) == pytest.approx(whole, rel=1e-3)


def student_branches() -> float:
    from sweeps.networks import network_facts

    return sum(network_facts("resnet18_imagenet").branch_multi_adds)


def teacher_branches() -> float:
    from sweeps.networks import network_facts

    return sum(network_facts("resnet34_imagenet").branch_multi_adds)


def test_ranks_take_whole_gpus_and_fewer_trials_run_at_once() -> None:
    packing = Packing(ranks_per_trial=4)
    assert (packing.share("resnet18_imagenet"), packing.most_at_once(16), packing.most_at_once(3)) == (4.0, 4, 1)
    packing.alone.add("x")
    assert (packing.share("resnet18_imagenet", "x"), packing.loosen("resnet18_imagenet")) == (4.0, 4.0)
    assert Packing(trials_per_gpu=3).most_at_once(16) == 48


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ranks_per_trial": 2}, "--ranks-per-trial is 2; accepted: a divisor of the batch's 1 parts"),
        ({"ranks_per_trial": 3, "preset": "imagenet"}, "--ranks-per-trial is 3; accepted: a divisor of the batch's 8 parts"),
        ({"ranks_per_trial": 8, "preset": "imagenet", "gpus": 4}, "--ranks-per-trial is 8; accepted: at most --gpus, 4"),
        ({"batch_shards": 3}, "--batch-shards is 3; accepted: a divisor of the batch's 64 images"),
        ({"batch_shards": 0}, "--batch-shards is 0; accepted: 1 or more"),
        (
            {"ranks_per_trial": 2, "batch_shards": 2, "trials_per_gpu": 2},
            "--trials-per-gpu is 2; accepted: 1 with --ranks-per-trial above 1",
        ),
        ({"ranks_per_trial": 0}, "--ranks-per-trial is 0; accepted: 1 or more"),
        ({"augmentation": "imagenet"}, "--augmentation is imagenet; accepted: nothing but with --dataset imagefolder"),
        ({"loader_workers": -1}, "--loader-workers is -1; accepted: 0 or more"),
        (
            {"preset": "imagenet", "methods": ("KD", "DKD", "SP")},
            "--methods is SP; accepted: it with --batch-shards 1, not 8, as it compares or remembers the images of whole batches",
        ),
        ({"train_images": 0}, "--train-images is 0; accepted: 1 or more"),
    ],
)
def test_what_does_not_fit_is_answered_in_one_sentence(changes: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accepted") as caught:
        SweepOptions(out=tmp_path / "out", **changes)  # type: ignore[arg-type]
    assert str(caught.value).startswith(sentence)


def test_images_in_memory_have_no_processes_that_decode_them(tmp_path: Path) -> None:
    streamed, stored = (SweepOptions(out=tmp_path, preset=preset, gpus=8) for preset in ("imagenet", "paper"))
    counts = [loader_workers(options, [config for _, config in known_work(options)]) for options in (streamed, stored)]
    assert counts == [GPU_LOADER_WORKERS, 0]
    on_cpu, none = replace(streamed, gpus=0), replace(streamed, loader_workers=0)
    assert [loader_workers(options, [config for _, config in known_work(options)]) for options in (on_cpu, none)] == [0, 0]


def test_a_part_of_the_training_images_and_another_batch_are_other_trials(tmp_path: Path) -> None:
    usual = SweepOptions(out=tmp_path, preset="fashion")
    changed = SweepOptions(out=tmp_path, preset="fashion", train_images=5000, batch_size=32)
    first, second = (TrialFactory(options).baseline("resnet8_half", 0) for options in (usual, changed))
    assert (first.data.train_subset, second.data.train_subset, second.optim.batch_size) == (1000, 5000, 32)
    assert first.trial_id != second.trial_id
