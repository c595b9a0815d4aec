"""Whether each part that a sweep takes of its training images can have all classes, as far as that is known without the images."""

import math

from hsakd.config import DataConfig
from hsakd.dataset_table import DATASET_TABLE, DatasetFacts


def check_parts(data: DataConfig) -> None:
    """Raise ValueError, naming the option, where a split would leave fewer images than classes, as the run would refuse it, too."""
    facts = data.folder or DATASET_TABLE.get(data.dataset, DatasetFacts())
    if facts.num_train_images is None or facts.num_classes is None:
        return
    count, classes = facts.num_train_images, facts.num_classes
    if data.train_subset not in (None, count):
        if not classes <= data.train_subset <= count - classes:
            few = f"{classes} to {count - classes}, or all {count}"
            raise ValueError(f"--train-images is {data.train_subset}; accepted for the {classes} classes of {data.dataset}: {few}")
        count = data.train_subset
    if data.few_shot_ratio != 1:
        left_out = math.ceil((1 - data.few_shot_ratio) * count)
        if not classes <= left_out <= count - classes:
            parts = f"parts of the {count} images that leave one or more of each of the {classes} classes in and out, and 1"
            raise ValueError(f"--ratios is {data.few_shot_ratio:g}; accepted: {parts}")
        count -= left_out
    held_out = math.ceil(data.validation_fraction * count)
    if data.validation_fraction > 0 and not classes <= held_out <= count - classes:
        given = f"--data-dir has {count} training images" if data.train_subset is None else f"--train-images is {count}"
        share = f"{data.validation_fraction:g} of them, one or more of each of the {classes} classes"
        raise ValueError(f"{given}; accepted: as many that searches can hold out {share}")
