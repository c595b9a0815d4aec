"""Where a trial's ranks meet: temporary folders that say whose they are, so that what a killed process left can be deleted."""

import hashlib
import os
import re
import shutil
import socket
import tempfile
from pathlib import Path


def _prefix() -> str:
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]  # nodes may share a TMPDIR, and process numbers are a host's own
    return f"hsakd-ranks-{host}-"


def meeting_place() -> "tempfile.TemporaryDirectory[str]":
    """Return a new folder in TMPDIR that is deleted at the context's end."""
    return tempfile.TemporaryDirectory(prefix=f"{_prefix()}{os.getpid()}-")


def delete_left_meeting_places() -> None:
    """Delete the folders in TMPDIR of this host's processes that are no more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        owner = re.fullmatch(rf"{_prefix()}(\d+)-\w+", folder.name)
        if owner is not None and not Path(f"/proc/{owner[1]}").exists():
            shutil.rmtree(folder, ignore_errors=True)
