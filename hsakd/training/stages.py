"""The stages of a training (a pre-training, where a term declares one, then the training proper), and what terms are built from."""

from dataclasses import dataclass

from hsakd.config import OptimConfig, TrialConfig
from hsakd.data.streams import TrainingData
from hsakd.losses.objective import Objective, TermContext
from hsakd.models import HierarchicalNet
from hsakd.models.counting import tap_shapes


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingStage:
    """Epochs with one objective and schedule; those of a pre-training are numbered below 0, the training proper starts with epoch 0."""

    first_epoch: int
    objective: Objective
    optim: OptimConfig
    trains_network: bool = True


def training_stages(objective: Objective, optim: OptimConfig) -> tuple[TrainingStage, ...]:
    """Return the one or two stages of a training with `optim`, in order."""
    proper = TrainingStage(first_epoch=0, objective=objective.training_proper(), optim=optim)
    before = objective.pretraining()
    if before is None:
        return (proper,)
    pretraining, its_objective = before
    schedule = pretraining.schedule(optim)
    stage = TrainingStage(first_epoch=-schedule.epochs, objective=its_objective, optim=schedule, trains_network=pretraining.trains_student)
    return (stage, proper)


def stage_at(stages: tuple[TrainingStage, ...], epoch: int) -> TrainingStage:
    """Return the stage that `epoch` belongs to."""
    return next(stage for stage in reversed(stages) if epoch >= stage.first_epoch)


def term_context(config: TrialConfig, network: HierarchicalNet, dataset: TrainingData) -> TermContext:
    """Return the shapes of a student and its teacher on this data (by a pass without memory), and the labels.

    Raises:
        ValueError: the trial has no teacher, or one with another number of stages.
    """
    if config.teacher is None:
        raise ValueError(f"teacher is None; accepted: a trial, since {', '.join(name for name, _ in config.objective.terms)} compares maps")
    teacher = HierarchicalNet.on_meta(config.teacher.network, num_classes=dataset.num_classes, taps=())
    if teacher.num_branches != network.num_branches:
        raise ValueError(f"teacher is {config.teacher.network} with {teacher.num_branches} stages; accepted: {network.num_branches} stages")
    student_maps, teacher_maps = (
        tuple((maps[0], maps[1], maps[2]) for maps in tap_shapes(each, dataset.image_size)) for each in (network, teacher)
    )
    return TermContext(
        student_maps=student_maps,
        teacher_maps=teacher_maps,
        student_width=network.spec.out_channels,
        teacher_width=teacher.spec.out_channels,
        train_labels=dataset.train_labels.cpu(),
        seed=config.seed,
    )
