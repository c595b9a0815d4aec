"""Hours of trials, counted alike wherever a table states them."""

import pandas as pd

from analysis.aggregate import Results

KINDS = {"cpu": "CPU-hours (trial hours x threads)", "cuda": "GPU-hours (trial hours x GPUs)"}


def with_hours(entries: pd.DataFrame) -> pd.DataFrame:
    """Return the entries whose trial has ended, each trial once, with its `device` and `hours`.

    Hours are those of all attempts x ranks, of which each has a GPU, or x threads on CPUs, of which each has `num_threads`.
    """
    ended = entries[entries["total_seconds"].notna()].drop_duplicates("trial_id")
    threads = ended["num_threads"].where(ended["device"] == "cpu", 1).fillna(1).clip(lower=1)
    ranks = ended["num_ranks"].fillna(1).clip(lower=1)
    device = ended["device"].replace("", "unknown").fillna("unknown")
    return ended.assign(hours=ended["total_seconds"] * ranks * threads / 3600, device=device)


def total(ended: pd.DataFrame) -> str:
    """Return the hours of what `with_hours` returned, by kind of device, as text."""
    sums = ended.groupby("device")["hours"].sum()
    return ", ".join(f"{hours:.3f} {KINDS.get(str(device), f'trial hours on {device}')}" for device, hours in sums.items()) or "0 hours"


def search_entries(results: Results, study: str | None = None, dataset: str = "") -> pd.DataFrame:
    """Return what a study's search is made of (None: every study's): its trials, its confirmations and the teacher trained for it."""
    entries = results.entries
    is_trial = entries["purpose"].isin(["search", "confirm"])
    is_teacher = (entries["purpose"] == "teacher") & (entries["method"] == "search")
    if study is None:
        return entries[is_trial | is_teacher]
    is_ours = (is_trial & (entries["study"] == study)) | (is_teacher & (entries["teacher"] + "-" + entries["student"] == study))
    return entries[is_ours & entries["dataset"].fillna("").isin([dataset, ""])]
