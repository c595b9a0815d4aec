"""Images: data sets as uint8 tensors, stratified splits, view spaces."""

from hsakd.data import folder, stl10, tinyimagenet
from hsakd.data.datasets import DATASETS, DataMissing, Dataset, check_dataset, load_dataset
from hsakd.data.views import Batch, ResizedCrops, Views, ViewSpace, apply_views, normalize, rotate_rows

__all__ = [
    "DATASETS",
    "Batch",
    "DataMissing",
    "Dataset",
    "ResizedCrops",
    "ViewSpace",
    "Views",
    "apply_views",
    "check_dataset",
    "load_dataset",
    "normalize",
    "rotate_rows",
]

_READERS = (folder, stl10, tinyimagenet)  # importing a reader registers its data set
