"""Detection transfer: a detector on a finished student's backbone, trained and tested on Pascal VOC.

It has a loop of its own beside `fit`: images of different sizes, boxes for labels, losses that the network computes itself. Trial,
record, checkpoint, schedule and hooks are the same. Inside torchvision's detectors a step waits for the device (sampling of proposals,
non-maximum suppression, the sizes of images), so it can't run on `meta`; our part of the loop doesn't, between epochs.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection import FasterRCNN

from hsakd.config import DETECTION_DATASET, TrialConfig
from hsakd.data.voc import CLASSES, Objects, VocImages, read_voc
from hsakd.files import replacing
from hsakd.models import count_parameters
from hsakd.models.checkpoints import weights_sha256
from hsakd.models.detector import build_detector
from hsakd.records import EpochMetrics, TrialRecord
from hsakd.seeds import seed_of
from hsakd.training.average_precision import Detections, mean_average_precision, require_pycocotools
from hsakd.training.checkpoint import discard_unfinished, load_resume, save_resume
from hsakd.training.deployed import deployed_network
from hsakd.training.loop import LoopHooks, TrialInterrupted, learning_rate_at
from hsakd.training.step import RunningLosses, make_optimizer
from hsakd.training.trial import (
    RunContext,
    checked_requirement,
    finish_trial,
    from_checkpoint,
    naming_lack_of_memory,
    provenance,
)

LOSSES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")  # torchvision's names; their plain sum is minimized


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorFit:
    """The epochs of a detector's training; `diverged_step` is its first step whose loss was not finite.

    `earlier_seconds` are what earlier attempts took.
    """

    epochs: list[EpochMetrics]
    diverged_step: int | None = None
    earlier_seconds: float = 0.0


def run_detection(config: TrialConfig, context: RunContext, hooks: LoopHooks) -> TrialRecord:
    """Train, test and record one detector; `run_trial` calls this for trials that are one.

    Raises:
        ValueError: pycocotools or data are missing.
        MissingTeacher: the student has no finished weights.
        TrialInterrupted: `hooks.should_stop` returned True; the checkpoint is written.
        TrialOutOfMemory: the device's memory did not suffice.
    """
    assert config.detection is not None
    assert config.backbone is not None
    require_pycocotools()
    store, device = context.store, torch.device(context.device)
    train, test = read_voc(context.data_dir, download=context.download)
    student, card = deployed_network(store, checked_requirement(store, config.backbone))
    detector = build_detector(student, config.detection, num_classes=len(CLASSES), mean=card.mean, std=card.std, seed=config.seed)
    num_workers = context.num_threads if device.type == "cuda" else 0  # a CPU's threads are busy with the step
    with naming_lack_of_memory(config, context):
        detector.to(device)
        fitted = from_checkpoint(
            config, context, lambda: fit_detector(config, detector, train, test, device=device, hooks=hooks, num_workers=num_workers)
        )
    epochs, is_complete = fitted.epochs, fitted.diverged_step is None
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in detector.state_dict().items()}
    if is_complete and context.keep_checkpoints != "none":
        notes = {"detector": "torchvision FasterRCNN", "backbone": config.network, "classes": ",".join(CLASSES), "config": config.to_json()}
        with replacing(store.weights_path(config.trial_id)) as temporary:
            temporary.write_bytes(save(state, metadata=notes))
    best = max(epochs, key=lambda row: (row.map50_test or 0.0, -row.epoch), default=None)
    record = TrialRecord.of(
        config,
        status="complete" if is_complete else "diverged",
        error="" if is_complete else f"loss is not finite at step {fitted.diverged_step}",
        attempts=context.attempt,
        epochs_done=len(epochs),
        map50_last=epochs[-1].map50_test if is_complete else None,
        map50_best_test=None if best is None else best.map50_test,
        best_test_epoch=None if best is None else best.epoch,
        diverged_step=fitted.diverged_step,
        num_train_images=len(train.objects),
        parameters=count_parameters(student).backbone,
        train_seconds=sum(row.train_seconds for row in epochs),
        weights_sha256=weights_sha256(state) if is_complete else "",
        has_weights=is_complete and context.keep_checkpoints != "none",
        **provenance(config, context, hooks.started, fitted.earlier_seconds),
    )
    finish_trial(record, epochs, context)
    return record


class Rows(torch.utils.data.Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Images in an order, some mirrored: uint8 [3, H, W], boxes [K, 4], labels [K]."""

    def __init__(self, images: VocImages, order: Tensor, is_mirrored: Tensor) -> None:
        self.images, self.order, self.is_mirrored = images, order.tolist(), is_mirrored.tolist()

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        number = self.order[position]
        image, objects = self.images.image(number), self.images.objects[number]
        if self.is_mirrored[position]:
            return mirrored(image, objects)
        return image, objects.boxes, objects.labels


