"""Detection transfer as data: Faster R-CNN on Pascal VOC, on the backbone of every finished ImageNet ResNet of a sweep's students."""

import sys
from dataclasses import replace

from hsakd.config import DETECTION_DATASET, DETECTOR_BACKBONES, DataConfig, DetectionConfig, OptimConfig, TrialConfig
from hsakd.records import PlanEntry
from hsakd.result_folder import read_plan
from hsakd.store import ResultStore
from sweeps.cli import DetectionOptions
from sweeps.presets import with_epochs
from sweeps.transfer import complete_students

STUDY = "detection"
DETECTION_OPTIM = OptimConfig(
    epochs=12, batch_size=16, learning_rate=0.01, milestones=(8,), nesterov=False, weight_decay=1e-4, warmup_epochs=1
)
"""MMDetection's Faster R-CNN on VOC 07+12 (4 epochs of the data taken 3 times, x0.1 after 3), its first epoch a warm-up, as torchvision's
detection reference has one of 1,000 steps (an epoch has 1,035); the paper gives no schedule. The milestone counts from the warm-up's end.
"""
SIDES = (3, 5)  # shorter and longer side, 600 and 1000 pixels there


def detector_of(source: TrialConfig, options: DetectionOptions) -> TrialConfig:
    """Return the detector of a student: the student's seed, the learning rate in proportion to the batch."""
    optim = DETECTION_OPTIM if options.epochs is None else with_epochs(DETECTION_OPTIM, options.epochs)
    scale = options.batch_size / optim.batch_size
    return TrialConfig(
        network=source.network,
        data=DataConfig(dataset=DETECTION_DATASET),
        optim=replace(optim, batch_size=options.batch_size, learning_rate=optim.learning_rate * scale),
        taps=(),
        seed=source.seed,
        backbone=source,
        detection=DetectionConfig(
            shorter_side=options.image_size,
            longer_side=options.image_size * SIDES[1] // SIDES[0],
            trainable_layers=options.trainable_layers,
        ),
    )


def detection_work(options: DetectionOptions) -> list[tuple[PlanEntry, TrialConfig]]:
    """Return the plan lines of the detectors: one per complete student that torchvision has.

    Raises:
        ValueError: the folder has no plan, no complete student, or none that torchvision has.
    """
    complete = complete_students(options, read_plan(ResultStore(options.out)))
    usable = [entry for entry in complete if entry.student in DETECTOR_BACKBONES]
    if not usable:
        names = ", ".join(sorted({entry.student for entry in complete}))
        raise ValueError(
            f"--out is {options.out}, whose students are {names}; accepted as detectors' backbones: {', '.join(DETECTOR_BACKBONES)}"
        )
    if len(usable) < len(complete):
        print(f"{len(complete) - len(usable)} of {len(complete)} students are no ImageNet ResNet and are left out", file=sys.stderr)
    lines = []
    for entry in usable:
        detector = detector_of(TrialConfig.from_json(entry.config_json), options)
        lines.append((replace(entry, trial_id=detector.trial_id, study=STUDY, config_json=detector.to_json()), detector))
    return lines
