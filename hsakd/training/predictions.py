"""What a frozen teacher says of a batch; the loop can't tell where the answer comes from."""

import contextlib
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hsakd.data.views import Batch
from hsakd.models import HierarchicalNet


class Predictions(NamedTuple):
    """A teacher's logits, before any temperature, of B images in M rotations; no gradient."""

    logits: Tensor  # [B, M, N]
    joint_logits: tuple[Tensor, ...]  # [B, M, M*N] per requested branch


class TeacherPredictions(Protocol):
    """Answers for a batch; `rows` [B*M, 3, H, W] are its rotated images, asked about only where no answer is kept.

    `source` is "live" or "bank", `fallback` says why a bank that was asked for is not used, `hits` and `misses` count images.
    """

    source: str
    fallback: str
    hits: int
    misses: int

    def predict(self, batch: Batch, rows: Tensor) -> Predictions: ...

    def flush(self) -> None: ...


class LivePredictions:
    """Runs the teacher: eval mode, inference mode, only the branches that the objective reads."""

    source = "live"

    def __init__(
        self,
        teacher: HierarchicalNet,
        *,
        branches: tuple[int, ...],
        num_rotations: int,
        autocast: torch.dtype | None = None,
        fallback: str = "",
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.branches = branches
        self.num_rotations = num_rotations
        self.autocast = autocast
        self.fallback = fallback
        self.hits = 0
        self.misses = 0

    def predict(self, batch: Batch, rows: Tensor) -> Predictions:
        num_images = len(batch.labels)
        self.misses += num_images
        context = torch.autocast(rows.device.type, dtype=self.autocast) if self.autocast is not None else contextlib.nullcontext()
        with torch.no_grad(), context:
            output = self.teacher(rows, branches=self.branches)
        shape = (num_images, self.num_rotations, -1)
        return Predictions(output.logits.view(shape), tuple(logits.view(shape) for logits in output.joint_logits))

    def flush(self) -> None:
        """Nothing is kept."""
