"""`python -m tests.benchmarks.step`: one student step of the reference against ours, side by side, alternating, medians.

Synthetic 32 px images; all drawn views are warm. "no teacher" is ours with given predictions: the bound that a free teacher reaches.
With one thread the clock is the process's CPU time, which other work on the machine disturbs least; with more it is wall time.
"""

import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from hsakd.config import NumericsConfig, ObjectiveConfig, OptimConfig
from hsakd.data.datasets import Dataset
from hsakd.data.views import Batch, ViewSpace, rotate_rows
from hsakd.losses import Objective
from hsakd.models import create_network
from hsakd.network_table import network_table
from hsakd.training.bank import open_predictions
from hsakd.training.loop import RunningLosses, gather_batch, make_optimizer, training_step
from hsakd.training.predictions import Predictions, TeacherPredictions, prefers_channels_last
from tests.benchmarks.reference import reference_losses

PAIRS = (
    "wrn_40_2:wrn_16_2",
    "wrn_40_2:wrn_40_1",
    "resnet56:resnet20",
    "resnet32x4:resnet8x4",
    "vgg13_bn:mobilenetv2_half",
    "resnet50:mobilenetv2_half",
    "wrn_40_2:shufflenet_v1",
    "resnet32x4:shufflenet_v2",
)
NUM_CLASSES = 100


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Time one student step of each pair: the reference, ours with a warm or cold bank, live, in bfloat16, and without a teacher."""

    pairs: tuple[str, ...] = PAIRS
    """teacher:student."""
    batch: int = 16
    """Images a step."""
    threads: int = 1
    """CPU threads."""
    precision: Literal["float32", "bfloat16", "both"] = "both"
    """Of ours; the reference is float32."""
    bank: Literal["warm", "cold", "both"] = "warm"
    """Whether the bank holds the drawn views."""
    other_layout: bool = False
    """Time ours without a teacher in the memory format that its family does not prefer, too."""
    rounds: int = 5
    """Steps timed of each."""
    json: Path | None = None
    """Write the results here."""


class Given:
    """The same answer each time: no teacher at all."""

    source, fallback, hits, misses = "live", "", 0, 0

    def __init__(self, predictions: Predictions) -> None:
        self.predictions = predictions

    def predict(self, batch: Batch, rows: torch.Tensor) -> Predictions:  # noqa: ARG002
        return self.predictions

    def flush(self) -> None: ...

    def close(self) -> None: ...


def synthetic_data(num_images: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num_images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(NUM_CLASSES, (num_images,), generator=generator)
    return Dataset(
        train_images=images,
        train_labels=labels,
        val_images=images[:0],
        val_labels=labels[:0],
        test_images=images[:0],
        test_labels=labels[:0],
        num_classes=NUM_CLASSES,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        views=ViewSpace(padding=4, has_flip=True),
        fingerprint="synthetic",
    )


def steps_of_pair(pair: str, options: StepOptions, root: Path) -> dict[str, Callable[[], None]]:
    """Return what is timed, by name; each call is one optimizer step on a model of its own."""
    teacher_name, student_name = pair.split(":")
    data, objective = synthetic_data(options.batch), Objective.from_config(ObjectiveConfig(terms=(("task", 1), ("kl_q", 1), ("kl_p", 1))))
    teacher = create_network(teacher_name, num_classes=NUM_CLASSES)
    indices, views = torch.arange(options.batch), torch.arange(options.batch) % data.views.num_views
    student = create_network(student_name, num_classes=NUM_CLASSES)
    plain_optimizer = make_optimizer(student, OptimConfig())

    def reference() -> None:
        batch = gather_batch(data, indices, views, dtype=torch.float32)
        total, values = reference_losses(student, teacher, batch.images, batch.labels, 3.0)
        plain_optimizer.zero_grad()
        total.backward()
        plain_optimizer.step()
        _ = [value.item() for value in values.values()]

    def ours(
        predictions: TeacherPredictions, *, is_bfloat16: bool = False, is_other_layout: bool = False, is_cold: bool = False
    ) -> Callable[[], None]:
        network = create_network(student_name, num_classes=NUM_CLASSES)
        if is_other_layout != prefers_channels_last(network, NumericsConfig()):
            network = network.to(memory_format=torch.channels_last)
        optimizer, losses = make_optimizer(network, OptimConfig()), RunningLosses(objective.names, torch.device("cpu"))
        calls = iter(range(10**6))

        def step() -> None:
            drawn = (views + options.batch * next(calls)) % data.views.num_views if is_cold else views
            batch = gather_batch(data, indices, drawn, dtype=torch.float32)
            autocast = torch.bfloat16 if is_bfloat16 else None
            training_step(network, objective, optimizer, batch, predictions, losses, step=0, learning_rate=0.01, autocast=autocast)

        return step

    def opened(source: Literal["live", "bank"], folder: str = "warm", **numerics: Any) -> TeacherPredictions:
        return open_predictions(
            teacher,
            branches=teacher.taps,
            num_rotations=4,
            dataset=data,
            numerics=NumericsConfig(teacher_predictions=source, **numerics),
            weights_sha256=pair,
            bank_dir=root / folder,
        )

    batch = gather_batch(data, indices, views, dtype=torch.float32)
    answer = opened("bank").predict(batch, rotate_rows(batch.images, 4))
    steps: dict[str, Callable[[], None]] = {"reference": reference}
    if options.precision != "bfloat16":
        steps |= {"float32 live": ours(opened("live")), "float32 no teacher": ours(Given(answer))}
        if options.bank != "cold":
            steps["float32 warm"] = ours(opened("bank"))
        if options.bank != "warm":
            steps["float32 cold"] = ours(opened("bank", "cold"), is_cold=True)
        if options.other_layout:
            steps["float32 no teacher, other layout"] = ours(Given(answer), is_other_layout=True)
    if options.precision != "float32":
        steps["bfloat16 warm"] = ours(opened("bank", precision="bfloat16"), is_bfloat16=True)
        if options.other_layout:
            steps["bfloat16 no teacher, other layout"] = ours(Given(answer), is_bfloat16=True, is_other_layout=True)
    return steps


def peak_multiply_adds(dtype: torch.dtype) -> float:
    """Return the machine's multiply-adds per second in a large matrix product, with the threads that are set."""
    left = torch.randn(1024, 1024).to(dtype)
    seconds = []
    for _ in range(5):
        started = time.process_time()
        left @ left
        seconds.append((time.process_time() - started) / torch.get_num_threads())
    return 1024**3 / min(seconds)


