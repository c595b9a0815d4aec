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
from sweeps.wording import counted, duration, judged, name_of, row_of, subject_of

FIRST_LINE_SECONDS = 60.0
LINE_SECONDS = 300.0
SHOWN_IN_LINE, SHOWN_IN_VIEW = 4, 8  # running trials


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
    """What runs, the best accuracy so far of each row, and the time left: a view on a terminal, elsewhere a line every few minutes.

    `say` writes a line that stays; on a terminal the view below it refreshes twice a second. `look` is the engine's heartbeat.
    """

    def __init__(self, schedule: Schedule, *, is_terminal: bool | None = None) -> None:
        self.schedule = schedule
        self.started = time.monotonic()
        self.next_line = self.started + FIRST_LINE_SECONDS
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

    def look(self) -> None:
        """Where there is no terminal, say now and then what runs: a training of hours is not to look dead in a log."""
        if self.live is None and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LINE_SECONDS
            running = self.running()
            shown = [f"{name} {subject} seed {seed} ({epochs})" for name, subject, seed, epochs in running[:SHOWN_IN_LINE]]
            more = [f"and {len(running) - SHOWN_IN_LINE} more"] if len(running) > SHOWN_IN_LINE else []
            self.say(f"{len(running)} running: {', '.join([*shown, *more]) or 'nothing yet'}; {self.time_left()}")

    def num_trials(self) -> int:
        """Return the trials known or to be asked for."""
        return len(self.schedule.done) + len(self.schedule.running) + self.schedule.num_waiting

    def render(self) -> RenderableType:
        """Return the view."""
        schedule, running, best = self.schedule, self.running(), self.best()
        head = (
            f"{len(schedule.done)} done, {len(schedule.running)} running, {schedule.num_waiting} waiting, {len(schedule.failed)} failed; "
            f"{self.time_left()}"
        )
        table = Table.grid(padding=(0, 2))
        if running:
            table.add_row("running")
        for name, subject, seed, epochs in running[:SHOWN_IN_VIEW]:
            table.add_row(f"  {name}", subject, f"seed {seed}", epochs)
        if len(running) > SHOWN_IN_VIEW:
            table.add_row(f"  and {len(running) - SHOWN_IN_VIEW} more")
        if best:
            table.add_row("best so far")
        for (subject, row), (value, kind) in best.items():
            table.add_row(f"  {row}", subject, f"{value:.2f} %", kind)
        return Group(Text(head), table)

    def time_left(self) -> str:
        """Return the forecast, once epochs have been measured."""
        seconds = self.schedule.forecast_seconds
        return "time left not known yet" if seconds is None else f"about {duration(seconds)} left"

    def running(self) -> list[tuple[str, str, int, str]]:
        """Return of each running trial its row, its pair (of a teacher: its network), its seed and its epochs so far."""
        schedule, shown = self.schedule, []
        for trial_id, epochs in schedule.epochs_done.items():
            if trial_id in schedule.running:
                entry, config = schedule.line_of(trial_id), schedule.configs[trial_id]
                shown.append((name_of(entry), subject_of(entry), config.seed, f"{epochs} of {counted(config.optim.epochs, 'epoch')}"))
        return shown

    def best(self) -> dict[tuple[str, str], tuple[float, str]]:
        """Return the best accuracy so far, and of what it is, by pair (of teachers: network) and row, in the plan's order."""
        best: dict[tuple[str, str], tuple[float, str]] = {}
        for entry in list(self.schedule.entries):
            record = self.schedule.done.get(entry.trial_id)
            value = None if record is None else judged(entry, record)
            if value is not None:
                key = (subject_of(entry), row_of(entry))
                best[key] = max(value, best.get(key, value))
        return best
