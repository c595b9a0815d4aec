"""`python -m tests.benchmarks.step`: one student step of the reference against ours, side by side, alternating, medians.

Synthetic 32 px images; all drawn views are warm. "no teacher" is ours with given predictions: the bound that a free teacher reaches.
With one thread the clock is the process's CPU time, which other work on the machine disturbs least; with more it is wall time. Peak
memory (resident set, without the mapped bank's pages) is that of a fresh process that takes two such steps.
"""

import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from hsakd.command_line import parse
from hsakd.config import NumericsConfig, ObjectiveConfig, OptimConfig
from hsakd.data.batches import gather_batch
from hsakd.data.datasets import Dataset
from hsakd.data.views import Batch, ViewSpace, rotate_rows
from hsakd.losses import Objective
from hsakd.models import create_network
from hsakd.network_table import network_table
from hsakd.training.bank import open_predictions
from hsakd.training.predictions import Predictions, TeacherPredictions, prefers_channels_last
from hsakd.training.step import RunningLosses, make_optimizer, training_step
from sweeps.presets import PAPER_PAIRS
from tests.benchmarks.reference import reference_losses

NUM_CLASSES = 100
PEAK_SIDE = 1024  # of the square matrices whose product measures the peak rate


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Time one student step of each pair: the reference, ours with a warm or cold bank, live, in bfloat16, and without a teacher."""

    pairs: tuple[str, ...] = PAPER_PAIRS
    """TEACHER-STUDENT names."""
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
    memory: bool = True
    """Measure peak memory of the reference and of ours with a warm bank, too (a process each)."""
    rounds: int = 5
    """Steps timed of each."""
    json: Path | None = None
    """Write the results here."""

    def __post_init__(self) -> None:
        for name in ("batch", "threads", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; accepted: 1 or more")
        for pair in self.pairs:
            names = [network_table().get(name) for name in pair.split("-")]
            if len(names) != 2 or None in names or len({facts.num_branches for facts in names if facts is not None}) != 1:
                raise ValueError(
                    f"--pairs is {pair}; accepted: TEACHER-STUDENT with equally many branches, of {', '.join(network_table())}"
                )


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


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of taking a student step; the reference is timed by `Bench.reference` instead."""

    source: Literal["live", "bank", "given"]
    is_bfloat16: bool = False
    is_cold: bool = False
    is_other_layout: bool = False


def variants_of(options: StepOptions) -> dict[str, Variant]:
    """Return what is timed beside the reference, by name."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        if options.precision in (dtype, "both"):
            variant = partial(Variant, is_bfloat16=dtype == "bfloat16")
            found |= {f"{dtype} no teacher": variant(source="given"), f"{dtype} live": variant(source="live")}
            if options.bank != "cold":
                found[f"{dtype} warm"] = variant(source="bank")
            if options.bank != "warm":
                found[f"{dtype} cold"] = variant(source="bank", is_cold=True)
            if options.other_layout:
                found[f"{dtype} no teacher, other layout"] = variant(source="given", is_other_layout=True)
    return found


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the steps of one pair share: networks' names, images, and the folder of the banks."""

    pair: str
    batch_size: int
    root: Path
    data: Dataset = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", synthetic_data(self.batch_size))

    def drawn(self, shift: int = 0) -> Batch:
        """Return the batch of all images, each in its view (the next ones with `shift`)."""
        indices = torch.arange(self.batch_size)
        return gather_batch(self.data, indices, (indices + shift) % self.data.views.num_views, dtype=torch.float32)

    def reference(self) -> Callable[[], None]:
        """Return the plain step: float32, a live teacher, all branches, NCHW, a wait at each loss."""
        teacher, student = (create_network(name, num_classes=NUM_CLASSES) for name in self.pair.split("-"))
        optimizer = make_optimizer(student, OptimConfig())

        def step() -> None:
            batch = self.drawn()
            total, values = reference_losses(student, teacher, batch.images, batch.labels, 3.0)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            _ = [value.item() for value in values.values()]

        return step

    def ours(self, variant: Variant) -> Callable[[], None]:
        """Return our step, on a model of its own."""
        objective = Objective.from_config(ObjectiveConfig(terms=(("task", 1), ("kl_q", 1), ("kl_p", 1))))
        network = create_network(self.pair.split("-")[1], num_classes=NUM_CLASSES)
        if variant.is_other_layout != prefers_channels_last(network, NumericsConfig()):
            network = network.to(memory_format=torch.channels_last)
        optimizer, losses = make_optimizer(network, OptimConfig()), RunningLosses(objective.names, torch.device("cpu"))
        predictions, calls = self.predictions(variant), iter(range(10**6))
        autocast = torch.bfloat16 if variant.is_bfloat16 else None

        def step() -> None:
            batch = self.drawn(self.batch_size * next(calls) if variant.is_cold else 0)
            training_step(network, objective, optimizer, batch, predictions, losses, step=0, learning_rate=0.01, autocast=autocast)

        return step

    def predictions(self, variant: Variant) -> TeacherPredictions:
        """Return where the teacher's answers come from."""
        teacher = create_network(self.pair.split("-")[0], num_classes=NUM_CLASSES)
        numerics = NumericsConfig(
            precision="bfloat16" if variant.is_bfloat16 else "float32",
            teacher_predictions="live" if variant.source == "live" else "bank",
        )
        opened = open_predictions(
            teacher,
            branches=teacher.taps,
            num_rotations=4,
            dataset=self.data,
            numerics=numerics,
            weights_sha256=self.pair,
            bank_dir=self.root / ("cold" if variant.is_cold else "warm"),
        )
        if variant.source != "given":
            return opened
        batch = self.drawn()
        return Given(opened.predict(batch, rotate_rows(batch.images, 4)))

    def peak_memory_mb(self, variant: Variant | None) -> float:
        """Return the peak resident set, less what is mapped of banks, of a fresh process that takes two steps (None: the reference)."""
        spawns = multiprocessing.get_context("spawn")
        with spawns.Pool(1) as pool:
            return pool.apply(take_two_steps, (self.pair, self.batch_size, self.root, variant))


