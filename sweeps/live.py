"""What a running sweep shows: a live view on a terminal, plain lines elsewhere."""

import os
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweeps.schedule import Schedule


def put(line: str, console: Console | None = None, *, file: TextIO | None = None) -> None:
    """Print a line (on stdout unless `file` says so); once that can't be done, it and all later output there lead nowhere.

    A reader that has gone (`| head`, a lost terminal) or a log on a full disk is not the sweep's end.
    """
    stream = sys.stdout if file is None else file
    try:
        if console is None:
            print(line, file=stream, flush=True)
        else:
            console.print(Text(line))
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class SweepView:
    """Counts of trials, the best accuracy so far of each method and pair, and the time left at the speed so far.

    `say` writes a line that stays; on a terminal the view below it refreshes twice a second.
    """

    def __init__(self, schedule: Schedule, *, is_terminal: bool | None = None) -> None:
        self.schedule = schedule
        self.started = time.monotonic()
        self.already_done = set(schedule.done)
        self.console = Console(highlight=False, soft_wrap=True)
        on_terminal = sys.stdout.isatty() if is_terminal is None else is_terminal
        self.live = Live(get_renderable=self.render, console=self.console, refresh_per_second=2, transient=True) if on_terminal else None

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live is not None:
            with suppress(OSError):
                self.live.stop()

    def say(self, line: str) -> None:
        """Print a line of news with the time and the count."""
        news = f"[{time.monotonic() - self.started:6.0f} s  {len(self.schedule.done)}/{self.num_trials()}] {line}"
        put(news, None if self.live is None else self.console)

    def num_trials(self) -> int:
        """Return the trials known or to be asked for."""
        return len(self.schedule.done) + len(self.schedule.running) + self.schedule.num_waiting

    def render(self) -> RenderableType:
        """Return the view."""
        schedule = self.schedule
        left = schedule.forecast_seconds if set(schedule.done) - self.already_done else None
        head = (
            f"{len(schedule.done)} done, {len(schedule.running)} running, {schedule.num_waiting} waiting, {len(schedule.failed)} failed; "
            f"{'time left not known yet' if left is None else f'about {left / 60:.0f} min left'}"
        )
        table = Table("pair", "method", "best top-1 (last epoch, %)", box=None)
        for (pair, method), accuracy in sorted(self.best().items()):
            table.add_row(pair, method, f"{accuracy:.2f}")
        return Group(Text(head), table)

    def best(self) -> dict[tuple[str, str], float]:
        """Return the best accuracy so far by (pair, method) among the reported rows."""
        best: dict[tuple[str, str], float] = {}
        for entry in list(self.schedule.entries):
            record = self.schedule.done.get(entry.trial_id)
            if entry.purpose == "report" and record is not None and record.top1_last is not None:
                key = (f"{entry.teacher}-{entry.student}", entry.method)
                best[key] = max(best.get(key, 0.0), record.top1_last)
        return best
