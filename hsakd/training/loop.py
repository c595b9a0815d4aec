"""`fit`: the only epoch and step loop. Baselines, teachers, students, ablations and comparators differ in their objective only."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from hsakd.config import NumericsConfig, OptimConfig, TrialConfig
from hsakd.data.batches import epoch_stream, training_batches
from hsakd.data.streams import TrainingData
from hsakd.data.views import Batch
from hsakd.devices import parameter_dtype
from hsakd.losses.objective import Objective
from hsakd.models import HierarchicalNet
from hsakd.records import EpochMetrics
from hsakd.training.checkpoint import CheckpointCorrupt, discard_unfinished, load_resume, save_resume
from hsakd.training.evaluate import Accuracy, evaluate_batches
from hsakd.training.predictions import Service, TeacherPredictions, prefers_channels_last
from hsakd.training.stages import TrainingStage, stage_at, term_context, training_stages
from hsakd.training.step import RunningLosses, StepLoss, make_optimizer, training_step
from hsakd.training.team import SOLO, Team


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


GO_ON, SAVE, STOP = range(3)  # what the leader has all ranks do before a step


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
    training = _Training(config, network, dataset, predictions=predictions, device=device, hooks=hooks, team=team)
    training.restore()
    return training.run()


class _Trained(NamedTuple):
    """An epoch's mean loss and terms over steps, ranks and attempts, and its seconds."""

    loss: float
    terms: dict[str, float]
    seconds: float


class _Tested(NamedTuple):
    """What the network, and the peer of online mutual distillation, score after an epoch; `val` where images are held out."""

    test: Accuracy
    val: Accuracy | None
    peer_test: Accuracy | None