def mirrored(image: Tensor, objects: Objects) -> tuple[Tensor, Tensor, Tensor]:
    """Return an image [3, H, W] and its boxes with left and right exchanged, and its labels."""
    left, top, right, bottom = objects.boxes.unbind(1)
    width = image.shape[-1]
    return image.flip(-1), torch.stack([width - right, top, width - left, bottom], dim=1), objects.labels


def epoch_rows(images: VocImages, *, seed: int, epoch: int) -> Rows:
    """Return an epoch's order and mirrorings of the training images; they depend on the seed and the epoch only."""
    generator = torch.Generator().manual_seed(seed_of(DETECTION_DATASET, seed, epoch))
    count = len(images.objects)
    return Rows(images, torch.randperm(count, generator=generator), torch.rand(count, generator=generator) < 0.5)


def batches_of(rows: Rows, batch_size: int, *, first: int = 0, num_workers: int = 0, device: torch.device) -> Iterator[Any]:
    """Yield lists of rows from the 0-based batch `first` on, decoded by worker processes if there are any."""
    positions = [list(range(start, min(start + batch_size, len(rows)))) for start in range(first * batch_size, len(rows), batch_size)]
    loader = DataLoader(rows, batch_sampler=positions, collate_fn=list, num_workers=num_workers, pin_memory=device.type == "cuda")
    return iter(loader)


def detector_step(
    detector: FasterRCNN, optimizer: torch.optim.Optimizer, batch: Sequence[tuple[Tensor, Tensor, Tensor]], device: torch.device
) -> dict[str, Tensor]:
    """Take one optimizer step on a batch of rows; return the losses by name."""
    images = [image.to(device, non_blocking=True).float() / 255 for image, _, _ in batch]
    targets = [{"boxes": boxes.to(device, non_blocking=True), "labels": labels.to(device, non_blocking=True)} for _, boxes, labels in batch]
    losses: dict[str, Tensor] = detector(images, targets)
    total = torch.stack([losses[name] for name in LOSSES]).sum()
    optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return {"total": total, **losses}


