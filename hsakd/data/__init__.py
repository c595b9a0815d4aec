"""Images: data sets as uint8 tensors or as files, stratified splits, view spaces."""

from hsakd.data.datasets import DATASETS, DataMissing, Dataset, load_dataset
from hsakd.data.streams import StreamedImages, TrainingData, check_dataset, open_dataset
from hsakd.data.views import Batch, ResizedCrops, Views, ViewSpace, apply_views, normalize, rotate_rows
from hsakd.registry import discover

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

discover(__name__, __path__)