def measure(pair: str, options: StepOptions) -> dict[str, Any]:
    """Return medians, ratios to the reference, and the student's fraction of the peak multiply-add rate."""
    clock = time.process_time if options.threads == 1 else time.perf_counter
    with tempfile.TemporaryDirectory() as root:
        steps = steps_of_pair(pair, options, Path(root))
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for attempt in range(options.rounds + 1):
            for name, step in steps.items():
                started = clock()
                step()
                if attempt > 0:
                    seconds[name].append(clock() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    facts = network_table()[pair.split(":")[1]]
    multiply_adds = 3 * 4 * options.batch * (facts.multi_adds + sum(facts.branch_multi_adds))  # forward and twice as many backward
    peak = peak_multiply_adds(torch.float32)
    bound = medians.get("float32 no teacher")
    return {
        "pair": pair,
        "seconds": medians,
        "ratio": {name: medians["reference"] / value for name, value in medians.items()},
        "share_of_bound": bound / medians["float32 warm"] if bound and "float32 warm" in medians else None,
        "share_of_peak": multiply_adds / bound / peak if bound else None,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(options: StepOptions) -> None:
    torch.set_num_threads(options.threads)
    results = []
    for pair in options.pairs:
        result = measure(pair, options)
        results.append(result)
        ratios = ", ".join(f"{name} {value:.2f}x" for name, value in result["ratio"].items() if name != "reference")
        bound = "" if result["share_of_bound"] is None else f"; warm is {100 * result['share_of_bound']:.0f}% of the bound"
        peak = "" if result["share_of_peak"] is None else f", no teacher is {100 * result['share_of_peak']:.0f}% of the peak rate"
        print(
            f"{pair}: reference {result['seconds']['reference']:.3f} s; {ratios}{bound}{peak}; peak RSS {result['peak_rss_mb']:.0f} MB",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps({"batch": options.batch, "threads": options.threads, "results": results}, indent=1))


if __name__ == "__main__":
    main(tyro.cli(StepOptions))
