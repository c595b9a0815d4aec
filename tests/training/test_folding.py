"""The folded teacher says what the teacher says."""

import pytest
import torch
from torch import nn

from hsakd.data.views import Batch
from hsakd.models import HierarchicalNet, create_network
from hsakd.training.folding import fold_teacher
from hsakd.training.predictions import LivePredictions

ONE_OF_EACH_FAMILY = ["resnet8_half", "resnet8x4", "wrn_16_1", "vgg8_bn", "mobilenetv2_half", "shufflenet_v1", "shufflenet_v2"]


def trained_a_little(name: str) -> HierarchicalNet:
    """Return a network whose running statistics are not the initial ones."""
    network = create_network(name, num_classes=10)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(4, 3, 32, 32, generator=generator))
    return network.eval()


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
@torch.no_grad()
def test_a_folded_teacher_gives_the_same_logits(name: str) -> None:
    network = trained_a_little(name)
    rows = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    output = network(rows, branches=(1, 3))
    folded = fold_teacher(network, (1, 3))
    for expected, value in zip((output.logits, *output.joint_logits), folded(rows), strict=True):
        assert (value - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["timm/mobilenetv3_small_050", "timm/regnetx_002"])
@torch.no_grad()
def test_a_layer_of_others_that_does_more_than_normalize_is_not_folded_away(name: str) -> None:
    pytest.importorskip("timm")
    network = trained_a_little(name)
    rows = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    output = network(rows)
    for expected, value in zip((output.logits, *output.joint_logits), fold_teacher(network, network.taps)(rows), strict=True):
        assert (value - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.no_grad()
def test_a_teacher_whose_forward_cannot_be_traced_answers_unfolded() -> None:
    pytest.importorskip("timm")
    network = trained_a_little("timm/test_vit")
    rows = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    live = LivePredictions(network.train(), branches=network.taps, num_rotations=4)
    batch = Batch(indices=torch.zeros(1), views=torch.zeros(1), images=rows[:1], labels=torch.zeros(1))
    logits, joint_logits, *_ = live.predict(batch, rows)
    expected = network.eval()(rows)
    assert torch.equal(logits[0], expected.logits)
    assert all(torch.equal(ours[0], theirs) for ours, theirs in zip(joint_logits, expected.joint_logits, strict=True))


def test_only_pre_activations_keep_their_normalization() -> None:
    def left(name: str) -> int:
        return sum(isinstance(module, nn.BatchNorm2d) for module in fold_teacher(create_network(name, num_classes=10), (1, 2, 3)).modules())

    assert [left(name) for name in ("resnet8_half", "mobilenetv2_half", "shufflenet_v1", "shufflenet_v2")] == [0, 0, 0, 0]
    assert left("wrn_16_1") > 0


def test_branches_that_nobody_reads_are_not_even_kept() -> None:
    names = [name for name, _ in fold_teacher(create_network("resnet8_half", num_classes=10), (2,)).named_parameters()]
    assert any("auxiliary_classifiers.2" in name for name in names)
    assert not any("auxiliary_classifiers.1" in name or "auxiliary_classifiers.3" in name for name in names)


def test_the_float64_reference_is_not_folded_and_no_teacher_is_changed() -> None:
    teacher = create_network("resnet8_half", num_classes=10)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    live = LivePredictions(teacher.double(), branches=(1,), num_rotations=4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in live.answer.modules())
    LivePredictions(teacher.float(), branches=(1,), num_rotations=4)
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
