"""One command's run of the schedule: Ray from its start to its end, signals, and what is tidied up."""

import os
import secrets
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import ray
from ray import tune
from ray.tune.search import ConcurrencyLimiter

from hsakd.files import FULL_DISK
from sweeps.attempts import LOW_MEMORY
from sweeps.engine.cluster import delete_folder, ray_cluster, temporary_folder
from sweeps.engine.ends import touch_if_possible
from sweeps.engine.nodes import Nodes, check_gpus, num_slots, planned_slots
from sweeps.engine.options import STOP_FILE, EngineOptions
from sweeps.engine.searcher import PruningScheduler, ScheduleSearcher, resources_of
from sweeps.engine.watch import EndOfSweep, Watch, write_progress
from sweeps.engine.worker import run_unit
from sweeps.schedule import Schedule
from sweeps.status import PROGRESS_FILE
from sweeps.wording import counted, duration, reason_of


def run_schedule(
    schedule: Schedule, options: EngineOptions, say: Callable[[str], None] = print, look: Callable[[], None] = lambda: None
) -> None:
    """Run the schedule to its end, or until SIGINT, SIGTERM or the time limit: then trials checkpoint at their next step.

    A signal while Ray starts or ends, when no trial runs, ends at once. `say` prints news; `look` is called every two seconds while Ray
    works, when the schedule knows what runs.

    Raises:
        Unfit: the cluster lacks the GPUs, or no node of it can run trials.
    """
    stop_path = options.out / STOP_FILE
    stop_path.unlink(missing_ok=True)
    try:
        schedule.store.write_plan(schedule.plan())
    except OSError as error:
        say(f"--out can't be written ({reason_of(error)}): nothing was started; make room, then go on")
        schedule.is_stopping, schedule.is_blocked = True, error.errno in FULL_DISK
        return
    if schedule.is_complete or (schedule.is_stuck and not schedule.failed and schedule.num_waiting == 0):
        return
    schedule.num_slots = float(planned_slots(options))
    say_what_is_planned(schedule, options, say)
    folder = temporary_folder()
    for stale in options.out.glob(".tune-*"):  # of a driver that was killed: this process holds the folder's lock
        shutil.rmtree(stale, ignore_errors=True)
    for stale in options.out.glob(".*.tmp"):
        stale.unlink(missing_ok=True)

    def beat() -> None:
        with suppress(OSError):  # the heartbeat of the trials stops for it
            write_progress(schedule, options.out)

    try:
        beat()
        is_over = False
        while not is_over:
            with ray_cluster(options, folder):
                nodes = Nodes(options, say)
                nodes.wait_for_checks(beat)
                check_gpus(options, nodes, say)
                experiments = folder / "tune" if options.address is None else options.out / f".tune-{secrets.token_hex(4)}"
                try:
                    is_over = _run_tuner(schedule, options, nodes, experiments, say, look)
                finally:
                    shutil.rmtree(experiments, ignore_errors=True)
    except (KeyboardInterrupt, SystemExit):  # Ray's own handler of SIGTERM exits
        schedule.is_stopping = True
    finally:
        delete_folder(folder)
        for path in (stop_path, options.out / PROGRESS_FILE):
            path.unlink(missing_ok=True)
        try:
            schedule.store.write_plan(schedule.plan())
        except OSError as error:
            say(f"--out can't be written ({reason_of(error)})")
            schedule.is_stopping = True
            schedule.is_blocked |= error.errno in FULL_DISK
        sys.stdout.flush()


def say_what_is_planned(schedule: Schedule, options: EngineOptions, say: Callable[[str], None]) -> None:
    """Print what is to be done before Ray starts, which takes a while, and where to look until the first trial ends."""
    left = schedule.num_waiting
    more = " (searches add confirmations and winners)" if any(phase != "report" for phase in schedule.phases.values()) else ""
    where = counted(options.gpus, "GPU") if options.gpus else "CPUs"
    speed = "measured" if schedule.cost.num_measured else "assumed"
    say(
        f"{left} of {counted(left + len(schedule.done), 'training')} left{more}, {schedule.num_slots:g} at once on {where}, "
        f"about {duration(schedule.seconds_left())} at {speed} speed"
    )
    say(f"to see how it stands, from another terminal: python sweeps/status.py {shlex.quote(str(schedule.options.out))}")


def _run_tuner(
    schedule: Schedule, options: EngineOptions, nodes: Nodes, experiments: Path, say: Callable[[str], None], look: Callable[[], None]
) -> bool:
    """Let Ray's one Tuner work the schedule off; return False where it broke for want of host memory and a new one is to go on."""

    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        schedule.is_stopping = True
        touch_if_possible(options.out / STOP_FILE)
        news = f"{signal.Signals(number).name}: trials checkpoint at their next step; a second ends at once\n"
        with suppress(OSError):  # the reader of stdout may be gone
            os.write(sys.stdout.fileno(), news.encode())  # not `say`: it reads the studies, whose lock the interrupted code may hold

    searcher = ScheduleSearcher(schedule, options, nodes, say)
    limiter = ConcurrencyLimiter(searcher, max_concurrent=num_slots(options, nodes))
    watch = Watch(searcher, limiter, look)
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        tuner = tune.Tuner(
            tune.with_resources(run_unit, resources_of),
            tune_config=tune.TuneConfig(
                search_alg=limiter,
                scheduler=PruningScheduler(searcher),
                num_samples=-1,
                reuse_actors=options.reuses_workers,
                max_concurrent_trials=None,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(experiments),
                failure_config=tune.FailureConfig(max_failures=options.max_failures),
                callbacks=[watch],
                stop=EndOfSweep(watch),
                verbose=0,
            ),
        )
        tuner.fit()
    except KeyboardInterrupt:
        schedule.is_stopping = True
    except (tune.TuneError, ray.exceptions.RayError) as error:
        say(f"Ray ended the sweep: {str(error).strip().splitlines()[-1]}")
    except RuntimeError as error:
        if LOW_MEMORY not in str(error):
            raise
        searcher.take_lack_of_host_memory(str(error).partition("\n")[0])
        return schedule.is_stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for trial_id in list(schedule.running):
            schedule.put_back(trial_id)
    return True