def fit_detector(
    config: TrialConfig,
    detector: FasterRCNN,
    train: VocImages,
    test: VocImages,
    *,
    device: torch.device,
    hooks: LoopHooks,
    num_workers: int = 0,
) -> DetectorFit:
    """Train `detector` (on `device`, weights as built) for all epochs of `config`, from its checkpoint if there is one.

    Bit for bit the same on the CPU, also when interrupted and resumed: each step seeds its sampling of proposals by the trial's seed and
    its own number.

    Raises:
        TrialInterrupted: `hooks.should_stop` said so; the checkpoint is written.
        CheckpointCorrupt: the resume file can't be used.
    """
    optim = config.optim
    optimizer = make_optimizer(detector, optim)
    steps_per_epoch = -(-len(train.objects) // optim.batch_size)
    state = None
    if hooks.checkpoint_dir is not None:
        discard_unfinished(hooks.checkpoint_dir)
        state = load_resume(hooks.checkpoint_dir, config.trial_id)
    epochs: list[EpochMetrics] = []
    first_epoch, first_step, seconds, earlier_seconds = 0, 0, 0.0, 0.0
    losses = RunningLosses(LOSSES, device)
    if state is not None:
        detector.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        epochs = [EpochMetrics(**row) for row in state["epochs"]]
        first_epoch, first_step, seconds = state["epoch"], state["step"], state["train_seconds"]
        earlier_seconds = state.get("total_seconds", 0.0)  # files of older versions have none
        losses.sums, losses.first_bad = state["loss_sums"].to(device), state["first_bad"].to(device)
        if hooks.on_epoch is not None:
            for row in epochs:
                hooks.on_epoch(row)
    last_save = time.monotonic()

    def save_at(epoch: int, step: int, train_seconds: float) -> None:
        nonlocal last_save
        if hooks.checkpoint_dir is not None:
            save_resume(
                hooks.checkpoint_dir,
                {
                    "trial_id": config.trial_id,
                    "network": detector.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "epochs": [asdict(row) for row in epochs],
                    "epoch": epoch,
                    "step": step,
                    "train_seconds": train_seconds,
                    "total_seconds": earlier_seconds + time.monotonic() - hooks.started,
                    "loss_sums": losses.sums,
                    "first_bad": losses.first_bad,
                },
            )
        last_save = time.monotonic()

    def stop_if_asked(epoch: int, step: int, train_seconds: float) -> None:
        if hooks.should_stop is not None and hooks.should_stop():
            save_at(epoch, step, train_seconds)
            raise TrialInterrupted(f"trial {config.trial_id} stopped at epoch {epoch}, step {step}")

    for epoch in range(first_epoch, optim.epochs):
        detector.train()
        started = time.monotonic() - seconds
        rows = epoch_rows(train, seed=config.seed, epoch=epoch)
        for step, batch in enumerate(
            batches_of(rows, optim.batch_size, first=first_step, num_workers=num_workers, device=device), first_step
        ):
            stop_if_asked(epoch, step, time.monotonic() - started)
            if time.monotonic() - last_save > hooks.checkpoint_seconds:
                save_at(epoch, step, time.monotonic() - started)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(optim, epoch, step, steps_per_epoch)
            number = epoch * steps_per_epoch + step
            torch.manual_seed(seed_of(config.seed, number))
            values = detector_step(detector, optimizer, batch, device)
            losses.add(number, values["total"], values)
        mean_loss, mean_terms = losses.means(steps_per_epoch)
        train_seconds = time.monotonic() - started
        if (bad := int(losses.first_bad.item())) >= 0:
            return DetectorFit(epochs=epochs, diverged_step=bad, earlier_seconds=earlier_seconds)
        save_at(epoch, steps_per_epoch, train_seconds)  # a test takes minutes
        evaluation_started = time.monotonic()
        found = []
        for detections in find_objects(detector, test, device=device, num_workers=num_workers):
            stop_if_asked(epoch, steps_per_epoch, train_seconds)
            found.append(detections)
        epochs.append(
            EpochMetrics(
                trial_id=config.trial_id,
                epoch=epoch,
                attempt=hooks.attempt,
                learning_rate=learning_rate_at(optim, epoch, steps_per_epoch - 1, steps_per_epoch),
                loss=mean_loss,
                loss_terms=mean_terms,
                map50_test=mean_average_precision(test.objects, found),
                train_seconds=train_seconds,
                eval_seconds=time.monotonic() - evaluation_started,
            )
        )
        first_step, seconds, losses = 0, 0.0, RunningLosses(LOSSES, device)
        save_at(epoch + 1, 0, 0.0)
        if hooks.on_epoch is not None:
            hooks.on_epoch(epochs[-1])
    return DetectorFit(epochs=epochs, earlier_seconds=earlier_seconds)


@torch.no_grad()  # not inference mode: anchors that torchvision keeps are used in training again
def find_objects(detector: FasterRCNN, images: VocImages, *, device: torch.device, num_workers: int = 0) -> Iterator[Detections]:
    """Yield what the detector finds in each image, in order; one image at a time, since padding to others' size would change it."""
    count = len(images.objects)
    rows = Rows(images, torch.arange(count), torch.zeros(count))
    detector.eval()
    for [(image, _, _)] in batches_of(rows, 1, num_workers=num_workers, device=device):
        [found] = detector([image.to(device, non_blocking=True).float() / 255])
        yield Detections(found["boxes"].cpu(), found["labels"].cpu(), found["scores"].cpu())
