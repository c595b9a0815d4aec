"""One step: the loss of a batch, its gradients and the optimizer's update, none of which waits for the device; and the sums of losses."""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hsakd.config import OptimConfig
from hsakd.data.views import Batch, rotate_rows
from hsakd.devices import autocasting
from hsakd.losses.objective import Objective, Step
from hsakd.models import HierarchicalNet, Output
from hsakd.training.mutual import mutual_loss
from hsakd.training.predictions import Predictions, TeacherPredictions
from hsakd.training.team import Team, without_averaging, without_running_statistics


class Moment(NamedTuple):
    """Where a training is: the 0-based epoch, their number, and the 0-based step of the whole training."""

    epoch: int = 0
    num_epochs: int = 1
    step: int = 0


START = Moment()


def compute_loss(
    network: HierarchicalNet,
    objective: Objective,
    batch: Batch,
    predictions: TeacherPredictions | None,
    *,
    autocast: torch.dtype | None,
    moment: Moment = START,
    rotations: tuple[int, ...] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the objective's total and terms for one batch: the one place where network, teacher and loss meet.

    With `rotations` the student sees those turns only; the teacher is asked about all, so that every such student shares its bank.
    """
    if network.peer is not None:
        return mutual_loss(network, objective, batch, autocast=autocast)
    num_rotations = network.num_rotations if objective.is_rotated else 1
    rows = rotate_rows(batch.images, num_rotations)
    teacher = predictions.predict(batch, rows) if predictions is not None else None
    if rotations is not None and num_rotations > 1:
        rows = select_turns(rows.view(-1, num_rotations, *rows.shape[1:]), rotations).flatten(0, 1)
        num_rotations = len(rotations)
        if teacher is not None:
            joint_logits = tuple(select_turns(joint, rotations) for joint in teacher.joint_logits)
            teacher = Predictions(select_turns(teacher.logits, rotations), joint_logits)
    with autocasting(rows.device, autocast):
        branches = network.taps if objective.reads_branches else ()
        output = network(rows, branches=branches) if objective.reads_student else Output.nothing(rows)
    keeps_features = bool(objective.feature_terms)
    return objective(
        Step(
            labels=batch.labels,
            student_logits=by_image(output.logits, num_rotations),
            student_joint_logits=tuple(by_image(logits, num_rotations) for logits in output.joint_logits),
            student_maps=tuple(by_image(maps, num_rotations) for maps in output.features) if keeps_features else (),
            student_embedding=by_image(output.embedding, num_rotations) if keeps_features else None,
            teacher_maps=() if teacher is None else teacher.features,
            teacher_embedding=None if teacher is None else teacher.embedding,
            indices=batch.indices,
            epoch=moment.epoch,
            num_epochs=moment.num_epochs,
            number=moment.step,
            teacher_logits=None if teacher is None else teacher.logits,
            teacher_joint_logits=() if teacher is None else teacher.joint_logits,
            temperature=objective.temperature,
            branch_weights=objective.branch_weights,
            rotations=rotations if objective.is_rotated else None,
        )
    )


def by_image(rows: Tensor, num_rotations: int) -> Tensor:
    """Unfold sample-major rows [B*M, ...] into [B, M, ...]."""
    return rows.unflatten(0, (-1, num_rotations))  # type: ignore[no-untyped-call, no-any-return]


def select_turns(values: Tensor, rotations: tuple[int, ...]) -> Tensor:
    """Return `values` [B, M, ...] at some of the M turns; by stacking views, since an index list would be copied from the host."""
    return torch.stack([values[:, turn] for turn in rotations], dim=1)


class RunningLosses:
    """Loss sums and the first non-finite step, kept on the device; reading them is the epoch's only host synchronisation."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        self.sums = torch.zeros(1 + len(names), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, step: int, total: Tensor, values: dict[str, Tensor]) -> None:
        """Add one step's values; nothing waits for the device."""
        detached = total.detach()
        self.sums += torch.stack([detached, *(values[name].detach() for name in self.names)])
        is_new_bad = ~torch.isfinite(detached) & (self.first_bad < 0)
        self.first_bad = torch.where(is_new_bad, torch.full_like(self.first_bad, step), self.first_bad)

    def gather(self, team: Team) -> None:
        """Let the leader have the sums of all ranks, the others none, and every rank the first bad step of any."""
        never = torch.iinfo(torch.int64).max
        team.sum_(self.sums)
        if not team.is_leader:
            self.sums.zero_()
        bad = torch.where(self.first_bad < 0, torch.full_like(self.first_bad, never), self.first_bad)
        team.min_(bad)
        self.first_bad = torch.where(bad == never, torch.full_like(bad, -1), bad)

    def means(self, num_values: int) -> tuple[float, dict[str, float]]:
        """Return the mean total and terms over `num_values` values: one a step, or one for each part of a step's batch."""
        total, *terms = (self.sums / num_values).tolist()
        return total, dict(zip(self.names, terms, strict=True))


class StepLoss(nn.Module):
    """`compute_loss` as a module's forward, so that data-parallel training sees where a step's computation begins and ends."""

    def __init__(self, network: HierarchicalNet, modules: nn.Module) -> None:
        super().__init__()
        self.network, self.modules_of_terms = network, modules

    def forward(self, objective: Objective, batch: Batch, predictions: TeacherPredictions | None, how: dict[str, Any]) -> Any:
        """Return what `compute_loss` does; `how` are its keyword arguments."""
        return compute_loss(self.network, objective, batch, predictions, **how)


def split_batch(batch: Batch, num_parts: int) -> list[Batch]:
    """Return equal parts of a batch, in order."""
    return [Batch(*values) for values in zip(*(value.chunk(num_parts) for value in batch), strict=True)]


def training_step(
    network: HierarchicalNet | DistributedDataParallel,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    predictions: TeacherPredictions | None,
    losses: RunningLosses,
    *,
    step: int,
    learning_rate: float,
    autocast: torch.dtype | None = None,
    epoch: int = 0,
    num_epochs: int = 1,
    rotations: tuple[int, ...] | None = None,
    num_parts: int = 1,
    has_first_part: bool = True,
) -> None:
    """Take one optimizer step and add its losses to `losses`; nothing here waits for the device (so it runs on `meta`, too).

    The batch's `num_parts` equal parts pass one after the other; their gradients are averaged, over the ranks of a wrapped network, too.
    Only the first part of the whole batch (`has_first_part`: it is here) moves BN's running statistics.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    how: dict[str, Any] = {"autocast": autocast, "moment": Moment(epoch, num_epochs, step), "rotations": rotations}
    optimizer.zero_grad(set_to_none=True)
    for number, part in enumerate(split_batch(batch, num_parts) if num_parts > 1 else [batch]):
        is_first, is_last = has_first_part and number == 0, number == num_parts - 1
        with (
            contextlib.nullcontext() if is_first else without_running_statistics(network),
            contextlib.nullcontext() if is_last else without_averaging(network),
        ):
            if isinstance(network, DistributedDataParallel):
                total, values = network(objective, part, predictions, how)
            else:
                total, values = compute_loss(network, objective, part, predictions, **how)
            (total if num_parts == 1 else total / num_parts).backward()
        losses.add(step, total, values)
    optimizer.step()


def make_optimizer(network: torch.nn.Module, optim: OptimConfig) -> torch.optim.SGD:
    """Return SGD over the trainable parameters, weight decay on all of them (BN and biases too), as the authors do."""
    return torch.optim.SGD(
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        lr=optim.learning_rate,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
    )
