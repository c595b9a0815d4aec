"""What is refused of parts of the training images: the same by the plan, which has numbers only, and by the data sets."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from hsakd.config import DataConfig
from hsakd.data.datasets import split_training_images
from hsakd.dataset_table import DATASET_TABLE
from sweeps.ablations import ablation_work
from sweeps.cli import AblationOptions, SweepOptions, in_options
from sweeps.data_parts import check_parts
from sweeps.run_pairs import run_work
from sweeps.worklist import known_work

DIGITS = DATASET_TABLE["digits"]


def parts() -> Iterator[DataConfig]:
    for size, ratio, fraction in product((None, 5, 10, 60, 1427, 1428, 1436, 1437, 1438), (1.0, 0.0001, 0.2, 0.995), (0.0, 0.1, 0.001)):
        yield DataConfig(dataset="digits", train_subset=size, few_shot_ratio=ratio, validation_fraction=fraction)


@pytest.mark.parametrize("data", list(parts()), ids=lambda data: f"{data.train_subset}-{data.few_shot_ratio}-{data.validation_fraction}")
def test_the_plan_refuses_what_the_splits_refuse(data: DataConfig) -> None:
    assert DIGITS.num_train_images is not None
    labels = np.arange(DIGITS.num_train_images, dtype=np.int64) % 10
    try:
        split_training_images(labels, data)
    except ValueError:
        with pytest.raises(ValueError, match=r"^--(train-images is|ratios is|data-dir has) .*; accepted"):
            check_parts(data)
    else:
        check_parts(data)


def test_data_sets_of_which_too_little_is_known_are_not_refused() -> None:
    check_parts(DataConfig(dataset="voc0712", train_subset=1))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"train_images": 100_000}, "--train-images is 100000; accepted for the 10 classes of digits: 10 to 1427, or all 1437"),
        ({"train_images": 5}, "--train-images is 5; accepted for the 10 classes of digits: 10 to 1427, or all 1437"),
        ({"train_images": 50}, "--train-images is 50; accepted: as many that searches can hold out 0.1 of them, one or more of each"),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_dry_run_refuses_what_the_run_refuses(
    more: dict[str, int], sentence: str, dry_run: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = SweepOptions(out=tmp_path / "out", preset="digits", dry_run=dry_run, **more)  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as end:
        run_work(options, known_work)
    told = capsys.readouterr()
    assert (end.value.code, told.out) == (2, "")
    assert told.err.startswith(f"error: {sentence}")
    assert list(tmp_path.iterdir()) == []


def test_a_ratio_that_is_too_small_is_named_by_its_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = AblationOptions(out=tmp_path / "out", preset="digits", study=("few-shot",), ratios=(0.0001, 1.0), dry_run=True)
    with pytest.raises(SystemExit):
        run_work(options, ablation_work)
    assert capsys.readouterr().err.startswith("error: --ratios is 0.0001; accepted: parts of the 1437 images")


def test_fields_that_the_data_sets_refuse_are_named_by_their_options() -> None:
    labels = np.array([0, 1, 1, 1], dtype=np.int64)  # one image of a class, which no table tells
    for data, option in ((DataConfig(dataset="digits", train_subset=2), "train-images"), (DataConfig(dataset="digits"), "ratios")):
        few = data if data.train_subset else replace(data, few_shot_ratio=0.5)
        with pytest.raises(ValueError, match="; accepted") as refused:
            split_training_images(labels, few)
        assert in_options(refused.value).startswith(f"--{option} is ")
    assert in_options(ValueError("seed is 1; accepted: 2")) == "seed is 1; accepted: 2"
