"""`fit`: the only epoch and step loop. Baselines, teachers, students, ablations and comparators differ in their objective only."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hsakd.config import NumericsConfig, OptimConfig, TrialConfig
from hsakd.data.datasets import Dataset
from hsakd.data.streams import Chunk, StreamedImages, TrainingData
from hsakd.data.views import Batch, apply_views, normalize, rotate_rows
from hsakd.devices import autocasting, parameter_dtype, sent
from hsakd.losses.objective import Objective, Step
from hsakd.models import HierarchicalNet, Output
from hsakd.records import EpochMetrics
from hsakd.seeds import seed_of
from hsakd.training.checkpoint import CheckpointCorrupt, discard_unfinished, load_resume, save_resume
from hsakd.training.evaluate import Accuracy, evaluate_batches
from hsakd.training.mutual import mutual_loss
from hsakd.training.predictions import Predictions, Service, TeacherPredictions, prefers_channels_last
from hsakd.training.stages import stage_at, term_context, training_stages
from hsakd.training.team import SOLO, Team, without_averaging, without_running_statistics


class TrialInterrupted(Exception):
    """A stop was asked for; the trial's checkpoint is written and the same call goes on from there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """The epochs of a training and the last one's accuracy with its branches; `earlier_seconds` are what earlier attempts took.

    A training whose loss became NaN or infinite ends there: `diverged_step` is the 0-based step of the whole training, `accuracy` None.
    So does one whose logits of test images are not finite after an epoch, with its last step; `error` says which of the two it was.
    """

    epochs: list[EpochMetrics]
    accuracy: Accuracy | None
    peer_accuracy: Accuracy | None = None
    diverged_step: int | None = None
    error: str = ""
    earlier_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopHooks:
    """What the outside may ask of the loop: where to checkpoint and how often, whom to tell, when to stop.

    `branch_accuracies` are measured after the last epoch, or after every one. The attempt began at `started`, of the monotonic clock.
    """

    checkpoint_dir: Path | None = None
    checkpoint_seconds: float = 600.0
    on_epoch: Callable[[EpochMetrics], None] | None = None
    should_stop: Callable[[], bool] | None = None
    branch_accuracies: Literal["last", "every"] = "last"
    attempt: int = 1
    started: float = field(default_factory=time.monotonic)


def learning_rate_at(optim: OptimConfig, epoch: int, step: int, steps_per_epoch: int) -> float:
    """Return the step's learning rate: linear warm-up from 1/iterations, then gamma at each milestone counted from its end."""
    warmup_steps = optim.warmup_epochs * steps_per_epoch
    step_index = epoch * steps_per_epoch + step
    if step_index < warmup_steps:
        return optim.learning_rate * (step_index + 1) / warmup_steps
    passed = sum(epoch - optim.warmup_epochs >= milestone for milestone in optim.milestones)
    return float(optim.learning_rate * optim.gamma**passed)


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


class Moment(NamedTuple):
    """Where a training is: the 0-based epoch, their number, and the 0-based step of the whole training."""

    epoch: int = 0
    num_epochs: int = 1
    step: int = 0


START = Moment()
GO_ON, SAVE, STOP = range(3)  # what the leader has all ranks do before a step


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


