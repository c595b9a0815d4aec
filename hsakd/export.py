"""`python -m hsakd.export TRIAL`: a trained student without its auxiliary classifiers, to deploy."""

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import tyro
from torch import Tensor, nn

from hsakd.command_line import parse, run_command
from hsakd.files import replacing
from hsakd.models import HierarchicalNet
from hsakd.models.checkpoints import save_weights
from hsakd.records import TrialRecord
from hsakd.result_folder import check_trials, read_plan
from hsakd.store import ResultStore
from hsakd.training.deployed import ModelCard, deployed_network

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
        check_trials("--runs" if store.root == runs else "TRIAL's folder", store.root)
        lines = [entry for entry in read_plan(store) if entry.purpose == "report" and store.trial_path(entry.trial_id).exists()]
        known = ", ".join(f"{entry.trial_id} ({entry.method}, {entry.student}, seed {entry.seed})" for entry in lines)
        raise ValueError(f"trial is {trial!r}; accepted: a complete trial of {store.root}{': ' + known if known else ', which has none'}")
    return store, record


def write_torch_export(model: Deployed, path: Path, example: Tensor) -> Tensor:
    """Write a `torch.export` program for any batch size; return the logits [B, N] that it gives, read back, for `example` [B, 3, S, S]."""
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=({0: BATCH_DIMENSION},)), path)
    logits: Tensor = torch.export.load(path).module()(example)
    return logits


def write_onnx(model: Deployed, path: Path, example: Tensor) -> Tensor:
    """Write an ONNX graph for any batch size; return the logits [B, N] that onnxruntime gives for `example` [B, 3, S, S]."""
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


class Graph(NamedTuple):
    """A graph's file, who writes it, and the packages of the extra of its name that it needs."""

    file: str
    write: Callable[[Deployed, Path, Tensor], Tensor]
    packages: tuple[str, ...] = ()


GRAPHS = {
    "torch-export": Graph("model.pt2", write_torch_export),
    "onnx": Graph("model.onnx", write_onnx, ("onnx", "onnxscript", "onnxruntime")),
}


def write_graph(format: str, network: HierarchicalNet, card: ModelCard, folder: Path) -> None:
    """Write a network's graph into `folder`; it is read back and run on random images before it gets its name.

    Raises:
        ValueError: a missing extra, a network that the format can't express, or a graph whose logits are not the network's.
        OSError: the folder can't be written.
    """
    graph, subject = GRAPHS[format], f"--format is {format!r}"
    missing = " and ".join(name for name in graph.packages if importlib.util.find_spec(name) is None)
    if missing:
        raise ValueError(f"{subject}, which needs {missing} (pip install 'hsakd-sweeper[{format}]'); accepted without: torch-export")
    dtype = next(network.parameters()).dtype
    example = torch.randn((3, 3, card.image_size, card.image_size), generator=torch.Generator().manual_seed(0), dtype=dtype)
    model = Deployed(network).eval()
    with torch.no_grad(), replacing(folder / graph.file) as temporary:
        named = temporary.with_suffix(Path(graph.file).suffix)  # both writers look at the suffix
        try:
            found, expected = graph.write(model, named, example), model(example)
            named.replace(temporary)
        except OSError:
            raise
        except Exception as error:  # exporters and runtimes have kinds of their own
            reason = str(error).strip().partition("\n")[0]
            kind = str(dtype).removeprefix("torch.")
            raise ValueError(f"{subject}, which fails for a {kind} {card.network} ({reason}); accepted: safetensors") from error
        finally:
            named.unlink(missing_ok=True)
        difference = (found - expected).abs().max().item()
        if not difference <= TOLERANCE * expected.abs().max().item():
            raise ValueError(f"{subject}, whose logits of {card.network} differ by {difference:.3g}; accepted: safetensors")


def export_trial(options: ExportOptions) -> tuple[Path, ModelCard]:
    """Write the files of a trial; return their folder and the card.

    Raises:
        ValueError: no such trial, damaged weights, or a graph that can't be had (`write_graph`).
        OSError: the folder can't be written.
    """
    store, record = find_trial(options.trial, options.runs)
    network, card = deployed_network(store, record)
    folder = options.out if options.out is not None else Path("export") / record.trial_id
    folder.mkdir(parents=True, exist_ok=True)
    if options.format in GRAPHS:
        write_graph(options.format, network, card, folder)
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
    run_command(lambda: main(parse(ExportOptions)))
