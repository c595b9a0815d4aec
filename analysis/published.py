"""Published numbers, under our names of networks and rows, each with its source in `reference.csv`."""

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from analysis.inference import Summary
from analysis.table import Cell

PUBLISHED_N = 3  # runs behind a published mean ± std; their ddof is not published


def reference() -> pd.DataFrame:
    """Return all published numbers."""
    return pd.read_csv(Path(__file__).with_name("reference.csv"), keep_default_na=True)


def published(tables: Collection[str], pair: tuple[str, str, str]) -> dict[str, Summary]:
    """Return a pair's numbers in some tables of `reference.csv`, by method; whether ours can stand beside them is not asked here."""
    rows = reference()
    rows = rows[rows["table"].isin(tables) & (rows["teacher"] == pair[1]) & (rows["student"] == pair[2])]
    spreads = [None if pd.isna(std) else float(std) for std in rows["std"]]
    return {
        str(method): Summary(mean=float(mean), std=std, n=1 if std is None else PUBLISHED_N)
        for method, mean, std in zip(rows["method"], rows["mean"], spreads, strict=True)
    }


def published_cell(summary: Summary | None) -> Cell:
    """Return the cell of a published number; it has no trials."""
    if summary is None:
        return Cell(text="-")
    return Cell(text=f"{summary.mean:.2f}" + ("" if summary.std is None else f" ± {summary.std:.2f}"), mean=summary.mean, std=summary.std)
