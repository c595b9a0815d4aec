"""How long tables take at scale: `python tests/benchmarks/analysis_scale.py [--trials 100000] [--epochs 240] [--small 2000]`.

Writes synthetic trials (real configurations, invented accuracies) straight into a compacted generation, and `--small` of them as
small files in a second folder; then times `analysis/build.py` on both, each in its own process, with its peak memory.
"""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.compact import INDEX_SCHEMA, PARTITIONS, ROWS_PER_GROUP, compact
from hsakd.config import DataConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.records import EPOCH_SCHEMA, TRIAL_SCHEMA, PlanEntry, ResultStore, TrialRecord

MEASURE = """
import resource, sys, time
start = time.perf_counter()
from analysis.build import main
status = main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(f"TIMED exit {status}, {time.perf_counter() - start:.1f} s ({time.process_time():.1f} s of CPU time), peak {peak:.2f} GiB")
"""


def trials_and_plan(count: int, epochs: int) -> tuple[list[TrialRecord], list[PlanEntry]]:
    """Return `count` student trials: 30 reported (10 a method), the rest search trials of 8 studies."""
    rng = np.random.default_rng(0)
    teacher = TrialConfig(
        network="wrn_40_2", data=DataConfig(dataset="cifar100"), objective=ObjectiveConfig(terms=(("task", 1.0), ("ce_q", 1.0)))
    )
    records, plan = [], []
    for number in range(count):
        is_report = number < 30
        method = ("HSAKD", "HSAKD*", "Student")[number % 3] if is_report else "search"
        terms = (
            ("task", 1.0),
            ("kl_q", 1.0 if is_report else float(rng.uniform(0.1, 10))),
            ("kl_p", 1.0 + number % 3 if is_report else 1.0),
        )
        data = DataConfig(dataset="cifar100", validation_fraction=0.0 if is_report else 0.1)
        objective = ObjectiveConfig(terms=terms, temperature=3.0 if is_report else 1 + number * 1e-4)
        optim, seed = OptimConfig(epochs=epochs), number // 3 if is_report else 0
        config = TrialConfig(network="wrn_16_2", data=data, optim=optim, objective=objective, teacher=teacher, seed=seed)
        top1 = float(rng.normal(77, 1))
        json = config.to_json()
        records.append(
            TrialRecord(
                trial_id=config.trial_id,
                status="complete",
                role="student",
                network="wrn_16_2",
                dataset="cifar100",
                seed=config.seed,
                num_epochs=epochs,
                teacher_network="wrn_40_2",
                top1_last=top1,
                top1_best_test=top1,
                top1_val=top1,
                multi_adds=101_000_000,
                total_seconds=3600.0,
                device="cuda",
                versions={"torch": "2.9"},
                config_json=json,
            )
        )
        study = "" if is_report else f"study-{number % 8}"
        plan.append(
            PlanEntry(
                trial_id=config.trial_id,
                purpose="report" if is_report else "search",
                method=method,
                teacher="wrn_40_2",
                student="wrn_16_2",
                seed=config.seed,
                study=study,
                study_number=None if is_report else number // 8,
                config_json=json,
            )
        )
    return records, plan


def write_compacted(root: Path, records: list[TrialRecord], epochs: int) -> None:
    """Write a generation as `compact` would, without 2 x `records` small files first."""
    folder = root / "compacted" / "synthetic"
    (folder / "trials").mkdir(parents=True)
    (folder / "epochs").mkdir()
    rng = np.random.default_rng(1)
    for digit in PARTITIONS:
        mine = [record for record in records if record.trial_id.startswith(digit)]
        rows = [{field.name: getattr(record, field.name) for field in dataclasses.fields(record)} for record in mine]
        pq.write_table(
            pa.Table.from_pylist([row | {"versions": list(row["versions"].items())} for row in rows], schema=TRIAL_SCHEMA),
            folder / "trials" / f"{digit}.parquet",
        )
        with pq.ParquetWriter(folder / "epochs" / f"{digit}.parquet", EPOCH_SCHEMA, compression="zstd") as writer:
            per_group = max(1, ROWS_PER_GROUP // epochs)
            for start in range(0, len(mine), per_group):
                ids = [record.trial_id for record in mine[start : start + per_group]]
                size = len(ids) * epochs
                columns = {
                    "trial_id": pa.array(np.repeat(ids, epochs)),
                    "epoch": pa.array(np.tile(np.arange(epochs), len(ids))),
                    "top1_test": pa.array(rng.normal(70, 3, size).round(2)),
                    "loss": pa.array(rng.normal(2, 0.1, size)),
                }
                arrays = [columns[field.name] if field.name in columns else pa.nulls(size, field.type) for field in EPOCH_SCHEMA]
                writer.write_table(pa.Table.from_arrays(arrays, schema=EPOCH_SCHEMA))
    index = {"trial_id": [record.trial_id for record in records], "mtime_ns": [0] * len(records), "size": [0] * len(records)}
    pq.write_table(pa.table(index, schema=INDEX_SCHEMA), folder / "index.parquet")
    (root / "compacted" / "CURRENT").write_text("synthetic\n")


def timed(*arguments: str) -> str:
    """Run the build in its own process; return its last line."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=False)
    return (done.stdout.strip().splitlines() or [done.stderr])[-1]


def main() -> None:
    """Print one line a measurement."""
    parser = argparse.ArgumentParser(description="Time the analysis at scale.")
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=240)
    parser.add_argument("--small", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name, count in (("small", options.small), ("large", options.trials)):
            root = Path(temporary) / name
            records, plan = trials_and_plan(count, options.epochs)
            store = ResultStore(root)
            store.write_plan(plan)
            if name == "small":
                for record in records:
                    store.write_trial(record, [])
                print(f"{count} trials in small files: {timed(str(root))}", flush=True)
                start = time.perf_counter()
                compact(root)
                print(f"{count} trials: compacted in {time.perf_counter() - start:.1f} s; then {timed(str(root))}", flush=True)
            else:
                write_compacted(root, records, options.epochs)
                print(f"{count} trials x {options.epochs} epochs, compacted: {timed(str(root))}", flush=True)


if __name__ == "__main__":
    main()
