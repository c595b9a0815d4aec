"""What holds for every registered network."""

import pytest
import torch
from torch import nn

from hsakd.models import HierarchicalNet, create_network, network_names
from hsakd.models.__main__ import facts_of
from hsakd.network_table import network_table

SMALL = [
    "wrn_16_1",
    "resnet8",
    "resnet8_half",
    "resnet8x4",
    "vgg8_bn",
    "mobilenetv2_half",
    "shufflenet_v1",
    "shufflenet_v2",
    "resnet18_imagenet",
]
QUICK = {
    "wrn_16_1",
    "wrn_16_2",
    "resnet8",
    "resnet8_half",
    "resnet20",
    "resnet8x4",
    "vgg8",
    "vgg8_bn",
    "mobilenetv2_half",
    "mobilenetv2_half_s2",
} | {
    "shufflenet_v1",
    "shufflenet_v2",
    "resnet18_imagenet",
}


@pytest.mark.parametrize("name", network_names())
def test_shapes_follow_from_size_classes_and_rotations(name: str) -> None:
    for image_size, num_classes, num_rotations in ((16, 1, 4), (32, 10, 2), (64, 200, 4)):
        network = HierarchicalNet.on_meta(name, num_classes=num_classes, num_rotations=num_rotations)
        output = network(torch.empty(3, 3, image_size, image_size, device="meta"))
        assert output.logits.shape == (3, num_classes)
        assert [logits.shape for logits in output.joint_logits] == [(3, num_rotations * num_classes)] * network.num_branches
        assert len(output.features) == network.num_branches


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in network_names()])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    network = create_network(name, num_classes=3, num_rotations=2)
    output = network.train()(torch.randn(4, 3, 32, 32))
    (output.logits.square().sum() + sum(logits.square().sum() for logits in output.joint_logits)).backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", SMALL)
def test_initial_weights_depend_on_network_module_and_seed_only(name: str) -> None:
    whole = create_network(name, num_classes=5, seed=3).state_dict()
    torch.manual_seed(99)
    partial = create_network(name, num_classes=5, seed=3, taps=(2,)).state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in partial.items())
    other = create_network(name, num_classes=5, seed=4).state_dict()
    assert not torch.equal(other["backbone.head.weight"], whole["backbone.head.weight"])


@pytest.mark.parametrize("name", SMALL)
def test_the_authors_initialization_has_the_measured_distribution(name: str) -> None:
    network = create_network(name, num_classes=100, initialization="authors")
    rules = {"backbone": network.spec.backbone_init, "auxiliary_classifiers": network.spec.branch_init}
    for path, module in network.named_modules():
        rule = rules.get(path.split(".")[0])
        if isinstance(module, nn.Conv2d) and rule is not None and module.weight.numel() > 2000:
            fan_in, fan_out = module.weight[0].numel(), module.weight[0, 0].numel() * module.out_channels
            expected = (2 / fan_out) ** 0.5 if rule.conv == "he" else (1 / (3 * fan_in)) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.1), path
        if isinstance(module, nn.Linear) and rule is not None:
            expected = 0.01 if rule.linear == "normal" else (1 / (3 * module.in_features)) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.1), path


@pytest.mark.parametrize("name", SMALL)
def test_branches_can_be_chosen_at_build_and_at_call(name: str) -> None:
    rows = torch.randn(2, 3, 32, 32)
    whole = create_network(name, num_classes=4).eval()
    part = create_network(name, num_classes=4, taps=(1, 3)).eval()
    with torch.no_grad():
        expected, got, chosen = whole(rows), part(rows), part(rows, branches=(3,))
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(got.joint_logits[1], expected.joint_logits[2])
    assert len(chosen.joint_logits) == 1
    assert torch.equal(chosen.joint_logits[0], expected.joint_logits[2])
    with pytest.raises(ValueError, match="taps is"):
        create_network(name, num_classes=4, taps=(9,))


@pytest.mark.parametrize("name", SMALL)
def test_a_frozen_backbone_stays_in_eval_mode_and_receives_nothing(name: str) -> None:
    network = create_network(name, num_classes=4)
    network.freeze_backbone()
    network.train()
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    sum(logits.square().sum() for logits in network(torch.randn(4, 3, 32, 32)).joint_logits).backward()
    assert not network.backbone.training
    assert network.auxiliary_classifiers.training
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.backbone.state_dict().items())


@pytest.mark.parametrize("name", ["wrn_16_1", "shufflenet_v2", "mobilenetv2_half"])
def test_networks_can_be_exported(name: str) -> None:
    network = create_network(name, num_classes=4).eval()
    rows = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(network, (rows,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(rows).logits, network(rows).logits)


def test_an_unknown_network_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match=r"unknown network 'resnet9'.*wrn_40_2"):
        create_network("resnet9", num_classes=10)


def test_the_packaged_table_equals_what_is_measured() -> None:
    assert {name: facts_of(name) for name in network_names()} == network_table()
