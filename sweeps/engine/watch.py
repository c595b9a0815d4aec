"""What the driver does between Ray's events, and when it ends."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import ConcurrencyLimiter

from hsakd.files import replacing
from sweeps.engine.ends import touch_if_possible
from sweeps.engine.nodes import num_slots
from sweeps.engine.options import HEARTBEAT_SECONDS, STOP_FILE
from sweeps.engine.searcher import ScheduleSearcher
from sweeps.schedule import Schedule
from sweeps.status import PROGRESS_FILE
from sweeps.wording import counted


def write_progress(schedule: Schedule, out: Path) -> None:
    """Tell readers of the folder who works on it and what runs now; `python sweeps/status.py` reads it."""
    seconds_left = schedule.seconds_left()
    schedule.forecast_seconds = seconds_left if schedule.cost.num_measured else None
    progress = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "running": schedule.epochs_done,
        "slots": schedule.num_slots,
        "seconds_left": seconds_left,
        "basis": schedule.cost.describe(),
    }
    with replacing(out / PROGRESS_FILE) as temporary:
        temporary.write_text(json.dumps(progress))


class Watch(tune.Callback):
    """What happens between events, on the driver's own thread: the time limit, nodes that come and go, the progress file, crash counts.

    `look` is called at every heartbeat, after the schedule has been told what runs.
    """

    def __init__(self, searcher: ScheduleSearcher, limiter: ConcurrencyLimiter, look: Callable[[], None]) -> None:
        self.searcher, self.limiter, self.look = searcher, limiter, look
        self.next_look = 0.0
        self.num_present = searcher.nodes.num_present
        self.is_over = False

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        del iteration, info
        searcher = self.searcher
        schedule = searcher.schedule
        running = [trial.trial_id for trial in trials if trial.status == Trial.RUNNING]
        self.is_over = schedule.is_stopping and not running
        now = time.monotonic()
        if now < self.next_look:
            return
        self.next_look = now + HEARTBEAT_SECONDS
        left = searcher.seconds_left()
        if left is not None and left <= 0 and not schedule.is_stopping:
            searcher.say("the time limit is reached: trials checkpoint at their next step")
            schedule.is_stopping = True
            touch_if_possible(searcher.options.out / STOP_FILE)
        searcher.nodes.refresh()
        present = searcher.nodes.num_present
        if present != self.num_present:
            searcher.say(f"the cluster has {counted(present, searcher.nodes.kind)} now")
            self.num_present = present
            self.limiter.max_concurrent = num_slots(searcher.options, searcher.nodes)
        self.note_progress([searcher.trial_ids[name] for name in running if name in searcher.trial_ids])
        self.look()

    def note_progress(self, running: list[str]) -> None:
        """Tell the schedule and the folder what runs now."""
        searcher = self.searcher
        options, packing, schedule = searcher.options, searcher.packing, searcher.schedule
        schedule.epochs_done = {trial_id: len(searcher.ends.epochs.get(trial_id, [])) for trial_id in running}
        per_slot = packing.ranks_per_trial / packing.trials_per_gpu if options.gpus else options.cpus_per_trial
        schedule.num_slots = max(1.0, searcher.nodes.num_present / per_slot)
        try:
            write_progress(schedule, options.out)
        except OSError as error:
            searcher.ends.stop_for_storage(error)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Drop Tune's statistics of each reported number: it keeps every trial to the end, and nobody reads them."""
        del iteration, trials, info
        trial.run_metadata.metric_analysis, trial.run_metadata.metric_n_steps = {}, {}

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note a crash before the trial's next attempt looks for how many there were; the last one ends the trial."""
        del iteration, trials, info
        own_id = self.searcher.trial_ids.get(trial.trial_id)
        if own_id is not None:
            self.searcher.ends.note_crash(own_id)
            self.searcher.say(f"crashed  {self.searcher.ends.describe(own_id)}; is tried again")

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles callbacks, and nobody restores them."""
        return {}


class EndOfSweep(tune.Stopper):
    """Ends Ray's loop once the sweep is stopping and nothing runs: trials that still wait for a place never began."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        return self.watch.is_over

    def __getstate__(self) -> dict[str, Any]:
        return {}
