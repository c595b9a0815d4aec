"""The paper's full plan on 16 slots under a virtual clock: `python tests/benchmarks/scheduling.py`. The schedule is the engine's own."""

import argparse
import heapq
import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hsakd.config import TrialConfig
from hsakd.records import TrialRecord
from hsakd.store import ResultStore
from sweeps.cli import SweepOptions
from sweeps.cost import cost_of
from sweeps.schedule import Schedule

SLOTS = 16


def warm_bank_cost(config: TrialConfig) -> float:
    """A student's cost when the teacher's answers are already kept."""
    return cost_of(replace(config, numerics=replace(config.numerics, teacher_predictions="bank")))


def record_of(config: TrialConfig, accuracy: float) -> TrialRecord:
    return TrialRecord(
        trial_id=config.trial_id,
        status="complete",
        role=config.role,
        network=config.network,
        dataset=config.data.dataset,
        seed=config.seed,
        num_epochs=config.optim.epochs,
        top1_val=accuracy,
        config_json=config.to_json(),
    )


def simulate(out: Path, slots: int, duration: Callable[[TrialConfig], float]) -> dict[str, float]:
    """Return the makespan against its lower bound, with the durations that occurred."""
    schedule = Schedule(SweepOptions(out=out, preset="paper"), ResultStore(out), lambda _: None)
    chance, clock, events, spent = random.Random(1), 0.0, [], {}
    started = time.perf_counter()
    while True:
        while len(events) < slots and (config := schedule.next_trial()) is not None:
            spent[config.trial_id] = duration(config)
            heapq.heappush(events, (clock + spent[config.trial_id], config.trial_id))
        if not events:
            break
        clock, trial_id = heapq.heappop(events)
        schedule.complete(trial_id, record_of(schedule.configs[trial_id], chance.uniform(60, 80)))
    assert schedule.is_complete
    bound = max(sum(spent.values()) / slots, critical_path(schedule, spent))
    return {
        "trials": len(spent),
        "makespan_over_bound": clock / bound,
        "work_over_critical_path": sum(spent.values()) / slots / critical_path(schedule, spent),
        "driver_ms_per_trial": (time.perf_counter() - started) * 1000 / len(spent),
    }


def critical_path(schedule: Schedule, spent: dict[str, float]) -> float:
    """The longest chain: requirements, and teacher -> a search trial -> a confirmation -> a winner, which follow one another in a study."""

    def chain(config: TrialConfig) -> float:
        return spent[config.trial_id] + max((chain(needed) for needed in config.requirements()), default=0.0)

    longest = max(chain(config) for config in schedule.configs.values())
    for name, teacher in schedule.search_teachers.items():
        stages = [
            max(spent[e.trial_id] for e in schedule.entries if f"{e.teacher}-{e.student}" == name and (e.purpose, e.method) == stage)
            for stage in (("search", "search"), ("confirm", "confirm"), ("report", "HSAKD-tuned"))
        ]
        longest = max(longest, spent[teacher.trial_id] + sum(stages))
    return longest


def main() -> None:
    argparse.ArgumentParser(description="The paper's full plan on 16 slots under a virtual clock.").parse_args()
    results = {}
    for name, spread in (("exact", 0.0), ("plus_minus_30_percent", 0.3)):
        chance = random.Random(0)
        with tempfile.TemporaryDirectory() as folder:
            results[name] = simulate(
                Path(folder) / "out",
                SLOTS,
                lambda config: warm_bank_cost(config) * chance.uniform(1 - spread, 1 + spread),  # noqa: B023
            )
        print(name, json.dumps({key: round(value, 4) for key, value in results[name].items()}), flush=True)


if __name__ == "__main__":
    main()
