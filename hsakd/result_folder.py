"""What every command asks of a result folder that it reads or goes on with; this module imports no torch."""

from pathlib import Path

from hsakd.records import PlanEntry
from hsakd.store import DamagedFile, ResultStore


def check_trials(name: str, root: Path) -> None:
    """Raise ValueError where the folder that argument `name` gives has its trials in compacted files only.

    The analysis reads those; to other commands the folder would look like a sweep that has done nothing.
    """
    if (root / "compacted" / "CURRENT").exists() and next((root / "trials").glob("*.parquet"), None) is None:
        raise ValueError(f"{name} is {root}, whose trials are in compacted files only, for the analysis; accepted: a folder with trials/")


def read_plan(store: ResultStore) -> list[PlanEntry]:
    """Return a folder's plan, for a command that only reads it; raises ValueError with the way out where it is damaged."""
    try:
        return store.read_plan()
    except DamagedFile as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{store.root}/{reason}; run the sweep's command again: it writes its plan anew") from error