class _Training:
    """A training on its way: the network, its terms' modules and their optimizer, the epoch, where it was entered, and its sums so far."""

    def __init__(
        self,
        config: TrialConfig,
        network: HierarchicalNet,
        dataset: TrainingData,
        *,
        predictions: TeacherPredictions | None,
        device: torch.device,
        hooks: LoopHooks,
        team: Team,
    ) -> None:
        self.config, self.optim = config, config.optim
        self.network, self.predictions, self.device, self.hooks, self.team = network, predictions, device, hooks, team
        objective = Objective.from_config(config.objective).with_modules(lambda: term_context(config, network, dataset))
        self.stages = training_stages(objective, self.optim)
        self.dtype = parameter_dtype(config.numerics)
        self.autocast = torch.bfloat16 if config.numerics.precision == "bfloat16" else None
        self.dataset, self.data = dataset, dataset.to(device)
        if prefers_channels_last(network, config.numerics):
            network.to(memory_format=torch.channels_last)
        self.modules = objective.modules.to(device, self.dtype)
        self.trainable = torch.nn.ModuleList([network, self.modules])
        self.optimizer = make_optimizer(self.trainable, self.optim)
        self.steps_per_epoch = _num_steps(self.optim, len(dataset.train_labels))
        _check(self.optim, objective, network, team)
        self.trained: Any = _compiled(network, config.numerics)
        if team.size > 1:
            self.trained = team.wrap(StepLoss(self.trained, self.modules), finds_unused=len(self.stages) > 1)
        self.epochs: list[EpochMetrics] = []
        self.earlier_seconds = 0.0
        self.service = Service(predictions)
        self.last_save = time.monotonic()
        self.begin(self.stages[0].first_epoch)

    def begin(self, epoch: int, *, first_step: int = 0, seconds: float = 0.0) -> None:
        """Enter an epoch at a step, after `seconds` of training that count as its own; none of its losses is summed yet."""
        self.epoch, self.first_step, self.earlier_epoch_seconds = epoch, first_step, seconds
        self.losses = RunningLosses(stage_at(self.stages, epoch).objective.names, self.device)

    def restore(self) -> None:
        """Seed the generator and, where there is a checkpoint, stand where it was written."""
        state = _load_together(self.hooks.checkpoint_dir, self.config.trial_id, self.team)
        torch.manual_seed(self.config.seed)
        if state is not None:
            self.network.load_state_dict(state["network"])
            self.modules.load_state_dict(state.get("modules", {}))  # files of older versions have none
            self.optimizer.load_state_dict(state["optimizer"])
            self.epochs = [EpochMetrics(**row) for row in state["epochs"]]
            self.earlier_seconds = state.get("total_seconds", 0.0)  # files of older versions have none
            torch.set_rng_state(state["rng_state"])
            if self.hooks.on_epoch is not None:
                for row in self.epochs:
                    self.hooks.on_epoch(row)  # whoever listens now may not have heard of them
            self.begin(state["epoch"], first_step=state["step"], seconds=state["train_seconds"])
            self.service.hits, self.service.misses, self.service.fallback = state.get("service", (0, 0, ""))
            self.losses.sums, self.losses.first_bad = state["loss_sums"].to(self.device), state["first_bad"].to(self.device)
            if not self.team.is_leader:
                self.losses.sums.zero_()  # the checkpoint has those of all ranks
        self.last_save = time.monotonic()

    def save(self, *, step: int, seconds: float) -> None:
        """Write the checkpoint of a moment before a step of the epoch."""
        self.last_save = time.monotonic()
        if self.hooks.checkpoint_dir is None:
            return
        if self.predictions is not None:
            self.predictions.flush()
        self.losses.gather(self.team)
        if step > 0:
            self.service.gather(self.team)
        if not self.team.is_leader:
            return
        save_resume(
            self.hooks.checkpoint_dir,
            {
                "trial_id": self.config.trial_id,
                "network": self.network.state_dict(),
                "modules": self.modules.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epochs": [asdict(row) for row in self.epochs],
                "epoch": self.epoch,
                "step": step,
                "train_seconds": seconds,
                "total_seconds": self.earlier_seconds + time.monotonic() - self.hooks.started,
                "loss_sums": self.losses.sums,
                "first_bad": self.losses.first_bad,
                "service": (self.service.hits, self.service.misses, self.service.fallback),
                "rng_state": torch.get_rng_state(),
            },
        )

    def run(self) -> FitResult:
        """Train and test the epochs that are left."""
        tested = None
        while self.epoch < self.optim.epochs:
            trained = self.train_epoch(stage_at(self.stages, self.epoch))
            if (bad := int(self.losses.first_bad.item())) >= 0:
                return self.diverged(bad, f"loss is not finite at step {bad}")
            if self.epoch < 0:  # pre-training: nothing to evaluate; its seconds count as the first epoch's, its momentum ends with it
                if self.epoch == -1:
                    self.optimizer = make_optimizer(self.trainable, self.optim)
                self.begin(self.epoch + 1, seconds=trained.seconds)
                self.save(step=0, seconds=trained.seconds)
                continue
            started = time.monotonic()
            tested = self.test(with_branches=self.hooks.branch_accuracies == "every" or self.epoch == self.optim.epochs - 1)
            if any(accuracy is not None and accuracy.num_not_finite for accuracy in (tested.test, tested.peer_test)):
                last = (self.epoch + 1 - self.stages[0].first_epoch) * self.steps_per_epoch - 1  # no later step tells of its update
                return self.diverged(last, f"logits are not finite after step {last}")
            self.epochs.append(self.metrics(trained, tested, eval_seconds=time.monotonic() - started))
            self.service.clear()
            self.begin(self.epoch + 1)
            self.save(step=0, seconds=0.0)
            if self.hooks.on_epoch is not None:
                self.hooks.on_epoch(self.epochs[-1])
        if tested is None:  # nothing was left to train: imported weights, or a checkpoint of the end
            tested = self.test(with_branches=True, with_val=False)
        return FitResult(epochs=self.epochs, accuracy=tested.test, peer_accuracy=tested.peer_test, earlier_seconds=self.earlier_seconds)

    def train_epoch(self, stage: TrainingStage) -> _Trained:
        """Take the epoch's steps that are left; raises TrialInterrupted, its checkpoint written, where a stop is asked for."""
        self.network.train(stage.trains_network)
        self.modules.train()
        batches = self.own_batches()
        started = time.monotonic() - self.earlier_epoch_seconds
        stage_epoch, steps_before = self.epoch - stage.first_epoch, (self.epoch - self.stages[0].first_epoch) * self.steps_per_epoch
        for step, batch in zip(range(self.first_step, self.steps_per_epoch), batches, strict=True):
            self.save_if_due(step, started)
            training_step(
                self.trained,
                stage.objective,
                self.optimizer,
                batch,
                self.predictions,
                self.losses,
                step=steps_before + step,
                learning_rate=learning_rate_at(stage.optim, stage_epoch, step, self.steps_per_epoch),
                autocast=self.autocast,
                epoch=stage_epoch,
                num_epochs=stage.optim.epochs,
                rotations=self.config.rotations,
                num_parts=self.optim.batch_shards // self.team.size,
                has_first_part=self.team.is_leader,
            )
        self.losses.gather(self.team)
        self.service.gather(self.team)
        loss, terms = self.losses.means(self.steps_per_epoch * self.optim.batch_shards)  # waits for the device: the epoch's work is done
        return _Trained(loss, terms, time.monotonic() - started)

    def own_batches(self) -> Iterator[Batch]:
        """Yield this rank's part of each batch that is left of the epoch."""
        order, views = epoch_stream(self.dataset, seed=self.config.seed, epoch=self.epoch)
        if self.device.type == "cuda":
            order, views = order.pin_memory(), views.pin_memory()  # so that a batch's copy does not wait for the device
        own = self.optim.batch_size // self.team.size
        firsts = [step * self.optim.batch_size + self.team.rank * own for step in range(self.first_step, self.steps_per_epoch)]
        return training_batches(self.data, [(order[first : first + own], views[first : first + own]) for first in firsts], dtype=self.dtype)

    def save_if_due(self, step: int, started: float) -> None:
        """Write the checkpoint before a step if it is time, as the leader says; raises TrialInterrupted if a stop is asked for."""
        asked = self.hooks.should_stop is not None and self.hooks.should_stop()
        is_due = time.monotonic() - self.last_save > self.hooks.checkpoint_seconds
        action = self.team.decide(STOP if asked else SAVE if is_due else GO_ON)
        if action != GO_ON:
            self.save(step=step, seconds=time.monotonic() - started)
        if action == STOP:
            self.team.barrier()  # the first rank that ends is the end of all, the leader still writing or not
            raise TrialInterrupted(f"trial {self.config.trial_id} stopped at epoch {self.epoch}, step {step}")

    def test(self, *, with_branches: bool, with_val: bool = True) -> _Tested:
        """Evaluate the network and its peer; their running statistics are the leader's."""
        self.team.share_buffers(self.network)
        peer = self.network.peer
        return _Tested(
            test=self.accuracy_of(self.network, "test", with_branches=with_branches),
            val=self.accuracy_of(self.network, "val") if with_val and self.data.num_images("val") else None,
            peer_test=self.accuracy_of(peer, "test") if peer is not None else None,
        )

    def accuracy_of(self, member: HierarchicalNet, part: str, *, with_branches: bool = False) -> Accuracy:
        """Evaluate a network on the test or validation images, shared among the ranks."""
        data, team = self.data, self.team
        batches = data.evaluation_batches(part, rank=team.rank, size=team.size)
        return evaluate_batches(
            member, batches, num_images=data.num_images(part), mean=data.mean, std=data.std, with_branches=with_branches, team=team
        )

    def metrics(self, trained: _Trained, tested: _Tested, *, eval_seconds: float) -> EpochMetrics:
        """Return the epoch's row."""
        test, val, peer_test = tested
        return EpochMetrics(
            trial_id=self.config.trial_id,
            epoch=self.epoch,
            attempt=self.hooks.attempt,
            learning_rate=learning_rate_at(self.optim, self.epoch, self.steps_per_epoch - 1, self.steps_per_epoch),
            loss=trained.loss,
            loss_terms=trained.terms,
            top1_test=test.top1,
            top5_test=test.top5,
            top1_val=None if val is None else val.top1,
            top1_test_peer=None if peer_test is None else peer_test.top1,
            branch_top1_joint=test.branch_top1_joint,
            branch_top1_class=test.branch_top1_class,
            train_seconds=trained.seconds,
            eval_seconds=eval_seconds,
            bank_hits=self.service.hits,
            bank_misses=self.service.misses,
            predictions_source="none" if self.predictions is None else self.predictions.source,
            predictions_fallback=self.service.fallback,
        )

    def diverged(self, step: int, error: str) -> FitResult:
        """Return the result of a training that ends here."""
        return FitResult(epochs=self.epochs, accuracy=None, diverged_step=step, error=error, earlier_seconds=self.earlier_seconds)


