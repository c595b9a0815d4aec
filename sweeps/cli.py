"""The one parser: options of a sweep, checked at the boundary. Imports neither torch nor ray, so that --help is quick."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

import tyro

from hsakd.network_table import network_table
from sweeps.networks import is_network, network_facts
from sweeps.packing import parse_fractions
from sweeps.presets import METHODS, PRESETS

O = TypeVar("O")  # noqa: E741 (options)
USAGE_ERROR = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOptions:
    """Train teachers and students of every pair, search HSAKD's setting with Optuna, and store every result under --out.

    Run the same command again after any interruption: it does exactly what is missing.
    """

    out: Path
    """Result folder; shared by all nodes."""
    gpus: int = 0
    """Most GPUs used at once; 0 trains on the CPU."""
    preset: Literal["paper", "fashion", "digits"] = "paper"
    """Data, pairs and schedule."""
    pairs: tuple[str, ...] = ()
    """TEACHER-STUDENT names; default: the preset's."""
    methods: tuple[str, ...] = METHODS
    """Table rows."""
    seeds: int | None = None
    """Number of student seeds."""
    teacher_seeds: int = 1
    """Number of teacher seeds (the paper has one)."""
    trials: int | None = None
    """Optuna trials per pair."""
    top_k: int | None = None
    """Settings of each study that are confirmed with all seeds."""
    epochs: int | None = None
    """Epochs of every training; milestones scale."""
    dataset: str | None = None
    """Another data set than the preset's."""
    data_dir: Path | None = None
    """Where data sets lie (or go, with --download)."""
    download: bool = False
    """Fetch the data set into --data-dir if it isn't there."""
    pruner: Literal["none", "median", "hyperband"] = "none"
    """Optuna pruner of search trials, on validation accuracy; the paper's setting is never pruned."""
    predictions: Literal["live", "bank"] = "live"
    """Ask the teacher at each step, or keep its answers on disk."""
    bank_dir: Path | None = None
    """Node-local folder of teacher banks."""
    bank_budget: float | None = None
    """Gigabytes that banks may take; default: half of the free disk."""
    threads: int = 1
    """CPU threads of a trial."""
    trials_per_gpu: int = 1
    """Trials that share a GPU."""
    gpu_fraction: tuple[str, ...] = ()
    """NETWORK=FRACTION: the part of a GPU that trials of one network get, instead of 1 / --trials-per-gpu."""
    max_failures: int = 2
    """Times that a crashed trial is tried again."""
    checkpoint_minutes: float = 10.0
    """Besides each epoch's end, checkpoint this often."""
    keep_checkpoints: Literal["all", "teachers", "last"] = "last"
    """Of finished trials, keep everything, the final weights of trials that others need, or all final weights."""
    teachers_from: Path | None = None
    """Another sweep's result folder: teachers finished there are shared, not trained again."""
    time_limit: str | None = None
    """MINUTES, HH:MM:SS or D-HH:MM:SS: nothing is started that can't reach a checkpoint before, then all trials checkpoint and stop."""
    teacher_weights: Path | None = None
    """Folder of backbones or whole teachers, named after their network, used instead of training them."""
    initialization: Literal["he", "authors"] = "he"
    """Initial weights: one rule for all networks, or the authors' family by family."""
    address: str | None = None
    """A running Ray cluster: auto or HOST:PORT."""
    dashboard: bool = False
    """Start Ray's dashboard (with a Ray that this command starts)."""
    require_gpus: bool = False
    """Refuse to start with fewer GPUs than --gpus."""
    dry_run: bool = False
    """Print the work-list and its cost; start nothing."""

    def __post_init__(self) -> None:
        preset = PRESETS[self.preset]
        for name in ("teacher_seeds", "threads", "trials_per_gpu"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("seeds", "top_k", "epochs"):
            _check(name, getattr(self, name), getattr(self, name) is None or getattr(self, name) >= 1, "1 or more")
        _check("trials", self.trials, self.trials is None or self.trials >= 1, "1 or more")
        _check("gpus", self.gpus, self.gpus >= 0, "0 (CPU) or more")
        _check("max_failures", self.max_failures, self.max_failures >= 0, "0 or more")
        for method in self.methods:
            _check("methods", method, method in METHODS, ", ".join(METHODS))
        for pair in self.pairs:
            teacher, _, student = pair.partition("-")
            for network in (teacher, student):
                _check("pairs", pair, is_network(network), f"TEACHER-STUDENT of {', '.join(network_table())}, timm/<model>")
            same_depth = network_facts(teacher).num_branches == network_facts(student).num_branches
            _check("pairs", pair, same_depth, "networks with equally many branches")
        if self.dataset is not None:
            known = ("cifar10", "cifar100", "digits", "fashion_mnist")
            _check("dataset", self.dataset, self.dataset in known, ", ".join(known))
        _check(
            "address",
            self.address,
            self.address is None or self.address == "auto" or re.fullmatch(r"[\w.-]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", self.address),
            "auto or HOST:PORT; for ray:// use `ray job submit`",
        )
        parse_fractions(self.gpu_fraction)
        parse_time(self.time_limit)
        source = self.teachers_from
        _check("teachers_from", str(source), source is None or (source / "trials").is_dir(), "the result folder of a sweep")
        is_other = source is None or source.resolve() != self.out.resolve()
        _check("teachers_from", str(source), is_other, "another folder than --out")
        folder = self.teacher_weights
        _check("teacher_weights", folder, folder is None or folder.is_dir(), "a folder of weight files")
        one_teacher = folder is None or self.teacher_seeds == 1
        _check("teacher_seeds", self.teacher_seeds, one_teacher, "1 with --teacher-weights, as a file is one teacher")
        _check("out", str(self.out), "://" not in str(self.out) and ":/" not in str(self.out), "a folder that all nodes share")
        _check("out", str(self.out), not self.out.exists() or self.out.is_dir(), "a folder")
        if self.out.is_dir() and any(self.out.iterdir()):
            known_files = ("plan.parquet", "trials", "studies.journal", "driver.lock")
            _check("out", str(self.out), any((self.out / name).exists() for name in known_files), "a new folder or one of a sweep")
        del preset


def parse_time(text: str | None) -> float | None:
    """Return seconds from MINUTES, HH:MM:SS or D-HH:MM:SS (Slurm's forms), None from None; raises ValueError on anything else."""
    if text is None:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", text) and float(text) > 0:
        return 60 * float(text)
    parts = re.fullmatch(r"(?:(\d+)-)?(\d{1,3}):(\d\d):(\d\d)", text)
    if parts is None:
        raise ValueError(f"--time-limit is {text}; accepted: minutes above 0, HH:MM:SS or D-HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _check(name: str, value: object, is_accepted: object, accepted: str) -> None:
    if not is_accepted:
        raise ValueError(f"--{name.replace('_', '-')} is {value}; accepted: {accepted}")


def parse(options: Callable[..., O], arguments: Sequence[str] | None = None) -> O:
    """Parse the command line into `options`; bad input is one sentence on stderr and exit status 2."""
    try:
        return tyro.cli(options, args=arguments)
    except (ValueError, KeyError) as error:
        refuse(str(error.args[0]) if error.args else str(error))


def refuse(sentence: str) -> NoReturn:
    """End the command: bad input."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(USAGE_ERROR)
