"""A trained network without its auxiliary classifiers, and its card: what exports are made of and detectors are built on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from hsakd.data import DATASETS
from hsakd.models import HierarchicalNet, count_parameters, create_network
from hsakd.models.checkpoints import load_weights, read_metadata, weights_sha256
from hsakd.records import TrialRecord
from hsakd.store import ResultStore


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What a user of the exported network has to know.

    It takes float images [batch, 3, image_size, image_size] in 0..1, from which `mean` is subtracted and which are divided by `std`
    (per channel; a grey image is repeated to three channels), and gives logits [batch, len(classes)].
    """

    network: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    dataset: str
    trial_id: str
    top1: float | None  # per cent, on the test images
    parameters: int
    weights_sha256: str


def deployed_network(store: ResultStore, record: TrialRecord) -> tuple[HierarchicalNet, ModelCard]:
    """Return a trial's network in eval mode, built without auxiliary classifiers, and what there is to know of it.

    Raises:
        ValueError: the trial is a detector, or its weights file can't be read or doesn't fit its network.
    """
    if record.role == "detector":
        raise ValueError(f"trial {record.trial_id} is a detector, whose weights are torchvision's state dict; accepted: a classifier")
    weights = store.weights_path(record.trial_id)
    notes, config = read_metadata(weights), record.config
    try:
        num_classes, num_rotations = int(notes["num_classes"]), int(notes["num_rotations"])
        facts = {name: json.loads(notes[name]) for name in ("mean", "std", "classes", "image_size") if name in notes}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{weights}: its metadata can't be read ({error}); accepted: a weights file of this project") from error
    if len(facts) < 4:  # written before weights said what images they are for
        entry = DATASETS[config.data.dataset]
        facts = {"mean": entry.mean, "std": entry.std, "classes": (), "image_size": config.data.image_size or entry.image_size}
    network = create_network(record.network, num_classes=num_classes, num_rotations=num_rotations, taps=())
    if any(tensor.dtype == torch.float64 for tensor in load_file(weights).values()):
        network = network.double()
    load_weights(network, weights)
    card = ModelCard(
        network=record.network,
        classes=tuple(facts["classes"]) or tuple(map(str, range(num_classes))),
        mean=_three(facts["mean"]),
        std=_three(facts["std"]),
        image_size=facts["image_size"],
        dataset=record.dataset,
        trial_id=record.trial_id,
        top1=record.top1_last,
        parameters=count_parameters(network).backbone,
        weights_sha256=weights_sha256(network),
    )
    return network.eval(), card


def _three(values: Sequence[float]) -> tuple[float, ...]:
    """Return one value per input channel; grey images are repeated to three."""
    return tuple(values) * (3 if len(values) == 1 else 1)
