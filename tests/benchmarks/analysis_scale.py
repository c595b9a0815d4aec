"""How long tables take at scale: `python tests/benchmarks/analysis_scale.py [--trials 100000] [--epochs 240] [--small 2000]`.

Writes synthetic trials (real configurations, invented accuracies) straight into a compacted generation, and `--small` of them as
small files in a second folder; then times `analysis/build.py` on both, each in its own process, with its peak memory: first all tables,
then the rest of the build.
"""

import argparse
import dataclasses
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.aggregate import PAIRS
from analysis.compact import INDEX_SCHEMA, PARTITIONS, ROWS_PER_GROUP, compact, small_files
from hsakd.config import DataConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.network_table import network_table
from hsakd.records import EPOCH_SCHEMA, SCHEMA_VERSION, TRIAL_SCHEMA, PlanEntry, TrialRecord
from hsakd.store import ResultStore

MEASURE = """
import resource, sys, time
start = time.perf_counter()
from pathlib import Path
import analysis.tables
from analysis.aggregate import load
from analysis.artefact import Options
from analysis.build import _collect, build
options = Options()
results = load([Path(sys.argv[1])])
tables = _collect(analysis.tables, lambda module: module.build(results, options), [])
for table in tables:
    table.to_markdown(), table.to_latex(), table.to_csv(), table.to_html()
def told(what):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"{what} {time.perf_counter() - start:.1f} s ({time.process_time():.1f} s of CPU time), peak {peak:.2f} GiB"
texts = [told(f"{len(tables)} tables in")]
build(results, options, Path(sys.argv[1]))
print(", ".join([*texts, told("with figures and report")]))
"""


def arms() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield study, row and what the row changes: Table 1's methods, and the arms of the ablation studies."""
    yield "", "Student", {"names": ("task",)}
    for study, method in (("", "HSAKD*"), ("loss-terms", "task+kl_q+kl_p"), ("aux-placement-full", "c1+c2+c3")):
        yield study, method, {}
    for names in (("task",), ("task", "kl_q"), ("task", "kl_q", "kd"), ("task", "kl_q", "kl_p", "ce_q")):
        yield "loss-terms", "+".join(names), {"names": names}
    for temperature in (1.0, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0):
        yield "temperature", f"temperature={temperature:g}", {"temperature": temperature}
    for weight in (0.1, 0.3, 1.0, 3.0, 10.0):
        yield "loss-weights", f"kl_q={weight:g}, kl_p=1", {"weight": weight}
    for size in (1, 2):
        for taps in itertools.combinations((1, 2, 3), size):
            yield "aux-placement-full", "+".join(f"c{tap}" for tap in taps), {"taps": taps}


