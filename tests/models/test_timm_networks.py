"""timm models as teachers and students."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hsakd.config import DataConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.models import count_multi_adds, create_network
from hsakd.store import ResultStore
from hsakd.training.trial import RunContext, run_trial
from sweeps.cli import SweepOptions
from sweeps.cost import cost_of
from sweeps.networks import network_facts
from sweeps.worklist import PAPER_SETTING, TEACHER_TERMS, known_work

pytest.importorskip("timm")
ROOT = Path(__file__).parents[2]


def test_a_timm_model_gets_branches_on_its_stages() -> None:
    network = create_network("timm/resnet18", num_classes=5, seed=1)
    output = network(torch.randn(2, 3, 32, 32))
    assert output.logits.shape == (2, 5)
    assert [logits.shape for logits in output.joint_logits] == [(2, 20)] * 4
    (output.logits.sum() + sum(logits.sum() for logits in output.joint_logits)).backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("model", ["mambaout_femto", "vit_tiny_patch16_224", "convnext_atto"])
def test_maps_that_end_in_channels_and_models_of_one_image_size_are_taken_and_counted(model: str) -> None:
    """MambaOut gives [R, H, W, C]; ViT is made for 224 px. Multi-adds against PyTorch's own counter, where no attention is in between."""
    network = create_network(f"timm/{model}", num_classes=5, taps=()).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = network(torch.randn(1, 3, 32, 32))
    assert [maps.shape[1] for maps in output.features] == [stage.out_channels for stage in network.spec.stages]
    if not model.startswith("vit"):
        assert 2 * count_multi_adds(network, 32).total == counter.get_total_flops()


def test_a_model_that_fits_no_small_image_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="network 'timm/levit_128s': no stage features at 64 px"):
        create_network("timm/levit_128s", num_classes=5)


def test_its_weights_depend_on_the_seed_only() -> None:
    first, again = (create_network("timm/mobilenetv3_small_050", num_classes=5, seed=1).state_dict() for _ in range(2))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    other = create_network("timm/mobilenetv3_small_050", num_classes=5, seed=2).state_dict()
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


def test_an_unknown_timm_model_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="timm has no model 'resnet1800'"):
        create_network("timm/resnet1800", num_classes=5)


def test_its_branches_can_be_chosen_and_frozen_as_any_networks() -> None:
    rows = torch.randn(2, 3, 32, 32)
    whole = create_network("timm/mobilenetv3_small_050", num_classes=4, seed=2).eval()
    part = create_network("timm/mobilenetv3_small_050", num_classes=4, seed=2, taps=(2,)).eval()
    with torch.no_grad():
        assert torch.equal(part(rows).joint_logits[0], whole(rows).joint_logits[1])
    whole.freeze_backbone()
    sum(logits.square().sum() for logits in whole.train()(rows).joint_logits).backward()
    assert all(parameter.grad is None for parameter in whole.backbone.parameters())


@pytest.mark.slow
def test_a_real_pair_of_timm_models_is_trained_for_an_epoch_on_digits(tmp_path: Path) -> None:
    """Teacher (joint) and student through `run_trial`: records, weights that are read back, losses that were finite."""
    optim = OptimConfig(epochs=1, milestones=(), learning_rate=0.02)
    data = DataConfig(dataset="digits", image_size=32, train_subset=256)
    teacher = TrialConfig(network="timm/resnet10t", data=data, optim=optim, objective=ObjectiveConfig(terms=TEACHER_TERMS))
    student = replace(teacher, network="timm/mobilenetv3_small_050", objective=PAPER_SETTING.objective, teacher=teacher)
    store = ResultStore(tmp_path)
    for config in (teacher, student):
        record = run_trial(config, RunContext(store=store))
        assert (record.status, record.epochs_done, record.network) == ("complete", 1, config.network)
        assert len(record.branch_top1_joint) == 4
        assert record.parameters > 0
    epoch = store.read_epochs(student.trial_id)[0]
    assert set(epoch.loss_terms) == {"task", "kl_q", "kl_p"}
    assert store.read_trial(student.trial_id).teacher_weights_sha256 == store.read_trial(teacher.trial_id).weights_sha256  # type: ignore[union-attr]


def test_a_pair_passes_the_parser_and_the_cost_model(tmp_path: Path) -> None:
    options = SweepOptions(out=tmp_path / "out", preset="digits", pairs=("timm/resnet10t-timm/mobilenetv3_small_050",))
    costs = {config.network: cost_of(config) for _, config in known_work(options)}
    assert set(costs) == {"timm/resnet10t", "timm/mobilenetv3_small_050"}
    assert all(cost > 0 for cost in costs.values())
    facts, network = network_facts("timm/resnet10t"), create_network("timm/resnet10t", num_classes=100)
    assert facts.parameters == sum(parameter.numel() for parameter in network.backbone.parameters())
    assert facts.num_branches == 4
    with pytest.raises(ValueError, match="networks with equally many branches"):
        SweepOptions(out=tmp_path / "out", pairs=("timm/resnet10t-resnet20",))
    with pytest.raises(ValueError, match="timm has no model 'resnet1800'"):
        SweepOptions(out=tmp_path / "out", pairs=("timm/resnet1800-resnet20",))


def test_a_missing_timm_is_a_sentence_that_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise ImportError('not installed')")
    line = [sys.executable, str(ROOT / "sweeps" / "run_pairs.py"), "--out", str(tmp_path / "out"), "--dry-run", "--pairs"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    result = subprocess.run([*line, "timm/resnet18-resnet20"], env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    sentence = " ".join(result.stderr.replace("│", " ").split())
    assert "network 'timm/resnet18' needs timm; install the extra: pip install '.[timm]'" in sentence
    assert not (tmp_path / "out").exists()
