"""Fifty steps, each started from the same weights, against the plain reference step."""

import copy
from pathlib import Path

import pytest
import torch

from hsakd.config import DataConfig, NumericsConfig, ObjectiveConfig, OptimConfig
from hsakd.data import load_dataset
from hsakd.losses import Objective
from hsakd.models import create_network
from hsakd.training.bank import open_predictions
from hsakd.training.loop import RunningLosses, compute_loss, epoch_stream, gather_batch, make_optimizer, training_step
from tests.benchmarks.reference import reference_losses

CASES = {
    "float32 live": (NumericsConfig(), 1e-4),
    "float32 bank": (NumericsConfig(teacher_predictions="bank", bank_dtype="float32"), 1e-4),
    "float16 bank": (NumericsConfig(teacher_predictions="bank"), 1e-3),
    "float64 live": (NumericsConfig(precision="float64"), 1e-9),
}


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_have_the_losses_of_the_reference(case: str, tmp_path: Path) -> None:
    numerics, tolerance = CASES[case]
    dtype = torch.float64 if numerics.precision == "float64" else torch.float32
    data = load_dataset(DataConfig(dataset="digits", train_subset=64))
    objective = Objective.from_config(ObjectiveConfig(terms=(("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))))
    teacher = create_network("resnet14", num_classes=10, seed=1).to(dtype)
    student = create_network("resnet8_half", num_classes=10).to(dtype)
    predictions = open_predictions(
        teacher, branches=(1, 2, 3), num_rotations=4, dataset=data, numerics=numerics, weights_sha256="a", bank_dir=tmp_path
    )
    losses = RunningLosses(objective.names, torch.device("cpu"))
    optimizer = make_optimizer(student, OptimConfig())
    for step in range(50):
        order, views = epoch_stream(data, seed=0, epoch=step // 4)
        chosen = slice(16 * (step % 4), 16 * (step % 4 + 1))
        batch = gather_batch(data, order[chosen], views[chosen] % 3, dtype=dtype)
        with torch.no_grad():
            _, expected = reference_losses(copy.deepcopy(student), teacher, batch.images, batch.labels, 3.0)
            _, cold = compute_loss(copy.deepcopy(student), objective, batch, predictions, autocast=None)
        for name, value in expected.items():
            assert abs(cold[name] - value) <= tolerance * abs(value), (step, name)
        training_step(student, objective, optimizer, batch, predictions, losses, step=step, learning_rate=0.05)
    assert predictions.source == numerics.teacher_predictions