def _num_steps(optim: OptimConfig, num_images: int) -> int:
    """Return an epoch's number of steps; raises ValueError where there is none."""
    steps = num_images // optim.batch_size + (optim.batch_shards == 1 and num_images % optim.batch_size > 1)
    if steps == 0:
        least = 2 if optim.batch_shards == 1 else optim.batch_size
        raise ValueError(f"batch_size is {optim.batch_size}; accepted: a data set of at least {least} images, this one has {num_images}")
    return steps


def _check(optim: OptimConfig, objective: Objective, network: HierarchicalNet, team: Team) -> None:
    """Refuse (ValueError) batches that can't be shared as asked, and weights for other branches than the network's."""
    num_shards = optim.batch_shards
    if optim.epochs > 0 and num_shards % team.size:  # imported weights are evaluated only
        raise ValueError(f"batch_shards is {num_shards}; accepted: a multiple of the trial's {team.size} ranks")
    if num_shards > 1 and objective.feature_terms:
        names = ", ".join(objective.feature_terms)
        raise ValueError(f"batch_shards is {num_shards}; accepted: 1 with {names}, which compares or remembers the images of whole batches")
    weights, taps = objective.branch_weights, network.taps
    if weights is not None and objective.reads_branches and len(weights) != len(taps):
        raise ValueError(f"branch_weights is {weights}; accepted: {len(taps)} weights, one for each of the taps {taps}")


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
