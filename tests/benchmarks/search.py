"""`python -m tests.benchmarks.search`: eight search trials of one pair sharing a bank, against the same eight live, unshared."""

import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from hsakd.config import DataConfig, NumericsConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.records import ResultStore
from hsakd.training.trial import RunContext, run_trial


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Time whole trials; the live ones run our loop with a live teacher, not the plain reference step."""

    teacher: str = "wrn_40_2"
    """Network of the teacher."""
    student: str = "wrn_16_2"
    """Network of the students."""
    dataset: str = "fashion_mnist"
    """Data set."""
    train_subset: int = 1000
    """Training images."""
    epochs: int = 5
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


def main(options: SearchOptions) -> None:
    """Print the seconds and the bank misses of every trial, and the ratio of the sums."""
    torch.set_num_threads(options.threads)
    teacher = TrialConfig(
        network=options.teacher,
        data=DataConfig(dataset=options.dataset, train_subset=options.train_subset, validation_fraction=0.1),
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
            terms = (("task", 1.0), ("kl_q", 0.5 + 0.1 * number), ("kl_p", 1.0))
            row: dict[str, float] = {"trial": number + 1}
            for source in ("bank", "live"):
                numerics = NumericsConfig(teacher_predictions=source)
                objective = ObjectiveConfig(terms=terms, temperature=2.0 + 0.5 * number)
                config = replace(
                    teacher, network=options.student, teacher=teacher, optim=optim, objective=objective, numerics=numerics, seed=number
                )
                started = time.perf_counter()
                record = run_trial(config, context)
                row[f"{source}_seconds"] = time.perf_counter() - started
                if source == "bank":
                    row["hits"], row["misses"] = record.bank_hits, record.bank_misses
            rows.append(row)
            print(
                f"trial {number + 1}: bank {row['bank_seconds']:.1f} s ({row['hits']:.0f} hits, {row['misses']:.0f} misses), "
                f"live {row['live_seconds']:.1f} s",
                flush=True,
            )
    ratio = sum(row["live_seconds"] for row in rows) / sum(row["bank_seconds"] for row in rows)
    print(f"{options.trials} trials: live / bank = {ratio:.2f}")
    if options.json is not None:
        options.json.write_text(json.dumps({"ratio": ratio, "trials": rows}, indent=1))


if __name__ == "__main__":
    main(tyro.cli(SearchOptions))
