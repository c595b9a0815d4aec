"""One driver at a time writes into a result folder; one that is refused leaves the folder as it was."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hsakd.command_line import refuse
from hsakd.store import ResultStore
from sweeps.status import describe_driver

LOCK_FILE = "driver.lock"
BEGUN = (LOCK_FILE, "plan.parquet", "studies.journal")  # what a driver writes before its first trial


@contextmanager
def driver_lock(out: Path) -> Iterator[None]:
    """Make the result folder `--out` and hold its lock; deletes what was not there before if the command is refused with no trial begun."""
    folders = [folder for folder in (out, *out.parents) if not folder.exists()]
    had_lock = (out / LOCK_FILE).exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / LOCK_FILE)
        lock.acquire(timeout=0)
    except Timeout:
        refuse(f"--out is {out}, in which {describe_driver(ResultStore(out))} is at work; accepted: another folder, or wait for it to end")
    except OSError as error:
        refuse(f"--out is {out}, which can't be written ({error.strerror}); accepted: a folder that all nodes share")
    with lock:
        before = {path for path in out.iterdir() if had_lock or path.name != LOCK_FILE}
        try:
            yield
        except SystemExit:
            if not any((out / name).exists() for name in ("checkpoints", "trials")):
                _delete_new(out, before)
                for folder in folders:
                    if folder.is_dir() and not any(folder.iterdir()):
                        folder.rmdir()
            raise


def _delete_new(out: Path, before: set[Path]) -> None:
    """Delete what is not in `before`: all of it where nothing was there, else what a driver that has begun nothing writes."""
    for path in set(out.iterdir()) - before:
        if path.is_dir() and not before:
            shutil.rmtree(path, ignore_errors=True)
        elif not path.is_dir() and (not before or path.name in BEGUN):
            path.unlink(missing_ok=True)