def trials_and_plan(count: int, epochs: int) -> tuple[list[TrialRecord], list[PlanEntry]]:
    """Return `count` student trials of the paper's eight pairs: 25 reported rows a pair with ten seeds each, and search trials."""
    rng = np.random.default_rng(0)
    optim, tables = OptimConfig(epochs=epochs), network_table()
    records: dict[str, TrialRecord] = {}
    plan: list[PlanEntry] = []

    def teacher_of(name: str, validation: float) -> TrialConfig:
        data = DataConfig(dataset="cifar100", validation_fraction=validation)
        return TrialConfig(network=name, data=data, optim=optim, objective=ObjectiveConfig(terms=(("task", 1.0), ("ce_q", 1.0))))

    def add(config: TrialConfig, teacher: str, purpose: str, method: str, study: str, number: int | None = None) -> None:
        json, top1 = config.to_json(), float(rng.normal(77, 1))
        records[config.trial_id] = TrialRecord.of(
            config,
            status="complete",
            epochs_done=epochs,
            top1_last=top1,
            top1_best_test=top1,
            top1_val=top1,
            multi_adds=tables[config.network].multi_adds,
            total_seconds=3600.0,
            device="cuda",
            versions={"torch": "2.9"},
        )
        plan.append(
            PlanEntry(
                trial_id=config.trial_id,
                purpose=purpose,
                method=method,
                teacher=teacher,
                student=config.network,
                seed=config.seed,
                study=study,
                study_number=number,
                config_json=json,
            )
        )

    def student(name: str, teacher: TrialConfig, seed: int, *, names: Any = ("task", "kl_q", "kl_p"), **fields: Any) -> TrialConfig:
        terms = tuple((term, fields.get("weight", 1.0) if term == "kl_q" else 1.0) for term in names)
        objective, is_plain = ObjectiveConfig(terms=terms, temperature=fields.get("temperature", 3.0)), names == ("task",)
        more = {"taps": ()} if is_plain else {"taps": fields.get("taps"), "teacher": teacher}
        return TrialConfig(network=name, data=teacher.data, optim=optim, objective=objective, seed=seed, **more)

    for (teacher, name), (study, method, fields), seed in itertools.product(PAIRS, arms(), range(10)):
        if len(records) < count:
            add(student(name, teacher_of(teacher, 0.0), seed, **fields), teacher, "report", method, study)
    for number in itertools.count():
        if len(records) >= count:
            break
        teacher, name = PAIRS[number % len(PAIRS)]
        setting = {"temperature": 1 + number * 1e-4, "weight": float(rng.uniform(0.1, 10))}
        config = student(name, teacher_of(teacher, 0.1), 0, **setting)
        add(config, teacher, "search", "search", f"{teacher}-{name}", number // len(PAIRS))
    return list(records.values()), plan


def trial_table(records: Sequence[TrialRecord]) -> pa.Table:
    """Return trials as a table, as the result store writes them."""
    rows = [{field.name: getattr(record, field.name) for field in dataclasses.fields(record)} for record in records]
    return pa.Table.from_pylist([row | {"versions": list(row["versions"].items())} for row in rows], schema=TRIAL_SCHEMA)


def epoch_table(trial_ids: Sequence[str], epochs: int, rng: np.random.Generator) -> pa.Table:
    """Return invented epochs of trials as a table, as the result store writes them."""
    size = len(trial_ids) * epochs
    columns = {
        "trial_id": pa.array(np.repeat(trial_ids, epochs)),
        "epoch": pa.array(np.tile(np.arange(epochs), len(trial_ids))),
        "top1_test": pa.array(rng.normal(70, 3, size).round(2)),
        "loss": pa.array(rng.normal(2, 0.1, size)),
        "schema_version": pa.array(np.full(size, SCHEMA_VERSION)),
    }
    arrays = [columns[field.name] if field.name in columns else pa.nulls(size, field.type) for field in EPOCH_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=EPOCH_SCHEMA)


def write_small(store: ResultStore, records: Sequence[TrialRecord], epochs: int) -> None:
    """Write two small files a trial, as `ResultStore.write_trial` does, but without waiting for the disk each time."""
    rng = np.random.default_rng(1)
    for folder in (store.root / "trials", store.root / "epochs"):
        folder.mkdir(exist_ok=True)
    for record in records:
        pq.write_table(epoch_table([record.trial_id], epochs, rng), store.epochs_path(record.trial_id), compression="zstd")
        pq.write_table(trial_table([record]), store.trial_path(record.trial_id), compression="zstd")


def write_compacted(root: Path, records: list[TrialRecord], epochs: int) -> None:
    """Write a generation as `compact` would, and beside it the trials' small files that a compaction leaves, of which a reader sees only
    that they are as they were: they are empty here."""
    folder = root / "compacted" / "synthetic"
    (folder / "trials").mkdir(parents=True)
    (folder / "epochs").mkdir()
    rng = np.random.default_rng(1)
    for digit in PARTITIONS:
        mine = [record for record in records if record.trial_id.startswith(digit)]
        pq.write_table(trial_table(mine), folder / "trials" / f"{digit}.parquet")
        with pq.ParquetWriter(folder / "epochs" / f"{digit}.parquet", EPOCH_SCHEMA, compression="zstd") as writer:
            per_group = max(1, ROWS_PER_GROUP // epochs)
            for start in range(0, len(mine), per_group):
                writer.write_table(epoch_table([record.trial_id for record in mine[start : start + per_group]], epochs, rng))
    store = ResultStore(root)
    for record in records:
        store.trial_path(record.trial_id).touch()
    left = small_files(root / "trials")
    index = {
        "trial_id": list(left),
        "mtime_ns": [file.mtime_ns for file in left.values()],
        "size": [file.size for file in left.values()],
    }
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
            root, what = Path(temporary) / name, f"{count} trials x {options.epochs} epochs"
            records, plan = trials_and_plan(count, options.epochs)
            store = ResultStore(root)
            store.write_plan(plan)
            if name == "small":
                write_small(store, records, options.epochs)
                print(f"{what}, in small files: {timed(str(root))}", flush=True)
                start = time.perf_counter()
                compact(root)
                print(f"{what}: compacted in {time.perf_counter() - start:.1f} s; then {timed(str(root))}", flush=True)
            else:
                (root / "trials").mkdir(exist_ok=True)
                write_compacted(root, records, options.epochs)
                print(f"{what}, compacted: {timed(str(root))}", flush=True)


if __name__ == "__main__":
    main()
