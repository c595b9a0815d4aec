"""Stratified splits: training subsets, the authors' few-shot rule, held-out validation."""

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedShuffleSplit

Indices = NDArray[np.int64]


def stratified_split(labels: Indices, *, second_size: int | float, seed: int, asked: str = "") -> tuple[Indices, Indices]:
    """Return (first, second) index arrays; `second_size` is a count, or a fraction below 1, of what goes into the second.

    Raises:
        ValueError: a part would have fewer images than there are classes, or a class has one image; `asked` ("train_subset is 5") is what
            was asked for.
    """
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=second_size, random_state=seed)
    try:
        first, second = next(splitter.split(np.zeros(len(labels)), labels))
    except ValueError as error:
        raise ValueError(
            f"{asked or f'second_size is {second_size}'}; accepted: a split of the {len(labels)} images into two parts with one image or "
            f"more of each of the {len(np.unique(labels))} classes"
        ) from error
    return first.astype(np.int64), second.astype(np.int64)


def stratified_subset(labels: Indices, size: int, *, seed: int) -> Indices:
    """Return sorted indices of a stratified subset of `size` images.

    Raises:
        ValueError: there are fewer than `size` images, or fewer than one per class would be kept.
    """
    if size > len(labels):
        raise ValueError(f"train_subset is {size}; accepted: at most {len(labels)} images")
    if size == len(labels):
        return np.arange(size, dtype=np.int64)
    return np.sort(stratified_split(labels, second_size=size, seed=seed, asked=f"train_subset is {size}")[1])


def few_shot_subset(labels: Indices, ratio: float) -> Indices:
    """Return the training indices of the authors' few-shot rule, in their order (Table 5).

    One StratifiedShuffleSplit with random_state 0 and test_size 1 - ratio; a ratio of 1 keeps everything (the authors' script would raise).
    """
    if ratio == 1:
        return np.arange(len(labels), dtype=np.int64)
    return stratified_split(labels, second_size=1 - ratio, seed=0, asked=f"few_shot_ratio is {ratio}")[0]
