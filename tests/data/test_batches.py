"""An epoch's order and views."""

import torch

from hsakd.config import DataConfig
from hsakd.data import load_dataset
from hsakd.data.batches import epoch_stream


def test_stream_depends_on_data_split_and_seed_only() -> None:
    data = load_dataset(DataConfig(dataset="digits"))
    split = load_dataset(DataConfig(dataset="digits", validation_fraction=0.1))
    order, views = epoch_stream(data, seed=0, epoch=0)
    assert sorted(order.tolist()) == list(range(len(data.train_labels)))
    assert views.unique().tolist() == list(range(9))
    again = epoch_stream(data, seed=0, epoch=0)
    assert torch.equal(order, again[0])
    assert torch.equal(views, again[1])
    for other in (epoch_stream(data, seed=1, epoch=0), epoch_stream(data, seed=0, epoch=1), epoch_stream(split, seed=0, epoch=0)):
        assert not torch.equal(order[:100], other[0][:100])
