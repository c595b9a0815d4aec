"""`python -m hsakd.export TRIAL`: a trained student without its auxiliary classifiers, to deploy."""

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from safetensors.torch import load_file
from torch import Tensor, nn

from hsakd.data import DATASETS
from hsakd.models import HierarchicalNet, count_parameters, create_network
from hsakd.models.checkpoints import load_weights, read_metadata, save_weights, weights_sha256
from hsakd.records import ResultStore, TrialRecord, replacing

WEIGHTS_FILE, CARD_FILE = "model.safetensors", "model.json"
TOLERANCE = 1e-4  # of logits, relative to their largest: another runtime sums in another order
BATCH_DIMENSION = torch.export.Dim("batch", min=1)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a trial's network without its auxiliary classifiers: model.safetensors and model.json, and a graph on request."""

    trial: tyro.conf.Positional[str]
    """A finished trial's id, or its file OUT/trials/ID.parquet."""
    runs: Path = Path("runs")
    """The result folder that an id is looked up in."""
    out: Path | None = None
    """Where to write; default: export/ID."""
    format: Literal["safetensors", "torch-export", "onnx"] = "safetensors"
    """Besides the weights: model.pt2 (torch.export) or model.onnx."""


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


class Deployed(nn.Module):
    """The backbone alone: normalized images [B, 3, S, S] -> logits [B, N]."""

    def __init__(self, network: HierarchicalNet) -> None:
        super().__init__()
        self.backbone = network.backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.classify(self.backbone.stage_maps(images)[-1])


def find_trial(trial: str, runs: Path) -> tuple[ResultStore, TrialRecord]:
    """Return the folder and the record of a finished trial.

    Raises:
        ValueError: there is no such trial; the message names the students that the folder has.
    """
    path = Path(trial)
    store = ResultStore(path.resolve().parents[1] if path.suffix == ".parquet" else runs)
    trial_id = path.stem if path.suffix == ".parquet" else trial
    record = store.peek_trial(trial_id)
    if record is None or record.status != "complete" or not store.is_finished(record):
        lines = [entry for entry in store.read_plan() if entry.purpose == "report" and store.trial_path(entry.trial_id).exists()]
        known = ", ".join(f"{entry.trial_id} ({entry.method}, {entry.student}, seed {entry.seed})" for entry in lines)
        raise ValueError(f"trial is {trial!r}; accepted: a complete trial of {store.root}{': ' + known if known else ', which has none'}")
    return store, record


def deployed_network(store: ResultStore, record: TrialRecord) -> tuple[HierarchicalNet, ModelCard]:
    """Return a trial's network in eval mode, built without auxiliary classifiers, and what there is to know of it."""
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


def write_torch_export(model: Deployed, path: Path, example: Tensor) -> Tensor:
    """Write a `torch.export` program for any batch size; return what it gives for `example` after reading it back."""
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=({0: BATCH_DIMENSION},)), path)
    logits: Tensor = torch.export.load(path).module()(example)
    return logits


def write_onnx(model: Deployed, path: Path, example: Tensor) -> Tensor:
    """Write an ONNX graph for any batch size; return what onnxruntime gives for `example`. Raises ValueError without the extra."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        needed = " and ".join(missing)
        raise ValueError(f"format is 'onnx', which needs {needed} (pip install 'hsakd-sweeper[onnx]'); accepted without: torch-export")
    import onnxruntime

    torch.onnx.export(
        model,
        (example,),
        path,
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: BATCH_DIMENSION},),
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": example.numpy()})[0])


GRAPHS: dict[str, tuple[str, Callable[[Deployed, Path, Tensor], Tensor]]] = {
    "torch-export": ("model.pt2", write_torch_export),
    "onnx": ("model.onnx", write_onnx),
}


def export_trial(options: ExportOptions) -> tuple[Path, ModelCard]:
    """Write the files of a trial; return their folder and the card.

    A graph is read back and run on random images before it gets its name: its logits must be the network's.

    Raises:
        ValueError: no such trial, damaged weights, a missing extra, or a graph that computes something else.
    """
    store, record = find_trial(options.trial, options.runs)
    network, card = deployed_network(store, record)
    folder = options.out if options.out is not None else Path("export") / record.trial_id
    parameter = next(network.parameters())
    shape = (3, 3, card.image_size, card.image_size)
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=parameter.dtype)
    model = Deployed(network).eval()
    folder.mkdir(parents=True, exist_ok=True)
    if options.format in GRAPHS:
        name, write = GRAPHS[options.format]
        with torch.no_grad(), replacing(folder / name) as temporary:
            named = temporary.with_suffix(Path(name).suffix)  # both writers look at the suffix
            try:
                difference = (write(model, named, example) - (expected := model(example))).abs().max().item()
                named.replace(temporary)
            finally:
                named.unlink(missing_ok=True)
            if not difference <= TOLERANCE * expected.abs().max().item():
                raise ValueError(
                    f"format is {options.format!r}, whose logits of {card.network} differ by {difference:.3g}; accepted: safetensors"
                )
    save_weights(network, folder / WEIGHTS_FILE, layout="ours", notes={"model_card": json.dumps(asdict(card))})
    with replacing(folder / CARD_FILE) as temporary:
        temporary.write_text(json.dumps(asdict(card), indent=1) + "\n")
    return folder, card


def main(options: ExportOptions) -> int:
    """Run the command; 2 and one sentence on stderr for values that can't be used."""
    try:
        folder, card = export_trial(options)
    except (ValueError, KeyError) as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --out can't be written ({error}); accepted: a folder", file=sys.stderr)
        return 2
    accuracy = "" if card.top1 is None else f", top-1 {card.top1:.2f} %"
    print(f"{card.network} ({card.parameters:,} parameters, {len(card.classes)} classes{accuracy}) written to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ExportOptions)))
