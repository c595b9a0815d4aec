"""Exported networks: the same logits as the trained one, in every format, without its auxiliary classifiers."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from hsakd.config import DataConfig, NumericsConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.data import load_dataset, normalize
from hsakd.export import ExportOptions, export_trial, main
from hsakd.models import create_network
from hsakd.models.checkpoints import load_weights
from hsakd.store import ResultStore
from hsakd.training.trial import RunContext, run_trial

DATA = DataConfig(dataset="digits", train_subset=200)
OBJECTIVE = ObjectiveConfig(terms=(("task", 1.0), ("ce_q", 1.0)))
FAMILIES = ("wrn_16_1", "vgg8_bn", "mobilenetv2_half", "shufflenet_v1", "shufflenet_v2")


def train(root: Path, network: str, *, image_size: int | None = None, precision: Literal["float32", "float64"] = "float32") -> TrialConfig:
    data = DataConfig(dataset="digits", train_subset=64, image_size=image_size) if image_size else DATA
    optim = OptimConfig(epochs=1, batch_size=32, milestones=(), learning_rate=0.01)
    numerics = NumericsConfig(precision=precision)
    config = TrialConfig(network=network, data=data, optim=optim, objective=OBJECTIVE, numerics=numerics)
    run_trial(config, RunContext(store=ResultStore(root)))
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A result folder and the id of a trained network in it, auxiliary classifiers and all."""
    root = tmp_path_factory.mktemp("runs")
    return root, train(root, "resnet8_half").trial_id


def logits_of_the_trained(root: Path, config: TrialConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normalized test images and what the trained network, built whole, says of them."""
    data = load_dataset(config.data)
    network = create_network(config.network, num_classes=10)
    load_weights(network, ResultStore(root).weights_path(config.trial_id))
    images = normalize(data.test_images[:50], data.mean, data.std)
    with torch.no_grad():
        return images, network.eval()(images).logits


def config_of(root: Path, trial_id: str) -> TrialConfig:
    record = ResultStore(root).read_trial(trial_id)
    assert record is not None
    return record.config


def test_the_exported_weights_and_program_give_the_trained_networks_logits(trained: tuple[Path, str], tmp_path: Path) -> None:
    root, trial_id = trained
    images, expected = logits_of_the_trained(root, config_of(root, trial_id))
    folder, card = export_trial(ExportOptions(trial=trial_id, runs=root, out=tmp_path / "model", format="torch-export"))
    network = create_network(card.network, num_classes=len(card.classes), taps=()).eval()
    load_weights(network, folder / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(network(images).logits, expected)
    for size in (1, 50):
        torch.testing.assert_close(torch.export.load(folder / "model.pt2").module()(images[:size]), expected[:size])
    assert all(name.startswith("backbone.") for name in load_file(folder / "model.safetensors"))
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.pt2", "model.safetensors"]


def test_the_card_says_all_that_a_user_needs(trained: tuple[Path, str], tmp_path: Path) -> None:
    root, trial_id = trained
    status = main(ExportOptions(trial=str(root / "trials" / f"{trial_id}.parquet"), out=tmp_path / "model"))
    assert status == 0
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    data, config = load_dataset(DATA), config_of(root, trial_id)
    assert (card["network"], card["image_size"], card["classes"]) == ("resnet8_half", 8, list("0123456789"))
    image = data.test_images[:1].float().expand(-1, 3, -1, -1) / 255
    by_card = (image - torch.tensor(card["mean"]).view(3, 1, 1)) / torch.tensor(card["std"]).view(3, 1, 1)
    torch.testing.assert_close(by_card, logits_of_the_trained(root, config)[0][:1])


def onnx_logits(path: Path, images: torch.Tensor) -> torch.Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet8_half", *FAMILIES])
def test_every_familys_onnx_graph_gives_the_trained_networks_logits(network: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    config = train(tmp_path, network, image_size=32)
    images, expected = logits_of_the_trained(tmp_path, config)
    export_trial(ExportOptions(trial=config.trial_id, runs=tmp_path, out=tmp_path / "model", format="onnx"))
    for size in (1, 50):
        found = onnx_logits(tmp_path / "model" / "model.onnx", images[:size])
        torch.testing.assert_close(found, expected[:size], rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_onnx_without_its_packages_names_the_extra(
    trained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, trial_id = trained
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main(ExportOptions(trial=trial_id, runs=root, out=tmp_path / "model", format="onnx")) == 2
    assert "needs onnx and onnxscript and onnxruntime (pip install 'hsakd-sweeper[onnx]')" in capsys.readouterr().err
    assert list((tmp_path / "model").iterdir()) == []


def test_a_network_that_a_runtime_has_no_kernels_for_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    config = train(tmp_path, "resnet8_half", precision="float64")
    options = ExportOptions(trial=config.trial_id, runs=tmp_path, out=tmp_path / "model", format="onnx")
    assert main(options) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: --format is 'onnx', which fails for a float64 resnet8_half \(.+\); accepted: safetensors\n", error)
    assert list((tmp_path / "model").iterdir()) == []
    assert main(replace(options, format="torch-export")) == 0


def test_an_unknown_trial_or_damaged_weights_are_a_sentence(
    trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = trained
    assert main(ExportOptions(trial="nothing", runs=root, out=tmp_path / "model")) == 2
    assert f"trial is 'nothing'; accepted: a complete trial of {root}" in capsys.readouterr().err
    config = train(tmp_path / "other", "resnet8_half")
    path = ResultStore(tmp_path / "other").weights_path(config.trial_id)
    path.write_bytes(path.read_bytes()[:500])
    assert main(ExportOptions(trial=config.trial_id, runs=tmp_path / "other", out=tmp_path / "model")) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "model").exists()
