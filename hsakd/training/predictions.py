"""What a frozen teacher says of a batch; the loop can't tell where the answer comes from."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hsakd.config import NumericsConfig
from hsakd.data.views import Batch
from hsakd.devices import autocasting
from hsakd.models import HierarchicalNet
from hsakd.training.folding import fold_teacher, unfolded_teacher
from hsakd.training.team import Team


class Predictions(NamedTuple):
    """A teacher's logits, before any temperature, of B images in M rotations, and its maps where they were asked for; no gradient."""

    logits: Tensor  # [B, M, N]
    joint_logits: tuple[Tensor, ...]  # [B, M, M*N] per requested branch
    embedding: Tensor | None = None  # [B, M, C]
    features: tuple[Tensor, ...] = ()  # L maps [B, M, C_l, H_l, W_l]


class TeacherPredictions(Protocol):
    """Answers for a batch; `rows` [B*M, 3, H, W] are its rotated images, asked about only where no answer is kept.

    `source` is "live" or "bank", `fallback` says why a bank that was asked for is not used or not filled, `hits` and `misses` count images
    that a bank had and lacked.
    """

    source: str
    fallback: str
    hits: int
    misses: int

    def predict(self, batch: Batch, rows: Tensor) -> Predictions: ...

    def flush(self) -> None: ...

    def close(self) -> object: ...


def prefers_channels_last(network: HierarchicalNet, numerics: NumericsConfig) -> bool:
    """Return whether to lay `network` out channels last: as asked, else on CPUs its family's measured choice, elsewhere no."""
    if numerics.channels_last is not None:
        return numerics.channels_last
    return network.spec.prefers_channels_last and next(network.parameters()).device.type == "cpu"


class LivePredictions:
    """Runs a copy of the teacher: eval mode, inference mode, only the branches that the objective reads, BN folded but in float64.

    (Which is the reference.) `teacher` is not changed, nor kept. `is_channels_last` lays out the copy and its rows channels last;
    `with_features` gives embedding and maps, too.
    """

    source = "live"

    def __init__(
        self,
        teacher: HierarchicalNet,
        *,
        branches: tuple[int, ...],
        num_rotations: int,
        autocast: torch.dtype | None = None,
        is_channels_last: bool = False,
        with_features: bool = False,
    ) -> None:
        self.joint_width = teacher.num_classes * teacher.num_rotations
        self.branches = branches
        self.with_features = with_features
        self.num_rotations = num_rotations
        self.autocast = autocast
        self.fallback = ""
        self.memory_format = torch.channels_last if is_channels_last else torch.contiguous_format
        copied = unfolded_teacher if next(teacher.parameters()).dtype == torch.float64 else fold_teacher
        answer: nn.Module = copied(teacher, branches, with_features=with_features)
        self.answer = answer.to(memory_format=self.memory_format)
        self.hits = 0
        self.misses = 0

    def predict(self, batch: Batch, rows: Tensor) -> Predictions:
        with torch.inference_mode(), autocasting(rows.device, self.autocast):
            answers = self.answer(rows.contiguous(memory_format=self.memory_format))
        shape = (len(batch.labels), self.num_rotations)
        logits, *others = (answer.clone().unflatten(0, shape) for answer in answers)  # clones may be saved for a backward
        joint_logits, kept = others[: len(self.branches)], others[len(self.branches) :]
        return Predictions(logits, tuple(joint_logits), kept[0] if kept else None, tuple(kept[1:]))

    def flush(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is open."""


class Service:
    """Who served an epoch's predictions, over all ranks and attempts: images that a bank had and lacked, and the reason of a fallback."""

    def __init__(self, predictions: TeacherPredictions | None) -> None:
        self.predictions = predictions
        self.hits, self.misses, self.fallback = 0, 0, ""
        self.counted = (0, 0)

    def gather(self, team: Team) -> None:
        """Add what was served on every rank since the last time."""
        if self.predictions is None:
            return
        hits, misses = self.predictions.hits, self.predictions.misses
        for more_hits, more_misses, fallback in team.all_of((hits - self.counted[0], misses - self.counted[1], self.predictions.fallback)):
            self.hits, self.misses, self.fallback = self.hits + more_hits, self.misses + more_misses, self.fallback or fallback
        self.counted = (hits, misses)

    def clear(self) -> None:
        """Begin an epoch."""
        self.hits, self.misses, self.fallback = 0, 0, ""
