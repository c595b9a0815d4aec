"""Steps, each started from the same weights, against the plain reference step."""

import copy
from pathlib import Path

import pytest
import torch

from hsakd.config import DataConfig, NumericsConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.data import load_dataset
from hsakd.data.batches import epoch_stream, gather_batch
from hsakd.losses import Objective
from hsakd.models import create_network
from hsakd.training.bank import open_predictions
from hsakd.training.loop import LoopHooks, fit
from hsakd.training.predictions import LivePredictions, TeacherPredictions, prefers_channels_last
from hsakd.training.step import RunningLosses, make_optimizer, training_step
from sweeps.presets import SLOW_LEARNERS
from tests.benchmarks.reference import reference_losses

CASES = {
    "float32 live": (NumericsConfig(), 1e-4),
    "float32 bank": (NumericsConfig(teacher_predictions="bank", bank_dtype="float32"), 1e-4),
    "float16 bank": (NumericsConfig(teacher_predictions="bank"), 1e-3),
    "float64 live": (NumericsConfig(precision="float64"), 1e-9),
}


SLOW = [
    ("wrn_16_1", "shufflenet_v1", "float32 live"),
    ("resnet8x4", "shufflenet_v2", "float32 bank"),
    ("resnet8x4", "shufflenet_v2", "float16 bank"),
    ("vgg8_bn", "mobilenetv2_half", "float32 live"),
    ("vgg8_bn", "mobilenetv2_half", "float16 bank"),
    ("wrn_16_1", "wrn_16_1", "float32 bank"),
    ("vgg8_bn", "vgg8_bn", "float32 live"),
]
PAIRS = [("resnet14", "resnet8_half", case) for case in CASES] + [pytest.param(*values, marks=pytest.mark.slow) for values in SLOW]


FAMILIES = [
    ("wrn_16_1", "wrn_16_1", "float64 live"),
    ("wrn_16_1", "shufflenet_v1", "float64 live"),
    ("wrn_16_1", "shufflenet_v2", "float64 live"),
    ("mobilenetv2_half", "mobilenetv2_half", "float64 live"),
    pytest.param("vgg8_bn", "vgg8_bn", "float64 live", marks=pytest.mark.slow),
    *(pytest.param("resnet50", "mobilenetv2_half", case, marks=pytest.mark.slow) for case in CASES if case != "float32 bank"),
]


@pytest.mark.parametrize(("teacher_name", "student_name", "case"), PAIRS)
def test_fifty_steps_have_the_losses_of_the_reference(teacher_name: str, student_name: str, case: str, tmp_path: Path) -> None:
    predictions = take_steps_beside_the_reference(teacher_name, student_name, case, tmp_path, num_steps=50)
    assert predictions.source == "live" or min(predictions.hits, predictions.misses) > 100  # warm and cold


@pytest.mark.parametrize(("teacher_name", "student_name", "case"), FAMILIES)
def test_three_steps_of_every_family_have_the_losses_of_the_reference(
    teacher_name: str, student_name: str, case: str, tmp_path: Path
) -> None:
    take_steps_beside_the_reference(teacher_name, student_name, case, tmp_path, num_steps=3)


def take_steps_beside_the_reference(
    teacher_name: str, student_name: str, case: str, bank_dir: Path, *, num_steps: int
) -> TeacherPredictions:
    """Hold each step's total and terms to the reference's of the same weights; return who answered for the teacher."""
    numerics, tolerance = CASES[case]
    dtype = torch.float64 if numerics.precision == "float64" else torch.float32
    size, batch_size = (8, 16) if student_name == "resnet8_half" else (16, 8)  # deeper ones need larger images
    num_batches, learning_rate = 64 // batch_size, 0.01 if student_name in SLOW_LEARNERS else 0.05  # as published
    data = load_dataset(DataConfig(dataset="digits", train_subset=64, image_size=size))
    objective = Objective.from_config(ObjectiveConfig(terms=(("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))))
    teacher = create_network(teacher_name, num_classes=10, seed=1).to(dtype)
    student = create_network(student_name, num_classes=10).to(dtype)
    assert prefers_channels_last(student, numerics)  # the reference stays NCHW
    student.to(memory_format=torch.channels_last)
    predictions = open_predictions(
        teacher, branches=teacher.taps, num_rotations=4, dataset=data, numerics=numerics, weights_sha256="a", bank_dir=bank_dir
    )
    optimizer = make_optimizer(student, OptimConfig())
    for step in range(num_steps):
        order, views = epoch_stream(data, seed=0, epoch=step // num_batches)
        chosen = slice(batch_size * (step % num_batches), batch_size * (step % num_batches + 1))
        batch = gather_batch(data, order[chosen], views[chosen] % 3, dtype=dtype)
        same_weights = copy.deepcopy(student).to(memory_format=torch.contiguous_format)
        with torch.no_grad():
            total, expected = reference_losses(same_weights, teacher, batch.images, batch.labels, 3.0)
        losses = RunningLosses(objective.names, torch.device("cpu"))
        training_step(student, objective, optimizer, batch, predictions, losses, step=step, learning_rate=learning_rate)
        got_total, got = losses.means(1)
        assert abs(got_total - total) <= tolerance * abs(total), step
        for name, value in expected.items():
            assert abs(got[name] - value) <= tolerance * abs(value), (step, name)
    assert predictions.source == numerics.teacher_predictions
    return predictions


def test_a_whole_training_ends_at_the_weights_of_a_plain_loop() -> None:
    """In float64, from the loss to the optimizer and its schedule; `fit` differs in memory format only."""
    data = load_dataset(DataConfig(dataset="digits", train_subset=64))
    optim = OptimConfig(epochs=3, batch_size=16, milestones=(2,))
    objective = ObjectiveConfig(terms=(("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0)))
    numerics = NumericsConfig(precision="float64")
    config = TrialConfig(network="resnet8_half", data=DataConfig(dataset="digits"), optim=optim, objective=objective, numerics=numerics)
    teacher = create_network("resnet14", num_classes=10, seed=1).double()
    ours, plain = (create_network("resnet8_half", num_classes=10).double() for _ in range(2))
    cpu, predictions = torch.device("cpu"), LivePredictions(teacher, branches=(1, 2, 3), num_rotations=4)
    fit(config, ours, data, predictions=predictions, device=cpu, hooks=LoopHooks())
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = 0.05 if epoch < 2 else 0.005
        order, views = epoch_stream(data, seed=0, epoch=epoch)
        for start in range(0, 64, 16):
            batch = gather_batch(data, order[start : start + 16], views[start : start + 16], dtype=torch.float64)
            optimizer.zero_grad()
            reference_losses(plain, teacher, batch.images, batch.labels, 3.0)[0].backward()
            optimizer.step()
    expected = plain.state_dict()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-9, msg=name)
