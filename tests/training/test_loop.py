"""The loop's schedule is the authors'."""

from dataclasses import replace

import pytest

from hsakd.config import OptimConfig
from hsakd.training.loop import learning_rate_at


def test_schedule_is_the_authors() -> None:
    optim = OptimConfig()
    rates = [learning_rate_at(optim, epoch, 0, 782) for epoch in (0, 149, 150, 179, 180, 209, 210, 239)]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.005, 5e-4, 5e-4, 5e-5, 5e-5])
    warm = replace(optim, warmup_epochs=2, milestones=(1,))
    assert [learning_rate_at(warm, epoch, step, 2) for epoch in range(4) for step in range(2)] == pytest.approx(
        [0.0125, 0.025, 0.0375, 0.05, 0.05, 0.05, 0.005, 0.005]
    )
