"""`python sweeps/run_pairs.py`: the main command. Trains teachers and students of every pair, searches, confirms, records."""

import os
import shlex
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from hsakd.command_line import INTERRUPTED, parse, refuse, run_command
from hsakd.config import TrialConfig
from hsakd.files import FULL_DISK
from hsakd.records import PlanEntry, TrialRecord
from hsakd.store import DamagedFile, ResultStore
from sweeps.cli import STREAMED, SweepOptions, in_options, parse_time
from sweeps.cost import CostModel, cost_of
from sweeps.data_parts import check_parts
from sweeps.driver_lock import driver_lock
from sweeps.forecast import Forecast, forecast, packed_seconds, read_done, read_searched, read_shared, searched_trials, unique_trials
from sweeps.live import SweepView, put
from sweeps.packing import Packing, num_cores, parse_fractions
from sweeps.plan_lines import lines_to_keep, rows_that_leave
from sweeps.presets import PRESETS, TUNED
from sweeps.schedule import Schedule, WorkLines
from sweeps.teacher_files import describe_files, doubt, import_files, teacher_files
from sweeps.wording import counted, pair_of, reason_of, row_of
from sweeps.worklist import TrialFactory, known_work, num_search_trials

WorkOptions = TypeVar("WorkOptions", bound=SweepOptions)
BLOCKED = 3
GPU_LOADER_WORKERS = 4  # a guess: nothing here has been run on a GPU
DEFAULT_RUN = "hsakd.training.trial:run_trial"
RUN_VARIABLE = "HSAKD_RUN"  # another function to run trials with: scheduling tests have one that trains nothing


def print_plan(options: SweepOptions, lines: WorkLines) -> None:
    """Print the work-list, GPU-hours, makespan and disk needs; nothing is started or written."""
    trials, cost = unique_trials(lines), CostModel("cuda" if options.gpus else "cpu")
    packing = packing_of(options)
    done = read_done(ResultStore(options.out), trials, cost)
    shared = read_shared(options, trials, done)
    rows = [("trial", "pair", "row", "seed", "multiply-adds", "hours", "state")]
    for entry, config in lines:
        state = "done" if entry.trial_id in done else "shared" if entry.trial_id in shared else "to do"
        hours = packed_seconds(config, options, cost, packing) / 3600
        rows.append((entry.trial_id, pair_of(entry), row_of(entry), str(entry.seed), f"{cost_of(config):.3g}", f"{hours:.2f}", state))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, "<<<>>><", widths, strict=True)
        print("  ".join(f"{cell:{side}{width}}" for cell, side, width in cells).rstrip())
    if TUNED in options.methods:
        print(
            f"and per pair: {num_search_trials(options)} search trials, their confirmation and the winner: "
            f"at most {searched_trials(options)} trainings"
        )
    left = sum(cost_of(config) for trial_id, config in trials.items() if trial_id not in done | shared)
    taken_over = f", {len(shared)} to take over from {options.teachers_from}" if shared else ""
    print(f"{counted(len(trials), 'trial')} known, {len(done)} done{taken_over}; multiply-adds left in the known ones: {left:.3g}")
    slots = options.gpus or cpu_slots((options.threads + loader_workers(options, trials.values())) * options.ranks_per_trial)
    searched = read_searched(options, ResultStore(options.out)) if TUNED in options.methods else set[str]()
    result = forecast(options, trials, done | shared | searched, cost, packing, slots)
    unit = "GPU" if options.gpus else "CPU-slot"
    print(
        f"{counted(result.num_trials, 'training')} left, searches included: {result.slot_hours:.3g} {unit}-hours, "
        f"about {result.makespan_hours:.3g} h on {slots} {'GPUs' if options.gpus else 'slots'} (basis: {cost.describe()})"
    )
    print(f"disk of --out: {result.weights_bytes / 1e9:.2f} GB of weights, {result.resume_bytes / 1e9:.2f} GB of resume files")
    if options.predictions == "bank":
        print(f"disk of --bank-dir: {describe_banks(result, options.bank_budget)}")


def describe_banks(result: Forecast, budget: float | None) -> str:
    """Return what the banks that a sweep fills take, and what a budget in GB (None: the default) means for them."""
    if result.bank_bytes == 0:
        return "none, as crops of images that stay in their files are too many to be kept, and feature maps are not"
    size, largest = result.bank_bytes / 1e9, result.largest_bank_bytes / 1e9
    said = f"at most {size:.4g} GB on a node that has students of every teacher; the budget is "
    if budget is None:
        return f"{said}half of the disk that is free there (--bank-budget)"
    if budget < largest:
        return f"{said}{budget:.4g} GB, but a bank takes up to {largest:.4g} GB: teachers whose bank is larger are asked live"
    return f"{said}{budget:.4g} GB" + ("" if budget >= size else ": a bank gives way to others once no trial has it open")


