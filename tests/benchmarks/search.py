"""`python -m tests.benchmarks.search`: eight search trials of one pair that share a bank, against eight plain runs of the reference step.

All trials see the same images in the same views, as a search's do (one seed), so that the first one fills the bank for all others.
A plain run asks the teacher, with all its branches, at each step (`tests/benchmarks/reference.py`) and is evaluated like ours. With one
thread the clock is the process's CPU time, which other work on the machine disturbs least; with more it is wall time.
"""

import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hsakd.command_line import parse
from hsakd.config import DataConfig, NumericsConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.data.batches import epoch_stream, gather_batch
from hsakd.data.datasets import load_dataset
from hsakd.models import create_network
from hsakd.models.checkpoints import load_weights
from hsakd.store import ResultStore
from hsakd.training.evaluate import evaluate
from hsakd.training.step import make_optimizer
from hsakd.training.trial import RunContext, run_trial
from tests.benchmarks.reference import reference_losses


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Time whole trials of the `fashion` preset's search (40 epochs there)."""

    teacher: str = "resnet20"
    """Network of the teacher."""
    student: str = "resnet8_half"
    """Network of the students."""
    dataset: str = "fashion_mnist"
    """Data set."""
    train_subset: int = 1000
    """Training images."""
    image_size: int = 16
    """Side in pixels."""
    epochs: int = 40
    """Epochs a trial."""
    trials: int = 8
    """Search trials."""
    batch_size: int = 64
    """Images a step."""
    threads: int = 1
    """CPU threads a trial."""
    data_dir: Path | None = None
    """Where the data set is."""
    json: Path | None = None
    """Write the results here."""

    def __post_init__(self) -> None:
        for name in ("train_subset", "image_size", "epochs", "trials", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; accepted: 1 or more")


def plain_run(config: TrialConfig, context: RunContext) -> None:
    """Train the student of `config` by the reference step, evaluating at each epoch's end; nothing is kept."""
    assert config.teacher is not None
    data = load_dataset(config.data, context.data_dir)
    student, teacher = (create_network(network, num_classes=data.num_classes) for network in (config.network, config.teacher.network))
    load_weights(teacher, context.store.weights_path(config.teacher.trial_id))
    optimizer = make_optimizer(student, config.optim)
    for epoch in range(config.optim.epochs):
        order, views = epoch_stream(data, seed=config.seed, epoch=epoch)
        student.train()
        for chosen in zip(order.split(config.optim.batch_size), views.split(config.optim.batch_size), strict=True):
            batch = gather_batch(data, *chosen, dtype=torch.float32)
            total, values = reference_losses(student, teacher, batch.images, batch.labels, config.objective.temperature)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            _ = [value.item() for value in values.values()]
        for images, labels in ((data.test_images, data.test_labels), (data.val_images, data.val_labels)):
            evaluate(student, images, labels, mean=data.mean, std=data.std)


def main(options: SearchOptions) -> None:
    """Print the seconds and the bank's share of every trial, and the ratio of the sums."""
    clock = time.process_time if options.threads == 1 else time.perf_counter
    torch.set_num_threads(options.threads)
    teacher = TrialConfig(
        network=options.teacher,
        data=DataConfig(dataset=options.dataset, train_subset=options.train_subset, image_size=options.image_size, validation_fraction=0.1),
        optim=OptimConfig(epochs=1, batch_size=options.batch_size, milestones=()),
        objective=ObjectiveConfig(terms=(("task", 1.0), ("ce_q", 1.0))),
    )
    optim = replace(teacher.optim, epochs=options.epochs)
    rows = []
    with tempfile.TemporaryDirectory() as root:
        context = RunContext(
            store=ResultStore(Path(root)), data_dir=options.data_dir, num_threads=options.threads, bank_dir=Path(root) / "banks"
        )
        run_trial(teacher, context)
        for number in range(options.trials):
            objective = ObjectiveConfig(terms=(("task", 1.0), ("kl_q", 0.5 + 0.1 * number), ("kl_p", 1.0)), temperature=2.0 + 0.5 * number)
            numerics = NumericsConfig(teacher_predictions="bank")
            config = replace(teacher, network=options.student, teacher=teacher, optim=optim, objective=objective, numerics=numerics)
            started = clock()
            record = run_trial(config, context)
            ours = clock() - started
            started = clock()
            plain_run(config, context)
            row = {"trial": number + 1, "seconds": ours, "plain_seconds": clock() - started}
            row |= {"hits": record.bank_hits, "misses": record.bank_misses}
            rows.append(row)
            share = record.bank_hits / (record.bank_hits + record.bank_misses)
            print(f"trial {number + 1}: {ours:.1f} s, {100 * share:.0f}% from the bank; plain {row['plain_seconds']:.1f} s", flush=True)
    ratio = sum(row["plain_seconds"] for row in rows) / sum(row["seconds"] for row in rows)
    first, last = (row["plain_seconds"] / row["seconds"] for row in (rows[0], rows[-1]))
    print(f"{options.trials} trials: plain / ours = {ratio:.2f} (the first {first:.2f}, the last {last:.2f})")
    if options.json is not None:
        options.json.write_text(json.dumps({"ratio": ratio, "trials": rows}, indent=1))


if __name__ == "__main__":
    main(parse(SearchOptions))
