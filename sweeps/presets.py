"""What a sweep trains by default: pairs, data, schedule and seeds of each preset. Adding a pair or a preset is data, not code."""

from dataclasses import dataclass, replace

from hsakd.config import DataConfig, ObjectiveConfig, OptimConfig
from hsakd.term_table import facts_of_terms

TUNED = "HSAKD-tuned"
DEFAULT_METHODS = ("Student", "KD", "HSAKD", "HSAKD*", TUNED)


def beside_kd(term: str, weight: float) -> ObjectiveConfig:
    """Return a comparator "combined with conventional KD": 1 task + 1 kd + its term, as CRD's published CRD+KD command (-r 1 -a 1)."""
    return ObjectiveConfig(terms=(("task", 1.0), ("kd", 1.0), (term, weight)), temperature=4.0)


# Every row distils the plain backbone, as KD does. Weights are the published ones; each term's file names their source. DKD, DIST and
# LSKD (logit standardization) are forms of the KD term itself and stand in its place, as in their papers.
COMPARATORS = {
    "FitNet": beside_kd("fitnet", 100.0),
    "AT": beside_kd("at", 1000.0),
    "AB": beside_kd("ab", 1.0),
    "VID": beside_kd("vid", 1.0),
    "RKD": beside_kd("rkd", 1.0),
    "SP": beside_kd("sp", 3000.0),
    "CC": beside_kd("cc", 0.02),
    "CRD": beside_kd("crd", 0.8),
    "SSKD": ObjectiveConfig(terms=(("task", 0.1), ("kd", 0.9), ("sskd_classes", 2.7), ("sskd_similarity", 10.0)), temperature=4.0),
    "PKT": beside_kd("pkt", 30000.0),
    "DKD": ObjectiveConfig(terms=(("task", 1.0), ("tckd", 1.0), ("nckd", 8.0)), temperature=4.0),
    "DIST": ObjectiveConfig(terms=(("task", 1.0), ("dist", 2.0)), temperature=4.0),
    "ReviewKD": beside_kd("review", 1.0),
    "LSKD": ObjectiveConfig(terms=(("task", 0.1), ("kd_standardized", 9.0)), temperature=2.0),
}
ONLINE = "HSSAKD (online)"  # the extended version's online mutual distillation: the pair's two networks, trained together
METHODS = (*DEFAULT_METHODS, *COMPARATORS, ONLINE)
BACKBONE_METHODS = ("KD", "HSAKD", *COMPARATORS)  # rows whose teacher is the plain backbone, or is trained on it
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


def needs_library(method: str) -> bool:
    """Return whether a row needs torchdistill."""
    return method in COMPARATORS and facts_of_terms(name for name, _ in COMPARATORS[method].terms).library != ""


def needs_whole_batches(method: str) -> bool:
    """Return whether a row has terms that compare or remember the images of whole batches, as those that read feature maps do."""
    return method in COMPARATORS and facts_of_terms(name for name, _ in COMPARATORS[method].terms).reads_features


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


IMAGENET_OPTIM = OptimConfig(  # the authors' ImageNet scripts; they don't say on how many GPUs, each with batch statistics of its own
    epochs=100, batch_size=256, learning_rate=0.1, milestones=(30, 60, 90), nesterov=False, weight_decay=1e-4, batch_shards=8
)
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
    "imagenet": Preset(
        pairs=("resnet34_imagenet-resnet18_imagenet",),
        data=DataConfig(dataset="imagenet", image_size=224, augmentation="imagenet"),
        optim=IMAGENET_OPTIM,
        branch_optim=IMAGENET_OPTIM,
        seeds=(0,),
        num_search_trials=8,
        top_k=1,
        validation_fraction=0.04,
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
