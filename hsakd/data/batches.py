"""A training's batches: an epoch's order and views, and the images that they mean."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hsakd.data.datasets import Dataset
from hsakd.data.streams import Chunk, StreamedImages, TrainingData
from hsakd.data.views import Batch, apply_views, normalize
from hsakd.devices import sent
from hsakd.seeds import seed_of


def epoch_stream(dataset: TrainingData, *, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Return the epoch's image order and view ids, [n] each, on the CPU; they depend on the data, the split and the seed only."""
    generator = torch.Generator().manual_seed(seed_of(dataset.fingerprint, seed, epoch))
    num_images = len(dataset.train_labels)
    order = torch.randperm(num_images, generator=generator)
    return order, torch.randint(dataset.views.num_views, (num_images,), generator=generator)


def gather_batch(dataset: Dataset, indices: Tensor, views: Tensor, *, dtype: torch.dtype) -> Batch:
    """Return the batch of training images `indices` in `views` (both on the CPU, [B]), augmented on the data set's device."""
    chosen = sent(indices, dataset.train_images.device)
    augmented = apply_views(dataset.train_images[chosen], views, dataset.views)
    images = normalize(augmented, dataset.mean, dataset.std, dtype)
    return Batch(indices=indices, views=views, images=images, labels=dataset.train_labels[chosen])


def training_batches(data: TrainingData, chunks: Sequence[Chunk], *, dtype: torch.dtype) -> Iterator[Batch]:
    """Yield a batch for each chunk of (indices, views), both [B] on the CPU: gathered on the device, or read from files ahead of time."""
    if isinstance(data, StreamedImages):
        return data.training_batches(chunks, dtype=dtype)
    return (gather_batch(data, indices, views, dtype=dtype) for indices, views in chunks)
