"""`python -m tests.benchmarks.oversubscription`: training steps a second of trials side by side, with the threads they were given and more.

Every arrangement runs one trial per core. "given" is one thread a trial; "oversubscribed" lets each trial use all cores' threads. The
arrangements alternate; medians of the rounds. Measured on two cores: 4.38 steps/s as given, 1.50 oversubscribed.
"""

import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass

import torch
import tyro

from hsakd.config import ObjectiveConfig, OptimConfig
from hsakd.data.batches import gather_batch
from hsakd.losses import Objective
from hsakd.models import create_network
from hsakd.training.step import RunningLosses, make_optimizer, training_step
from tests.benchmarks.step import synthetic_data


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare one thread a trial with all threads for each."""

    network: str = "resnet20"
    """What is trained."""
    seconds: float = 8.0
    """Of each arrangement in each round."""
    rounds: int = 3
    """Repetitions."""


def count_steps(network_name: str, threads: int, seconds: float) -> int:
    """Return how many steps one trial takes in `seconds`, after one that warms up."""
    torch.set_num_threads(threads)
    data = synthetic_data(16)
    network = create_network(network_name, num_classes=100).to(memory_format=torch.channels_last)
    objective = Objective.from_config(ObjectiveConfig(terms=(("task", 1.0), ("ce_q", 1.0))))
    optimizer, losses = make_optimizer(network, OptimConfig()), RunningLosses(objective.names, torch.device("cpu"))
    batch = gather_batch(data, torch.arange(16), torch.zeros(16, dtype=torch.int64), dtype=torch.float32)

    def step() -> None:
        training_step(network, objective, optimizer, batch, None, losses, step=0, learning_rate=0.01)

    step()
    count, limit = 0, time.monotonic() + seconds
    while time.monotonic() < limit:
        step()
        count += 1
    return count


def main(options: Options) -> None:
    """Print steps a second of both arrangements and their ratio."""
    cores = len(os.sched_getaffinity(0))
    rates: dict[int, list[float]] = {1: [], cores: []}
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        for _ in range(options.rounds):
            for threads, values in rates.items():
                arguments = [(options.network, threads, options.seconds)] * cores
                values.append(sum(pool.starmap(count_steps, arguments, chunksize=1)) / options.seconds)
    given, oversubscribed = (statistics.median(values) for values in rates.values())
    print(f"{cores} trials of {options.network} on {cores} cores, 1 thread each: {given:.2f} steps/s; {cores} threads each: ", end="")
    print(f"{oversubscribed:.2f} steps/s, {oversubscribed / given:.2f} of it")


if __name__ == "__main__":
    main(tyro.cli(Options))
