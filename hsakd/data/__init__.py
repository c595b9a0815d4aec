"""Images: data sets as uint8 tensors or as files, stratified splits, view spaces."""

from hsakd.data import folder, stl10, tinyimagenet
from hsakd.data.datasets import DATASETS, DataMissing, Dataset, load_dataset
from hsakd.data.streams import StreamedImages, TrainingData, check_dataset, open_dataset
from hsakd.data.views import Batch, ResizedCrops, Views, ViewSpace, apply_views, normalize, rotate_rows

__all__ = [
    "DATASETS",
    "Batch",
    "DataMissing",
    "Dataset",
    "ResizedCrops",
    "StreamedImages",
    "TrainingData",
    "ViewSpace",
    "Views",
    "apply_views",
    "check_dataset",
    "load_dataset",
    "normalize",
    "open_dataset",
    "rotate_rows",
]

_READERS = (folder, stl10, tinyimagenet)  # importing a reader registers its data set
