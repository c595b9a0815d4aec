"""The processes that train one trial together, each with a device of its own; a trial on one device is a team of one."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Team:
    """One of `size` ranks; rank 0 leads: it alone checkpoints, reports and records. With size 1 nothing here communicates."""

    rank: int = 0
    size: int = 1

    @property
    def is_leader(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def barrier(self) -> None:
        """Return once every rank is here."""
        self.decide(0)

    def decide(self, value: int) -> int:
        """Return the leader's value; waits for the ranks, not for the device."""
        if self.size == 1:
            return value
        choice = torch.tensor(value)
        dist.broadcast(choice, src=0)
        return int(choice.item())

    def all_of(self, value: T) -> list[T]:
        """Return each rank's value, in the order of the ranks; waits for the ranks, not for the device."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the ranks."""
        if self.size > 1:
            for tensor in tensors:
                if tensor.numel():
                    dist.all_reduce(tensor)

    def min_(self, tensor: Tensor) -> None:
        """Replace a tensor by its minimum over the ranks."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MIN)

    def share_buffers(self, module: nn.Module) -> None:
        """Give every rank the leader's buffers: BN's running statistics are the leader's, as in the authors' data-parallel training."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def wrap(self, module: nn.Module, *, finds_unused: bool) -> nn.Module:
        """Return what averages the gradients of `module` over the ranks while the backward pass runs."""
        return DistributedDataParallel(module, find_unused_parameters=finds_unused) if self.size > 1 else module


SOLO = Team()


def without_averaging(module: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which a wrapped module keeps its gradients to itself: more parts of the batch are to come."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()


@contextlib.contextmanager
def without_running_statistics(module: nn.Module) -> Iterator[None]:
    """Within it, BN in train mode normalizes with the batch's statistics and leaves the running ones as they are."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
