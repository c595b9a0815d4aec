"""`python sweeps/run_pairs.py`: the main command. Trains teachers and students of every pair, searches, confirms, records."""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from hsakd.config import TrialConfig
from hsakd.records import PlanEntry, ResultStore
from sweeps.cli import SweepOptions, parse, refuse
from sweeps.live import SweepView
from sweeps.presets import PRESETS
from sweeps.schedule import Schedule, cost_of
from sweeps.teacher_files import describe_files, doubt, import_files, teacher_files
from sweeps.worklist import PAPER_SETTING, TrialFactory, known_work, num_search_trials, pairs_of, seeds_of

INTERRUPTED = 130
DEFAULT_RUN = "hsakd.training.trial:run_trial"
RUN_VARIABLE = "HSAKD_RUN"  # another function to run trials with: scheduling tests have one that trains nothing


def print_plan(options: SweepOptions, lines: Sequence[tuple[PlanEntry, TrialConfig]]) -> None:
    """Print the work-list and its cost; nothing is started or written."""
    store = ResultStore(options.out)
    configs: dict[str, TrialConfig] = {}
    for _, config in lines:
        for trial in (*config.requirements(), config):
            configs[trial.trial_id] = trial
    done = {trial_id for trial_id, config in configs.items() if store.finished(config.trial_id) is not None}
    print(f"{'trial':16s}  {'purpose':8s} {'method':10s} {'pair':28s} {'seed':>4s}  {'multiply-adds':>13s}  state")
    for entry, config in lines:
        state = "done" if entry.trial_id in done else "to do"
        name = f"{entry.teacher}-{entry.student}"
        print(f"{entry.trial_id}  {entry.purpose:8s} {entry.method:10s} {name:28s} {entry.seed:4d}  {cost_of(config):13.3g}  {state}")
    total = sum(cost_of(config) for trial_id, config in configs.items() if trial_id not in done)
    dynamic, factory = 0.0, TrialFactory(options)
    if "HSAKD-tuned" in options.methods:
        per_pair = num_search_trials(options) + (1 + top_k_of(options)) * (len(seeds_of(options)) - 1) + len(seeds_of(options))
        for pair in pairs_of(options):
            teacher = factory.joint_teacher(pair.teacher, 0, for_search=True)
            dynamic += per_pair * cost_of(factory.hsakd(pair, 0, teacher, PAPER_SETTING))
        print(f"and per pair: {num_search_trials(options)} search trials, their confirmation and the winner: at most {per_pair} trainings")
    print(f"{len(configs)} trials known, {len(done)} done; multiply-adds left: {total:.3g} known, at most {dynamic:.3g} for the searches")


def top_k_of(options: SweepOptions) -> int:
    """Return how many settings of a study are confirmed."""
    return options.top_k if options.top_k is not None else PRESETS[options.preset].top_k


def main() -> int:
    """Run the command; return its exit status: 0 only if the sweep is complete."""
    options = parse(SweepOptions)
    return run_work(options, known_work(options))


def run_work(options: SweepOptions, lines: Sequence[tuple[PlanEntry, TrialConfig]]) -> int:
    """Run a command's work-list in its result folder, or print it; return the exit status."""
    try:
        print("".join(f"{line}\n" for line in describe_files(options)), end="")
    except (ValueError, OSError) as error:
        refuse(str(error))
    if options.dry_run:
        print_plan(options, lines)
        return 0
    out = options.out.resolve()
    store = ResultStore(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / "driver.lock")
        lock.acquire(timeout=0)
    except Timeout:
        refuse(f"--out is {options.out}, in which another driver is at work; accepted: another folder, or wait for it to end")
    except OSError as error:
        refuse(f"--out is {options.out}, which can't be written ({error.strerror}); accepted: a folder that all nodes share")
    with lock:
        return run_locked(options, store, lines)


