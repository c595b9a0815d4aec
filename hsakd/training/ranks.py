"""A trial on several devices of one node: a process per device, one of them the leader; none outlives the process that started them.

Not a nested Ray trainer, which keeps its resources when Ray Tune stops the trial; these processes are the trial's own children.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hsakd.config import TrialConfig
from hsakd.records import EpochMetrics, TrialRecord
from hsakd.temporary import meeting_place
from hsakd.training.team import Team
from hsakd.training.trial import RunContext, run_trial

POLL_SECONDS = 0.5
GRACE_SECONDS = 5.0  # after the first error: the others' errors may say more than "connection closed by peer"
SILENCE = timedelta(hours=2)  # of a rank, before the others give up; the process that started them watches them, too


class RankDied(RuntimeError):
    """A rank ended without a word: killed, or crashed below Python. `has_aborted`: by itself, as NCCL does after another rank's end."""

    has_aborted = False


def cause_of(errors: Sequence[BaseException]) -> BaseException:
    """Return which of the errors that ranks end with is why the trial ended: a rank that has lost another says RuntimeError, or aborts."""

    def distance(error: BaseException) -> int:
        if isinstance(error, RankDied):
            return 3 if error.has_aborted else 1
        return 2 if type(error) in (RuntimeError, dist.DistBackendError) else 0

    return min(errors, key=distance)


def run_ranks(
    config: TrialConfig,
    context: RunContext,
    *,
    report: Callable[[EpochMetrics], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrialRecord:
    """Run one trial with `context.num_ranks` processes and return the record that their leader wrote; raises what `run_trial` raises.

    However this call ends (an exception of `report`, a kill of this process), no rank is left.
    """
    spawn = multiprocessing.get_context("spawn")
    stop, processes, links = spawn.Event(), [], []
    with meeting_place() as folder:  # after a kill the next sweep deletes it
        try:
            for rank in range(context.num_ranks):
                link, far_end = spawn.Pipe(duplex=False)
                team = Team(rank, context.num_ranks)
                process = spawn.Process(target=run_rank, args=(team, config, context, Path(folder) / "store", far_end, stop))
                process.start()
                far_end.close()
                processes.append(process)
                links.append(link)
            errors = _listen(processes, links, stop, report=report, should_stop=should_stop)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()
                process.close()
    if errors:
        raise cause_of(errors)
    record = context.store.read_trial(config.trial_id)
    assert record is not None
    return record


def _listen(
    processes: list[Any],
    links: list[Connection],
    stop: Event,
    *,
    report: Callable[[EpochMetrics], None] | None,
    should_stop: Callable[[], bool] | None,
) -> list[BaseException]:
    """Pass epochs on and stop requests down until every rank has ended well; after an error, return what the ranks say of it."""
    errors: list[BaseException] = []
    have_said: set[Connection] = set()
    is_open = dict(zip(links, processes, strict=True))
    deadline: float | None = None
    while is_open and (deadline is None or time.monotonic() < deadline):
        if should_stop is not None and not stop.is_set() and should_stop():
            stop.set()
        for link in wait(list(is_open), timeout=POLL_SECONDS):
            assert isinstance(link, Connection)
            try:
                word = link.recv()
            except EOFError:
                process = is_open.pop(link)
                process.join()
                if process.exitcode != 0 and link not in have_said:
                    death = RankDied(f"rank {links.index(link)} of {len(links)} ended with exit status {process.exitcode}")
                    death.has_aborted = process.exitcode == -signal.SIGABRT
                    errors.append(death)
            else:
                if isinstance(word, BaseException):
                    errors.append(word)
                    have_said.add(link)
                elif report is not None:
                    report(word)
        if errors and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
    return errors


def run_rank(team: Team, config: TrialConfig, context: RunContext, store: Path, link: Connection, stop: Event) -> None:
    """One rank's process: meet the others, train, and tell the process that started it of epochs (the leader) and errors."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    is_cuda = context.device.startswith("cuda")
    device = f"cuda:{team.rank}" if is_cuda else context.device
    if is_cuda:
        torch.cuda.set_device(team.rank)
    elif sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one node: no address has to be looked up
    torch.set_num_threads(context.num_threads)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
            store=dist.FileStore(str(store), team.size),  # type: ignore[attr-defined] # a URL's path would stay percent-encoded
            rank=team.rank,
            world_size=team.size,
            timeout=SILENCE,
        )
        run_trial(
            config,
            replace(context, device=device),
            report=link.send if team.is_leader else None,
            should_stop=stop.is_set if team.is_leader else None,
            team=team,
        )
        dist.destroy_process_group()
    except BaseException as error:
        link.send(_portable(error))
        raise SystemExit(1) from error
    finally:
        link.close()


def _portable(error: BaseException) -> BaseException:
    """Return an error that survives the way to another process, with its traceback as a note."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        restored = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error if type(restored) is type(error) else RuntimeError(str(error))


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, whatever it waits for."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
