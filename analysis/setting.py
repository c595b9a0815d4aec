"""On what the trials of a table or figure were trained, in a few words for its reader."""

from collections.abc import Collection
from typing import Any

import pandas as pd

from analysis.aggregate import Results, records_of
from hsakd.dataset_table import DATASET_TABLE, DatasetFacts

MOST_SETTINGS = 3  # that are named; the others are counted
_COLUMNS = ["config_dataset", "train_subset", "validation_fraction", "image_size", "epochs"]


def setting_of(results: Results, trial_ids: Collection[str]) -> str:
    """Return "fashion_mnist, 1,000 training images, 16x16, 40 epochs"; of several the most frequent first; empty without a trial.

    The part of the training set that a few-shot trial sees is its row's name, and not repeated.
    """
    entries = results.entries[["trial_id", *_COLUMNS]]
    is_trained_here = (entries["config_dataset"] != "") & (entries["epochs"] != 0)  # 0 epochs: weights from a file
    entries = entries[is_trained_here & entries["trial_id"].isin(list(trial_ids))].drop_duplicates("trial_id")
    counts = entries.groupby(_COLUMNS, dropna=False).size().rename("trials").reset_index()
    of_texts: dict[str, int] = {}
    for row in records_of(counts):
        text = _text(row)
        of_texts[text] = of_texts.get(text, 0) + int(row["trials"])
    ordered = sorted(of_texts, key=lambda text: (-of_texts[text], text))
    if len(ordered) < 2:
        return "".join(ordered)
    shown = [f"{text} ({_counted(of_texts[text], 'trial')})" for text in ordered[:MOST_SETTINGS]]
    others = len(ordered) - len(shown)
    return "; ".join([*shown, *([_counted(others, "other setting")] if others else [])])


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number > 1 else "")


def _text(row: dict[str, Any]) -> str:
    facts = DATASET_TABLE.get(row["config_dataset"], DatasetFacts())
    images = int(row["train_subset"]) if pd.notna(row["train_subset"]) else facts.num_train_images
    side = int(row["image_size"]) if pd.notna(row["image_size"]) else facts.image_size
    held_out = f" ({row['validation_fraction']:.0%} held out)".replace("%", " %") if row["validation_fraction"] > 0 else ""
    parts = [str(row["config_dataset"])]
    parts += [f"{images:,} training images{held_out}"] if images is not None else []
    parts += [f"{side}x{side}"] if side is not None else []
    parts += [f"{row['epochs']:.0f} epochs"] if pd.notna(row["epochs"]) else []
    return ", ".join(parts)
