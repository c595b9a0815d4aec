"""Images: data sets as uint8 tensors, stratified splits, the finite view space."""

from hsakd.data.datasets import DATASETS, DataMissing, Dataset, load_dataset
from hsakd.data.views import Batch, ViewSpace, apply_views, normalize, rotate_rows

__all__ = ["DATASETS", "Batch", "DataMissing", "Dataset", "ViewSpace", "apply_views", "load_dataset", "normalize", "rotate_rows"]
