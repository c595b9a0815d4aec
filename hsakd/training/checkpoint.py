"""The resume file of a running trial: atomic to write, checked when read, nothing in it is executed."""

import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from hsakd.files import replacing

RESUME_FILE = "resume.pt"
UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError, KeyError, zipfile.BadZipFile, zlib.error, OverflowError)


class CheckpointCorrupt(ValueError):
    """A resume file is cut, foreign or of another trial."""


class CheckpointNotWritten(OSError):
    """The disk has no room for a resume file, or can't be written; the previous file is as it was."""


def save_resume(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists and dicts only) as the folder's resume file, atomically.

    Raises:
        CheckpointNotWritten: the file can't be written.
    """
    try:
        with replacing(folder / RESUME_FILE) as temporary, temporary.open("wb") as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # PyTorch's writer fails over the system's error
        if not isinstance(cause, OSError):
            raise
        reason = f"{RESUME_FILE} can't be written in {folder} ({cause.strerror}); the previous one is kept"
        raise CheckpointNotWritten(cause.errno, reason) from error


def discard_unfinished(folder: Path) -> None:
    """Delete what writers that were killed left of their files; for the folder's one writer, before it begins to write."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def load_resume(folder: Path, trial_id: str) -> dict[str, Any] | None:
    """Return the state that `save_resume` wrote for this trial, on the CPU, or None where there is none.

    Raises:
        OSError: the file system fails at the moment; the file may be whole.
        CheckpointCorrupt: the file can't be read as weights, has other content than was written, or names another trial.
    """
    path = folder / RESUME_FILE
    if not path.exists():
        return None
    content = io.BytesIO(path.read_bytes())  # what fails from here on is in the file, not the file system
    try:
        with zipfile.ZipFile(content) as archive:  # PyTorch writes the parts' checksums and does not look at them
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} is damaged")
        content.seek(0)
        state = torch.load(content, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointCorrupt(f"{path.name} of trial {trial_id} can't be read: {error}") from error
    if not isinstance(state, dict) or state.get("trial_id") != trial_id:
        raise CheckpointCorrupt(f"{path.name} of trial {trial_id} belongs to another trial")
    return state