def lines_to_keep(plan: Sequence[PlanEntry], lines: Sequence[tuple[PlanEntry, TrialConfig]]) -> list[PlanEntry]:
    """Return the lines of an earlier plan that stay beside the new `lines`: those of studies that `lines` do not plan anew.

    Searches and what is outside any study belong to `run_pairs.py`, which plans them whole each time.
    """

    def place(entry: PlanEntry) -> tuple[str, str, str]:
        is_study = bool(entry.study) and entry.purpose not in ("search", "confirm")
        return (entry.study, entry.teacher, entry.student) if is_study else ("", "", "")

    planned = {place(entry) for entry, _ in lines}
    return [entry for entry in plan if place(entry) not in planned]


def run_locked(options: SweepOptions, store: ResultStore, lines: Sequence[tuple[PlanEntry, TrialConfig]]) -> int:
    """Run the sweep while this process holds the folder's lock."""
    from hsakd.data import load_dataset  # torch is imported from here on, not for --help or --dry-run
    from sweeps.engine import EngineOptions, NoGpus, run_schedule

    out = store.root
    data_dir = options.data_dir.resolve() if options.data_dir is not None else None
    try:
        import_files(teacher_files(options).values(), store)
        kept = lines_to_keep(store.read_plan(), lines)
        schedule = Schedule(options, store, lambda config: store.finished(config.trial_id), lines=lines, kept=kept)
        load_dataset(schedule.factory.data, data_dir, download=options.download)
        if schedule.searches:
            load_dataset(schedule.factory.search_data, data_dir)
    except (ValueError, KeyError) as error:
        refuse(str(error.args[0]))
    engine = EngineOptions(
        out=out,
        gpus=options.gpus,
        trials_per_gpu=options.trials_per_gpu,
        threads=options.threads,
        max_failures=options.max_failures,
        reuses_workers=PRESETS[options.preset].reuses_workers,
        address=options.address,
        requires_gpus=options.require_gpus,
        run=os.environ.get(RUN_VARIABLE, DEFAULT_RUN),
        context={
            "data_dir": data_dir,
            "device": "cuda" if options.gpus else "cpu",
            "num_threads": options.threads,
            "checkpoint_minutes": options.checkpoint_minutes,
            "keep_checkpoints": options.keep_checkpoints,
            "bank_dir": options.bank_dir.resolve() if options.bank_dir is not None else None,
            "bank_budget_bytes": None if options.bank_budget is None else int(options.bank_budget * 1e9),
        },
    )
    try:
        with SweepView(schedule) as view:
            run_schedule(schedule, engine, view.say)
    except NoGpus as error:
        refuse(str(error))
    return conclude(options, schedule)


def conclude(options: SweepOptions, schedule: Schedule) -> int:
    """Say what is done and what isn't, and the command that goes on; return the exit status."""
    counts = Counter(record.status for record in schedule.done.values())
    for path in sorted((schedule.store.root / "set_aside").glob("*")):
        print(f"set aside as unreadable, its trial is done again: {path}", file=sys.stderr)
    summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    for sentence in filter(None, map(doubt, schedule.done.values())):
        print(f"note: {sentence}", file=sys.stderr)
    if schedule.is_complete:
        print(f"complete: {summary}; tables: python analysis/build.py {options.out}")
        return 0
    command = f"python {Path(sys.argv[0])} {shlex.join(sys.argv[1:])}"
    print(f"not complete: {summary or 'nothing done'}, {schedule.num_waiting} waiting; go on with: {command}")
    for trial_id in sorted(schedule.failed):
        record = schedule.done.get(trial_id)
        reason = record.error.splitlines()[0] if record is not None and record.error else "stopped"
        print(
            f"failed: {trial_id} ({schedule.configs[trial_id].network}): {reason}; see {options.out}/errors/{trial_id}.txt", file=sys.stderr
        )
    return INTERRUPTED if schedule.is_stopping else 1


if __name__ == "__main__":
    raise SystemExit(main())