def packing_of(options: SweepOptions) -> Packing:
    """Return how trials share GPUs."""
    fractions = parse_fractions(options.gpu_fraction)
    return Packing(trials_per_gpu=options.trials_per_gpu, ranks_per_trial=options.ranks_per_trial, fractions=fractions)


def loader_workers(options: SweepOptions, trials: Iterable[TrialConfig]) -> int:
    """Return the processes of each rank that decode images: none where no trial's images stay in their files."""
    if not any(config.data.augmentation == STREAMED for config in trials):
        return 0
    usual = GPU_LOADER_WORKERS if options.gpus else 0
    return usual if options.loader_workers is None else options.loader_workers


def cpu_slots(cpus: int) -> int:
    """Return how many trials of `cpus` CPUs this process's cores can run at once, at least 1."""
    return max(1, num_cores() // cpus)


def main() -> int:
    """Run the command; return its exit status: 0 only if the sweep is complete."""
    options = parse(SweepOptions)
    return run_work(options, known_work)


def run_work(options: WorkOptions, work: Callable[[WorkOptions], WorkLines]) -> int:
    """Run a command's work-list in its result folder, or print it; return the exit status."""
    started = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until trials run, a signal ends the command at once
    try:
        print("".join(f"{line}\n" for line in describe_files(options)), end="")
        lines = work(options)
        for data in dict.fromkeys(config.data for _, config in lines):
            check_parts(data)
    except (ValueError, KeyError) as error:
        refuse(in_options(error))
    except OSError as error:
        refuse(str(error))
    if options.dry_run:
        try:
            check_studies(options, lines)
            print_plan(options, lines)
        except (ValueError, KeyError) as error:
            refuse(in_options(error))
        return 0
    out = options.out.resolve()
    with driver_lock(out):
        try:
            return run_locked(options, ResultStore(out), lines, started)
        except KeyboardInterrupt:
            put(f"stopped before any trial was started; go on with: {same_command()}")
            return INTERRUPTED


def check_studies(options: SweepOptions, lines: WorkLines) -> None:
    """Raise ValueError where the command would refuse to go on with a study; a copy of the journal is asked, as a sweep may be at work."""
    store = ResultStore(options.out.resolve())
    if TUNED not in options.methods or not store.journal_path.exists():
        return
    with TemporaryDirectory() as folder:
        copy = ResultStore(Path(folder))
        shutil.copyfile(store.journal_path, copy.journal_path)
        (copy.root / "trials").symlink_to(store.root / "trials")
        Schedule(options, copy, lambda _: None, lines=lines)


def same_command() -> str:
    """Return the command line that goes on."""
    return f"python {Path(sys.argv[0])} {shlex.join(sys.argv[1:])}"


def earlier_plan(store: ResultStore) -> list[PlanEntry]:
    """Return the folder's plan; a damaged one is set aside, and this command writes its own lines anew."""
    try:
        return store.read_plan()
    except DamagedFile as error:
        aside = store.set_aside(store.plan_path)
        print(f"{error}; moved to {aside}. Other commands that ran in this folder bring their lines back when run again", file=sys.stderr)
        return []


def run_locked(options: SweepOptions, store: ResultStore, lines: WorkLines, started: float) -> int:
    """Run the sweep while this process holds the folder's lock; `started` (of the monotonic clock) is when the time limit began."""
    from hsakd.data import check_dataset  # torch is imported from here on, not for --help or --dry-run
    from hsakd.training.trial import git_commit
    from sweeps.engine.options import EngineOptions, Unfit
    from sweeps.engine.run import run_schedule
    from sweeps.sharing import TeacherSource

    out = store.root
    data_dir = options.data_dir.resolve() if options.data_dir is not None else None
    source = TeacherSource(ResultStore(options.teachers_from.resolve()), store) if options.teachers_from is not None else None

    def finished(config: TrialConfig) -> TrialRecord | None:
        record = store.finished(config.trial_id)
        return source.adopt(config) if record is None and source is not None else record

    try:
        earlier = earlier_plan(store)
        kept = lines_to_keep(earlier, lines)
        if leaving := rows_that_leave(earlier, kept, lines):
            put(f"of other data or another schedule, so no longer in the plan (their results stay): {', '.join(leaving)}")
        if options.address is None or options.download:  # a cluster's nodes are checked one by one
            factory = TrialFactory(options)
            searched = [factory.search_data] if TUNED in options.methods else []
            for data in dict.fromkeys([factory.data, *searched, *(config.data for _, config in lines)]):
                check_dataset(data, data_dir, download=options.download)
        import_files(teacher_files(options).values(), store)
        schedule = Schedule(options, store, finished, lines=lines, kept=kept)
    except (ValueError, KeyError) as error:
        refuse(in_options(error))
    except OSError as error:
        if error.errno in FULL_DISK:
            put(f"--out can't be written ({reason_of(error)}): nothing was started; make room, then go on with: {same_command()}")
            return BLOCKED
        refuse(f"--out is {options.out}, of which a file can't be read at the moment ({error}); run the same command again")
    lost = [config for trial_id, config in schedule.configs.items() if trial_id not in schedule.done]  # e.g. a probe's student
    engine = EngineOptions(
        out=out,
        gpus=options.gpus,
        packing=packing_of(options),
        threads=options.threads,
        max_failures=options.max_failures,
        reuses_workers=PRESETS[options.preset].reuses_workers,
        address=options.address,
        has_dashboard=options.dashboard,
        requires_gpus=options.require_gpus,
        time_limit_seconds=parse_time(options.time_limit),
        started=started,
        keep_checkpoints=options.keep_checkpoints,
        data=schedule.factory.data,
        run=os.environ.get(RUN_VARIABLE, DEFAULT_RUN),
        context={
            "data_dir": data_dir,
            "device": "cuda" if options.gpus else "cpu",
            "num_threads": options.threads,
            "num_ranks": options.ranks_per_trial,
            "loader_workers": loader_workers(options, [*lost, *(config for _, config in lines)]),
            "checkpoint_minutes": options.checkpoint_minutes,
            "bank_dir": options.bank_dir.resolve() if options.bank_dir is not None else None,
            "bank_budget_bytes": None if options.bank_budget is None else int(options.bank_budget * 1e9),
            "git_commit": git_commit(),
        },
    )
    try:
        with SweepView(schedule) as view, epoch_logs(options, schedule):
            for line in source.news if source is not None else ():
                view.say(line)
            run_schedule(schedule, engine, view.say, view.look)
    except Unfit as error:
        refuse(str(error))
    return conclude(options, schedule)


@contextmanager
def epoch_logs(options: SweepOptions, schedule: Schedule) -> Iterator[None]:
    """While the sweep runs, write its epochs for TensorBoard, if asked."""
    if not options.tensorboard:
        yield
        return
    from sweeps.tensorboard_logs import TensorBoardLogs

    with TensorBoardLogs(schedule.store.root / "tensorboard") as logs:
        schedule.watchers.append(logs.add)
        yield


def conclude(options: SweepOptions, schedule: Schedule) -> int:
    """Say what is done and what isn't, and the command that goes on; return the exit status."""
    counts = Counter(record.status for record in schedule.done.values())
    for path in sorted((schedule.store.root / "set_aside").glob("*")):
        put(f"set aside as unreadable, its trial is done again: {path}", file=sys.stderr)
    summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    for sentence in filter(None, map(doubt, schedule.done.values())):
        put(f"note: {sentence}", file=sys.stderr)
    if schedule.is_complete:
        put(f"complete: {summary}; tables: python analysis/build.py {options.out}")
        return 0
    diverged = {trial_id for trial_id, record in schedule.done.items() if record.status == "diverged" and schedule.is_needed(trial_id)}
    is_curable = schedule.is_stopping or schedule.failed or not schedule.is_stuck
    advice = f"go on with: {same_command()}" if is_curable else "they need a trial that diverged, as it would again with these options"
    put(f"not complete: {summary or 'nothing done'}, {schedule.num_waiting} waiting; {advice}")
    for trial_id in sorted(schedule.failed | diverged):
        record = schedule.done.get(trial_id)
        reason = record.error.splitlines()[0] if record is not None and record.error else "stopped"
        name = f"{'diverged' if trial_id in diverged else 'failed'}: {trial_id} ({schedule.configs[trial_id].network})"
        more = "" if trial_id in diverged else f"; see {options.out}/errors/{trial_id}.txt"
        put(f"{name}: {reason}{more}", file=sys.stderr)
    return BLOCKED if schedule.is_blocked else INTERRUPTED if schedule.is_stopping else 1


if __name__ == "__main__":
    run_command(main)
