"""What a sweep trains by default: pairs, data, schedule and seeds of each preset. Adding a pair or a preset is data, not code."""

from dataclasses import dataclass, replace

from hsakd.config import DataConfig, OptimConfig

METHODS = ("Student", "KD", "HSAKD", "HSAKD*", "HSAKD-tuned")
ONLINE = "HSSAKD (online)"  # the extended version's online mutual distillation: the pair's two networks, trained together
EXTRA_METHODS = (ONLINE,)  # known, but trained only when asked for
PAPER_PAIRS = (
    "wrn_40_2-wrn_16_2",
    "wrn_40_2-wrn_40_1",
    "resnet56-resnet20",
    "resnet32x4-resnet8x4",
    "vgg13_bn-mobilenetv2_half",
    "resnet50-mobilenetv2_half",
    "wrn_40_2-shufflenet_v1",
    "resnet32x4-shufflenet_v2",
)
SLOW_LEARNERS = ("mobilenetv2_half", "shufflenet_v1", "shufflenet_v2")
SLOW_LEARNING_RATE = 0.01  # in the authors' commands


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """`optim` is for everything but the frozen regime's branches, which have `branch_optim`; `num_search_trials` is per pair."""

    pairs: tuple[str, ...]
    data: DataConfig
    optim: OptimConfig
    branch_optim: OptimConfig
    seeds: tuple[int, ...]
    num_search_trials: int
    top_k: int
    validation_fraction: float = 0.1
    reuses_workers: bool = False


PRESETS = {
    "paper": Preset(
        pairs=PAPER_PAIRS,
        data=DataConfig(dataset="cifar100"),
        optim=OptimConfig(),
        branch_optim=OptimConfig(epochs=100, milestones=(30, 60, 90)),
        seeds=(0, 1, 2),
        num_search_trials=20,
        top_k=2,
    ),
    "fashion": Preset(
        pairs=("resnet20-resnet8_half",),
        data=DataConfig(dataset="fashion_mnist", image_size=16, train_subset=1000),
        optim=OptimConfig(epochs=40, milestones=(25, 30, 35)),
        branch_optim=OptimConfig(epochs=40, milestones=(12, 24, 36)),
        seeds=(0, 1, 2),
        num_search_trials=6,
        top_k=1,
    ),
    "digits": Preset(
        pairs=("resnet14-resnet8_half", "wrn_16_1-resnet8_half"),
        data=DataConfig(dataset="digits"),
        optim=OptimConfig(epochs=6, batch_size=64, milestones=(4, 5)),
        branch_optim=OptimConfig(epochs=4, batch_size=64, milestones=(2, 3)),
        seeds=(0, 1),
        num_search_trials=3,
        top_k=1,
        reuses_workers=True,
    ),
}


def with_epochs(optim: OptimConfig, epochs: int) -> OptimConfig:
    """Return the schedule scaled to `epochs`: milestones keep their share of the training."""
    return replace(optim, epochs=epochs, milestones=tuple(round(milestone * epochs / optim.epochs) for milestone in optim.milestones))
