"""What every command asks of a result folder that it reads or goes on with; this module imports no torch."""

from pathlib import Path


def check_trials(name: str, root: Path) -> None:
    """Raise ValueError where the folder that argument `name` gives has the trials in compacted files only, which no command but the
    analysis reads: to others it would look like a sweep that has done nothing."""
    if (root / "compacted" / "CURRENT").exists() and next((root / "trials").glob("*.parquet"), None) is None:
        raise ValueError(f"{name} is {root}, whose trials are in compacted files only, for the analysis; accepted: a folder with trials/")
