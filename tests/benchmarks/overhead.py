"""The engine's own cost with real Ray: no-op trials at 4 slots. `python tests/benchmarks/overhead.py [TRIALS] [--fresh]`.

Driver CPU time per trial and per report, the driver's memory growth, the growth of Ray's temporary folder, and seconds per trial in
reused workers; `--fresh` gives each trial a process of its own, as sweeps other than the digits preset do.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from ray.cluster_utils import Cluster

from hsakd.records import PlanEntry
from hsakd.store import ResultStore
from sweeps.cli import SweepOptions
from sweeps.engine.options import EngineOptions
from sweeps.engine.run import run_schedule
from sweeps.schedule import Schedule
from sweeps.worklist import TrialFactory

SLOTS = 4
REPORTS = 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def folder_bytes(*folders: Path) -> int:
    """The size of all files below, a page or more each."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for folder in folders for path in folder.rglob("*") if path.is_file())


def measure(num_trials: int, num_reports: int, *, reuses_workers: bool) -> dict[str, float]:
    """Run no-op trials on a cluster of one node with `SLOTS` CPUs; return what the driver spent."""
    os.environ.update(
        NOOP_REPORTS=str(num_reports),
        NOOP_IMPORTS_TORCH="1",
        OMP_NUM_THREADS="1",
        PYTHONPATH=os.pathsep.join((str(Path(__file__).parents[2]), str(Path(__file__).parent))),
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        out.mkdir()
        options = SweepOptions(out=out, preset="digits", methods=("Student",))
        base = TrialFactory(options).baseline("resnet8_half", 0)
        configs = [replace(base, seed=seed, optim=replace(base.optim, epochs=num_reports, milestones=())) for seed in range(num_trials)]
        lines = [
            (PlanEntry(trial_id=c.trial_id, purpose="report", method="Student", teacher="resnet14", student="resnet8_half", seed=c.seed), c)
            for c in configs
        ]
        store = ResultStore(out)
        schedule = Schedule(options, store, lambda config: store.finished(config.trial_id), lines=lines)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": SLOTS, "object_store_memory": 80 * 2**20})
        ends: list[tuple[float, int]] = []
        sizes: list[int] = []

        def note(line: str) -> None:
            if not line.startswith("complete "):
                return
            ends.append((time.monotonic(), resident_bytes()))
            if len(ends) in (num_trials // 2, num_trials):
                sizes.append(folder_bytes(Path(cluster.head_node.get_session_dir_path()), *out.glob(".tune-*")))

        engine = EngineOptions(
            out=out, address=cluster.address, run="noop_trials:run", reuses_workers=reuses_workers, keep_checkpoints="teachers"
        )
        before = resource.getrusage(resource.RUSAGE_SELF)
        run_schedule(schedule, engine, note)
        after = resource.getrusage(resource.RUSAGE_SELF)
        cluster.shutdown()
        assert schedule.is_complete
    first, middle, last = ends[SLOTS], ends[num_trials // 2], ends[-1]
    return {
        "trials": num_trials,
        "reports": num_trials * num_reports,
        "driver_cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "seconds_per_trial_after_the_first": (last[0] - first[0]) * SLOTS / (num_trials - SLOTS),
        "driver_resident_mb": last[1] / 2**20,
        "driver_growth_kb_per_trial": (last[1] - middle[1]) / 1024 / (num_trials / 2),
        "temporary_mb": sizes[-1] / 2**20,
        "temporary_growth_kb_per_trial": (sizes[-1] - sizes[0]) / 1024 / (num_trials / 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The engine's own cost with real Ray: no-op trials at 4 slots.")
    parser.add_argument("trials", nargs="?", type=int, default=500, metavar="TRIALS", help="default: 500")
    parser.add_argument("--fresh", action="store_true", help="a process of its own for each trial")
    options = parser.parse_args()
    num_trials, reuses_workers = options.trials, not options.fresh
    few = measure(num_trials, 1, reuses_workers=reuses_workers)
    print("one report a trial", json.dumps({key: round(value, 4) for key, value in few.items()}), flush=True)
    many = measure(num_trials // 4, REPORTS, reuses_workers=reuses_workers)
    print(f"{REPORTS} reports a trial", json.dumps({key: round(value, 4) for key, value in many.items()}), flush=True)
    per_trial = few["driver_cpu_seconds"] / num_trials
    extra = many["driver_cpu_seconds"] / many["trials"] - per_trial
    print(f"driver: {1000 * per_trial:.1f} ms CPU a trial, {1000 * extra / (REPORTS - 1):.2f} ms CPU a further report")


if __name__ == "__main__":
    main()
