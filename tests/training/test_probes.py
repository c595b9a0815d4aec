"""Linear probes: a trained backbone that stays as it is, a new linear layer trained by the authors' linear evaluation."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hsakd.config import DataConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.data import load_dataset
from hsakd.data.batches import epoch_stream, gather_batch
from hsakd.models import create_network, network_names
from hsakd.models.checkpoints import load_weights
from hsakd.store import ResultStore
from hsakd.training.trial import RunContext, run_trial
from sweeps.transfer import PROBE_OPTIM

SOURCE = TrialConfig(
    network="resnet8_half",
    data=DataConfig(dataset="digits", train_subset=200),
    optim=OptimConfig(epochs=1, batch_size=32, milestones=()),
    objective=ObjectiveConfig(terms=(("task", 1.0), ("ce_q", 1.0))),
)
PROBE = TrialConfig(
    network="resnet8_half",
    data=DataConfig(dataset="fashion_mnist", image_size=8, train_subset=300, augmentation="resized_crop"),
    optim=replace(PROBE_OPTIM, epochs=3, milestones=(2,)),
    taps=(),
    backbone=SOURCE,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source and its probe."""
    folder = tmp_path_factory.mktemp("probes")
    for config in (SOURCE, PROBE):
        run_trial(config, RunContext(store=ResultStore(folder)))
    return folder


def test_the_protocol_is_the_authors() -> None:
    assert (
        OptimConfig(epochs=100, batch_size=64, learning_rate=0.1, milestones=(30, 60, 90), momentum=0.9, nesterov=True, weight_decay=0.0)
        == PROBE_OPTIM
    )
    assert (PROBE.role, PROBE.teacher_regime, PROBE.requirements()) == ("probe", "", (SOURCE,))


def test_the_backbone_stays_to_the_bit_and_the_linear_layer_learns(root: Path) -> None:
    store = ResultStore(root)
    source, probe = (load_file(store.weights_path(config.trial_id)) for config in (SOURCE, PROBE))
    shared = [name for name in probe if not name.startswith("backbone.head.")]
    assert len(probe) == len(shared) + 2
    assert all(torch.equal(probe[name], source[name]) for name in shared)
    record = store.read_trial(PROBE.trial_id)
    assert record is not None
    assert (record.status, record.role, record.dataset) == ("complete", "probe", "fashion_mnist")
    assert record.top1_last is not None
    assert record.top1_last > 25  # ten classes; a backbone of one epoch


def test_the_linear_layer_is_that_of_plain_logistic_regression_on_the_sources_features(root: Path) -> None:
    store, data = ResultStore(root), load_dataset(PROBE.data)
    source = create_network(SOURCE.network, num_classes=10)
    load_weights(source, store.weights_path(SOURCE.trial_id))
    source.eval()
    head = torch.nn.Linear(source.spec.out_channels, 10)
    head.load_state_dict(create_network(PROBE.network, num_classes=10, taps=(), seed=PROBE.seed).backbone.head.state_dict())
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = 0.1 if epoch < 2 else 0.01
        order, views = epoch_stream(data, seed=PROBE.seed, epoch=epoch)
        for start in range(0, 300, 64):
            batch = gather_batch(data, order[start : start + 64], views[start : start + 64], dtype=torch.float32)
            with torch.no_grad():
                maps = source.backbone.stage_maps(batch.images)[-1]
                features = source.backbone.neck(maps).mean(dim=(2, 3))
            optimizer.zero_grad()
            F.cross_entropy(head(features), batch.labels).backward()
            optimizer.step()
    trained = load_file(store.weights_path(PROBE.trial_id))
    torch.testing.assert_close(trained["backbone.head.weight"], head.weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trained["backbone.head.bias"], head.bias.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", network_names())
def test_every_network_can_be_probed_with_another_class_count(name: str) -> None:
    size = 64 if name.endswith("_imagenet") else 32
    source, probe = create_network(name, num_classes=10, seed=1), create_network(name, num_classes=7, taps=())
    load_weights(probe, source.state_dict(), origin="ours", with_head=False)
    probe.freeze_backbone(trains_head=True)
    probe.train()
    before = {key: tensor.clone() for key, tensor in probe.state_dict().items()}
    optimizer = torch.optim.SGD([parameter for parameter in probe.parameters() if parameter.requires_grad], lr=0.1)
    F.cross_entropy(probe(torch.randn(4, 3, size, size)).logits, torch.arange(4)).backward()
    optimizer.step()
    changed = {key for key, tensor in probe.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {"backbone.head.weight", "backbone.head.bias"}
    kept = source.state_dict()
    assert all(torch.equal(before[key], kept[key]) for key in before if key not in changed)
