"""What is left of attempts that failed: one text file per trial in `<out>/errors/`, data for the driver's record of the trial."""

import traceback

from hsakd.store import ResultStore

ATTEMPT_MARK = "=== attempt"
OUT_OF_MEMORY = "TrialOutOfMemory"
LOW_MEMORY = "running low on memory"  # how Ray says that its memory monitor killed workers; Tune then raises a RuntimeError


class WorkerDied(RuntimeError):
    """A trial's process ended without a word: it was killed, or its node was lost."""


def note_error(store: ResultStore, trial_id: str, attempt: int, error: BaseException) -> None:
    """Append an attempt's error and traceback; a folder that can't be written is no second error."""
    path = store.errors_path(trial_id)
    trace = "".join(traceback.format_exception(error))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{ATTEMPT_MARK} {attempt}: {type(error).__name__}: {error}\n{trace}\n")
    except OSError:
        return


def read_errors(store: ResultStore, trial_id: str) -> list[str]:
    """Return the attempts that failed, oldest first, each "N: Name: text" and its traceback."""
    path = store.errors_path(trial_id)
    try:
        text = path.read_text(errors="replace") if path.exists() else ""
    except OSError:
        return []
    return [part.strip() for part in text.split(ATTEMPT_MARK)[1:]]


def ran_out_of_memory(error: str) -> bool:
    """Whether an attempt ended because memory did not suffice, the device's or the machine's."""
    return OUT_OF_MEMORY in error.partition("\n")[0]


def ran_out_of_host_memory(error: str) -> bool:
    """Whether an attempt ended because its machine's memory did not suffice."""
    return ran_out_of_memory(error) and LOW_MEMORY in error.partition("\n")[0]
