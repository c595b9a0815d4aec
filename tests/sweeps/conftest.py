"""What the sweep tests share: a command line run as users run it, and the comparable content of a result folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hsakd.store import ResultStore

ROOT = Path(__file__).parents[2]


class Command:
    """`python sweeps/run_pairs.py` with the scheduling stand-ins, in a process of its own."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def start(self, *arguments: str, run: str = "trainables:quick", epoch_seconds: float = 0.0) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "HSAKD_RUN": run,
            "HSAKD_TEST_EPOCH_SECONDS": str(epoch_seconds),
            "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
        }
        line = [sys.executable, str(ROOT / "sweeps" / "run_pairs.py"), "--preset", "digits", "--out", str(self.out), *arguments]
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def run(self, *arguments: str, run: str = "trainables:quick") -> tuple[int, str, str]:
        """Run to the end; return exit status, stdout and stderr."""
        process = self.start(*arguments, run=run)
        stdout, stderr = process.communicate(timeout=900)
        return process.returncode, stdout, stderr

    def run_and_signal(self, number: signal.Signals, after: str, *arguments: str, epoch_seconds: float) -> tuple[int, str]:
        """Send a signal once a line of output contains `after`; return exit status and all output."""
        process = self.start(*arguments, epoch_seconds=epoch_seconds)
        assert process.stdout is not None
        seen = ""
        for line in process.stdout:
            seen += line
            if after in line:
                process.send_signal(number)
                break
        rest, stderr = process.communicate(timeout=900)
        return process.returncode, seen + rest + stderr

    def results(self) -> dict[str, tuple[str, float | None]]:
        """Return status and accuracy by trial id, searches aside (their settings depend on the order of events)."""
        store = ResultStore(self.out)
        plan = [entry for entry in store.read_plan() if entry.purpose in ("backbone", "teacher", "report")]
        reported = {entry.trial_id for entry in plan if entry.method != "HSAKD-tuned"}
        records = [store.read_trial(trial_id) for trial_id in sorted(reported)]
        return {record.trial_id: (record.status, record.top1_last) for record in records if record is not None}


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """The command with a result folder of its own."""
    return Command(tmp_path / "out")