def fit(
    config: TrialConfig,
    network: HierarchicalNet,
    dataset: TrainingData,
    *,
    predictions: TeacherPredictions | None,
    device: torch.device,
    hooks: LoopHooks,
    team: Team = SOLO,
) -> FitResult:
    """Train `network` (on `device`, weights as initialized) for all epochs of `config`, from its checkpoint if there is one.

    Bit for bit the same on the CPU, and on a GPU with `deterministic`, also when interrupted and resumed. A last batch of a single image
    is dropped, since batch statistics of one row do not exist; with `batch_shards` every last batch that is not whole. The ranks of a
    `team` call this alike and share each batch; the leader's `hooks` count.

    Raises:
        TrialInterrupted: `hooks.should_stop` said so; the checkpoint is written.
        CheckpointCorrupt: the resume file can't be used.
    """
    objective = Objective.from_config(config.objective).with_modules(lambda: term_context(config, network, dataset))
    optim, batch_size = config.optim, config.optim.batch_size
    stages = training_stages(objective, optim)
    dtype = parameter_dtype(config.numerics)
    autocast = torch.bfloat16 if config.numerics.precision == "bfloat16" else None
    data = dataset.to(device)
    if prefers_channels_last(network, config.numerics):
        network.to(memory_format=torch.channels_last)
    modules = objective.modules.to(device, dtype)
    trainable = torch.nn.ModuleList([network, modules])
    optimizer = make_optimizer(trainable, optim)
    num_images = len(dataset.train_labels)
    num_shards = optim.batch_shards
    steps_per_epoch = num_images // batch_size + (num_shards == 1 and num_images % batch_size > 1)
    if steps_per_epoch == 0:
        least = 2 if num_shards == 1 else batch_size
        raise ValueError(f"batch_size is {batch_size}; accepted: a data set of at least {least} images, this one has {num_images}")
    if optim.epochs > 0 and num_shards % team.size:  # imported weights are evaluated only
        raise ValueError(f"batch_shards is {num_shards}; accepted: a multiple of the trial's {team.size} ranks")
    if num_shards > 1 and objective.feature_terms:
        names = ", ".join(objective.feature_terms)
        raise ValueError(f"batch_shards is {num_shards}; accepted: 1 with {names}, which compares or remembers the images of whole batches")
    weights, taps = objective.branch_weights, network.taps
    if weights is not None and objective.reads_branches and len(weights) != len(taps):
        raise ValueError(f"branch_weights is {weights}; accepted: {len(taps)} weights, one for each of the taps {taps}")
    trained: Any = _compiled(network, config.numerics)
    if team.size > 1:
        trained = team.wrap(StepLoss(trained, modules), finds_unused=len(stages) > 1)
    state = _load_together(hooks.checkpoint_dir, config.trial_id, team)
    epochs: list[EpochMetrics] = []
    first_epoch, first_step, seconds, earlier_seconds = stages[0].first_epoch, 0, 0.0, 0.0
    torch.manual_seed(config.seed)
    if state is not None:
        network.load_state_dict(state["network"])
        modules.load_state_dict(state.get("modules", {}))  # files of older versions have none
        optimizer.load_state_dict(state["optimizer"])
        epochs = [EpochMetrics(**row) for row in state["epochs"]]
        first_epoch, first_step, seconds = state["epoch"], state["step"], state["train_seconds"]
        earlier_seconds = state.get("total_seconds", 0.0)  # files of older versions have none
        torch.set_rng_state(state["rng_state"])
        if hooks.on_epoch is not None:
            for row in epochs:
                hooks.on_epoch(row)  # whoever listens now may not have heard of them
    losses, service = RunningLosses(stage_at(stages, first_epoch).objective.names, device), Service(predictions)
    if state is not None:
        service.hits, service.misses, service.fallback = state.get("service", (0, 0, ""))
        losses.sums, losses.first_bad = state["loss_sums"].to(device), state["first_bad"].to(device)
        if not team.is_leader:
            losses.sums.zero_()  # the checkpoint has those of all ranks
    del state  # else as large as weights and momentum, for the whole training
    last_save = time.monotonic()

    def save(epoch: int, step: int, train_seconds: float) -> None:
        nonlocal last_save
        last_save = time.monotonic()
        if hooks.checkpoint_dir is None:
            return
        if predictions is not None:
            predictions.flush()
        losses.gather(team)
        if step > 0:
            service.gather(team)
        if not team.is_leader:
            return
        save_resume(
            hooks.checkpoint_dir,
            {
                "trial_id": config.trial_id,
                "network": network.state_dict(),
                "modules": modules.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epochs": [asdict(row) for row in epochs],
                "epoch": epoch,
                "step": step,
                "train_seconds": train_seconds,
                "total_seconds": earlier_seconds + time.monotonic() - hooks.started,
                "loss_sums": losses.sums,
                "first_bad": losses.first_bad,
                "service": (service.hits, service.misses, service.fallback),
                "rng_state": torch.get_rng_state(),
            },
        )

    def diverged(step: int, error: str) -> FitResult:
        return FitResult(epochs=epochs, accuracy=None, diverged_step=step, error=error, earlier_seconds=earlier_seconds)

    def accuracy_of(member: HierarchicalNet, part: str, *, with_branches: bool = False) -> Accuracy:
        batches = data.evaluation_batches(part, rank=team.rank, size=team.size)
        return evaluate_batches(
            member, batches, num_images=data.num_images(part), mean=data.mean, std=data.std, with_branches=with_branches, team=team
        )

    test, peer_test = None, None
    for epoch in range(first_epoch, optim.epochs):
        stage = stage_at(stages, epoch)
        stage_epoch = epoch - stage.first_epoch
        order, views = epoch_stream(dataset, seed=config.seed, epoch=epoch)
        if device.type == "cuda":
            order, views = order.pin_memory(), views.pin_memory()  # so that a batch's copy does not wait for the device
        network.train(stage.trains_network)
        modules.train()
        started = time.monotonic() - seconds
        own = batch_size // team.size  # images of each batch
        firsts = [step * batch_size + team.rank * own for step in range(first_step, steps_per_epoch)]
        batches = training_batches(data, [(order[first : first + own], views[first : first + own]) for first in firsts], dtype=dtype)
        for step, batch in zip(range(first_step, steps_per_epoch), batches, strict=True):
            asked = hooks.should_stop is not None and hooks.should_stop()
            is_due = time.monotonic() - last_save > hooks.checkpoint_seconds
            action = team.decide(STOP if asked else SAVE if is_due else GO_ON)
            if action != GO_ON:
                save(epoch, step, time.monotonic() - started)
            if action == STOP:
                team.barrier()  # the first rank that ends is the end of all, the leader still writing or not
                raise TrialInterrupted(f"trial {config.trial_id} stopped at epoch {epoch}, step {step}")
            training_step(
                trained,
                stage.objective,
                optimizer,
                batch,
                predictions,
                losses,
                step=(epoch - stages[0].first_epoch) * steps_per_epoch + step,
                learning_rate=learning_rate_at(stage.optim, stage_epoch, step, steps_per_epoch),
                autocast=autocast,
                epoch=stage_epoch,
                num_epochs=stage.optim.epochs,
                rotations=config.rotations,
                num_parts=num_shards // team.size,
                has_first_part=team.is_leader,
            )
        losses.gather(team)
        service.gather(team)
        mean_loss, mean_terms = losses.means(steps_per_epoch * num_shards)  # waits for the device: the epoch's work is done
        train_seconds = time.monotonic() - started
        if (bad := int(losses.first_bad.item())) >= 0:
            return diverged(bad, f"loss is not finite at step {bad}")
        if epoch < 0:  # pre-training: nothing to evaluate; its seconds count as the first epoch's, its momentum ends with it
            if epoch == -1:
                optimizer = make_optimizer(trainable, optim)
            next_stage = stage_at(stages, epoch + 1)
            first_step, seconds, losses = 0, train_seconds, RunningLosses(next_stage.objective.names, device)
            save(epoch + 1, 0, train_seconds)
            continue
        evaluation_started = time.monotonic()
        team.share_buffers(network)
        with_branches = hooks.branch_accuracies == "every" or epoch == optim.epochs - 1
        test = accuracy_of(network, "test", with_branches=with_branches)
        val = accuracy_of(network, "val") if data.num_images("val") else None
        peer_test = accuracy_of(network.peer, "test") if network.peer is not None else None
        if test.num_not_finite or (peer_test is not None and peer_test.num_not_finite):  # no later step tells of the last update
            last = (epoch + 1 - stages[0].first_epoch) * steps_per_epoch - 1
            return diverged(last, f"logits are not finite after step {last}")
        epochs.append(
            EpochMetrics(
                trial_id=config.trial_id,
                epoch=epoch,
                attempt=hooks.attempt,
                learning_rate=learning_rate_at(optim, epoch, steps_per_epoch - 1, steps_per_epoch),
                loss=mean_loss,
                loss_terms=mean_terms,
                top1_test=test.top1,
                top5_test=test.top5,
                top1_val=None if val is None else val.top1,
                top1_test_peer=None if peer_test is None else peer_test.top1,
                branch_top1_joint=test.branch_top1_joint,
                branch_top1_class=test.branch_top1_class,
                train_seconds=train_seconds,
                eval_seconds=time.monotonic() - evaluation_started,
                bank_hits=service.hits,
                bank_misses=service.misses,
                predictions_source="none" if predictions is None else predictions.source,
                predictions_fallback=service.fallback,
            )
        )
        service.clear()
        first_step, seconds, losses = 0, 0.0, RunningLosses(stage.objective.names, device)
        save(epoch + 1, 0, 0.0)
        if hooks.on_epoch is not None:
            hooks.on_epoch(epochs[-1])
    if test is None:  # nothing was left to train: imported weights, or a checkpoint of the end
        test = accuracy_of(network, "test", with_branches=True)
        peer_test = accuracy_of(network.peer, "test") if network.peer is not None else None
    return FitResult(epochs=epochs, accuracy=test, peer_accuracy=peer_test, earlier_seconds=earlier_seconds)


def _load_together(folder: Path | None, trial_id: str, team: Team) -> dict[str, Any] | None:
    """Return the resume file's state on every rank; where it can't be used each rank raises, after all have looked."""
    if folder is None:
        return None
    team.barrier()
    state = None
    problem: CheckpointCorrupt | OSError | None = None
    if team.is_leader:
        discard_unfinished(folder)
    try:
        state = load_resume(folder, trial_id)
    except (CheckpointCorrupt, OSError) as error:
        problem = error
    team.barrier()
    if problem is not None:
        raise problem
    return state


def _compiled(network: HierarchicalNet, numerics: NumericsConfig) -> Any:
    """Return what the steps call: the network, or its compiled twin with the same parameters."""
    return torch.compile(network) if numerics.compile else network