def take_two_steps(pair: str, batch_size: int, root: Path, variant: Variant | None) -> float:
    """Return this process's peak memory [MB] after two steps."""
    torch.set_num_threads(1)
    bench = Bench(pair=pair, batch_size=batch_size, root=root)
    step = bench.reference() if variant is None else bench.ours(variant)
    step()
    step()
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    mapped, is_bank = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.split(maxsplit=1)[0].endswith(":"):
            mapped += int(line.split()[1]) if is_bank and line.startswith("Rss:") else 0
        else:
            is_bank = str(root) in line
    return (peak - mapped) / 1024


def measure(pair: str, options: StepOptions) -> dict[str, Any]:
    """Return medians, ratios to the reference, warm's share of the bound, the bound's share of the peak multiply-add rate, memory."""
    clock = time.process_time if options.threads == 1 else time.perf_counter
    variants = variants_of(options)
    dtypes = {name.split()[0]: getattr(torch, name.split()[0]) for name in variants}
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(pair=pair, batch_size=options.batch, root=Path(root))
        steps = {"reference": bench.reference()} | {name: bench.ours(variant) for name, variant in variants.items()}
        steps |= {f"{name} peak": matrix_product(dtype) for name, dtype in dtypes.items()}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for attempt in range(options.rounds + 1):
            for name, step in steps.items():
                started = clock()
                step()
                if attempt > 0:
                    seconds[name].append(clock() - started)
        measured = {"reference": None, **{name: variant for name, variant in variants.items() if name.endswith("warm")}}
        memory = {name: bench.peak_memory_mb(variant) for name, variant in measured.items()} if options.memory else {}
    peaks = {name: PEAK_SIDE**3 / min(seconds.pop(f"{name} peak")) for name in dtypes}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    facts = network_table()[pair.split("-")[1]]
    multiply_adds = 3 * 4 * options.batch * (facts.multi_adds + sum(facts.branch_multi_adds))  # forward and twice as many backward
    bounds = {name: medians[f"{name} no teacher"] for name in dtypes}
    return {
        "pair": pair,
        "seconds": medians,
        "ratio": {name: medians["reference"] / value for name, value in medians.items()},
        "share_of_bound": {name: bounds[name] / medians[f"{name} warm"] for name in dtypes if f"{name} warm" in medians},
        "peak_multiply_adds": peaks,
        "share_of_peak": {name: multiply_adds / bounds[name] / peaks[name] for name in dtypes},
        "peak_memory_mb": memory,
    }


def matrix_product(dtype: torch.dtype) -> Callable[[], None]:
    """Return a large matrix product, whose rate is the machine's peak with the threads that are set."""
    left = torch.randn(PEAK_SIDE, PEAK_SIDE).to(dtype)

    def multiply() -> None:
        left @ left

    return multiply


def report(result: dict[str, Any]) -> None:
    """Print one pair's results on a few lines."""
    seconds, ratios = result["seconds"], result["ratio"]
    print(f"{result['pair']}: reference {seconds['reference']:.3f} s; memory", end=" ")
    print(", ".join(f"{name} {value:.0f} MB" for name, value in result["peak_memory_mb"].items()) or "not measured")
    for dtype, share in result["share_of_peak"].items():
        own = ", ".join(f"{name.removeprefix(dtype)[1:]} {value:.2f}x" for name, value in ratios.items() if name.startswith(dtype))
        bound = f"; warm is {100 * result['share_of_bound'][dtype]:.0f}% of the bound" if dtype in result["share_of_bound"] else ""
        peak = result["peak_multiply_adds"][dtype] / 1e9
        print(f"  {dtype}: {own}{bound}; no teacher runs at {100 * share:.0f}% of the peak, {peak:.0f}e9 multiply-adds/s", flush=True)


def main(options: StepOptions) -> None:
    """Measure every pair, print, and write the results."""
    torch.set_num_threads(options.threads)
    results = []
    for pair in options.pairs:
        results.append(measure(pair, options))
        report(results[-1])
        if options.json is not None:  # after each pair, so that a long run loses none
            machine = {"machine": platform.machine(), "torch": torch.__version__}
            settings = {name: value for name, value in asdict(options).items() if name != "json"}
            options.json.write_text(json.dumps({"options": settings, **machine, "results": results}, indent=1))
    for name in variants_of(options):
        print(f"geometric mean, {name}: {statistics.geometric_mean(result['ratio'][name] for result in results):.2f}x")


if __name__ == "__main__":
    main(parse(StepOptions))
