"""What holds for every registered network."""

import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hsakd.models import HierarchicalNet, create_network, network_names
from hsakd.models.backbone import PartInit
from hsakd.models.facts import facts_of
from hsakd.models.shufflenet import shuffle_channels
from hsakd.network_table import network_table

ROOT = Path(__file__).parents[2]

SMALL = ["wrn_16_1", "resnet8_half", "vgg8_bn", "mobilenetv2_half", "shufflenet_v1", "shufflenet_v2"]
"""One network of each family that is quick enough for the fast tests."""

SMALLEST = ["wrn_16_1", "resnet8_half", "vgg8_bn"]


def every_network(quick: list[str]) -> list[Any]:
    """All registered networks, those not in `quick` marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in network_names()]


@pytest.mark.parametrize("name", every_network(SMALLEST))
def test_shapes_follow_from_size_classes_and_rotations(name: str) -> None:
    for image_size, num_classes, num_rotations in ((16, 1, 4), (32, 10, 2), (64, 200, 4)):
        network = HierarchicalNet.on_meta(name, num_classes=num_classes, num_rotations=num_rotations)
        output = network(torch.empty(3, 3, image_size, image_size, device="meta"))
        assert output.logits.shape == (3, num_classes)
        assert [logits.shape for logits in output.joint_logits] == [(3, num_rotations * num_classes)] * network.num_branches
        assert len(output.features) == network.num_branches


@pytest.mark.parametrize("name", every_network(SMALLEST))
def test_gradients_reach_every_parameter_they_should_and_no_other(name: str) -> None:
    """On the meta device: what the graph connects. A joint teacher's branches reach the backbone, a frozen one's don't."""
    rows = torch.empty(2, 3, 32, 32, device="meta")

    def without_gradient(network: HierarchicalNet, *, of_logits: bool, of_branches: bool) -> set[str]:
        output = network.train()(rows)
        losses = ([output.logits.sum()] if of_logits else []) + [logits.sum() for logits in output.joint_logits if of_branches]
        torch.stack(losses).sum().backward()
        return {key for key, parameter in network.named_parameters() if parameter.grad is None}

    def build() -> HierarchicalNet:
        return HierarchicalNet.on_meta(name, num_classes=3, num_rotations=2)

    def keys_of(part: str) -> set[str]:
        return {key for key, _ in build().named_parameters() if key.startswith(part)}

    assert without_gradient(build(), of_logits=True, of_branches=True) == set()
    assert without_gradient(build(), of_logits=True, of_branches=False) == keys_of("auxiliary_classifiers.")
    assert without_gradient(build(), of_logits=False, of_branches=True) == keys_of("backbone.head.") | keys_of("backbone.neck.")
    frozen = build()
    frozen.freeze_backbone()
    assert without_gradient(frozen, of_logits=False, of_branches=True) == keys_of("backbone.")


@pytest.mark.parametrize("name", every_network(SMALLEST))
def test_subsets_of_taps_have_the_same_modules(name: str) -> None:
    whole = HierarchicalNet.on_meta(name, num_classes=3)
    shapes = {key: value.shape for key, value in whole.state_dict().items()}
    stages = range(1, whole.num_branches + 1)
    for taps in (taps for count in range(whole.num_branches) for taps in combinations(stages, count)):
        part = HierarchicalNet.on_meta(name, num_classes=3, taps=taps).state_dict()
        kept = tuple(f"auxiliary_classifiers.{tap}." for tap in taps)
        wanted = {key for key in shapes if key.startswith(("backbone.", *kept))}
        assert {key: value.shape for key, value in part.items()} == {key: shapes[key] for key in wanted}


@pytest.mark.parametrize("name", SMALL)
def test_real_gradients_are_finite_and_not_zero(name: str) -> None:
    network = create_network(name, num_classes=3, num_rotations=2)
    output = network.train()(torch.randn(4, 3, 32, 32))
    (output.logits.square().sum() + sum(logits.square().sum() for logits in output.joint_logits)).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    assert all(parameter.grad.any() for key, parameter in network.named_parameters() if key.endswith("head.weight"))


@pytest.mark.parametrize("name", SMALL)
def test_a_state_dict_makes_another_network_the_same(name: str) -> None:
    source, copy = (create_network(name, num_classes=3, seed=seed) for seed in (1, 2))
    copy.load_state_dict(source.state_dict())
    rows = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected, got = source.eval()(rows), copy.eval()(rows)
    assert torch.equal(got.logits, expected.logits)
    assert all(map(torch.equal, got.joint_logits, expected.joint_logits))


@pytest.mark.parametrize("name", every_network(SMALL))
def test_a_state_dict_is_read_back_to_the_last_bit(name: str) -> None:
    source, copy = (HierarchicalNet.on_meta(name, num_classes=3).to_empty(device="cpu") for _ in range(2))
    for number, tensor in enumerate((*source.parameters(), *source.buffers())):
        tensor.data.fill_(number)
    copy.load_state_dict(source.state_dict())
    state = copy.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in source.state_dict().items())
    assert list(state) == list(source.state_dict())


@pytest.mark.parametrize("name", SMALL)
def test_initial_weights_depend_on_network_module_and_seed_only(name: str) -> None:
    whole = create_network(name, num_classes=5, seed=3).state_dict()
    torch.manual_seed(99)
    partial = create_network(name, num_classes=5, seed=3, taps=(2,)).state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in partial.items())
    other = create_network(name, num_classes=5, seed=4, taps=()).state_dict()
    assert not torch.equal(other["backbone.head.weight"], whole["backbone.head.weight"])


@pytest.mark.parametrize(
    "name", [*SMALL, pytest.param("resnet18_imagenet", marks=pytest.mark.slow), pytest.param("resnet50", marks=pytest.mark.slow)]
)
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
            assert bool(module.bias.detach().any()) == (not rule.zero_bias), path


def test_the_families_initial_rules_are_those_measured() -> None:
    """`upstream.md`: He-normal and zeroed biases, or not, by accident; N(0, 0.01) heads in MobileNetV2 and VGG's backbone."""
    he, he_zero, default = PartInit(conv="he"), PartInit(conv="he", zero_bias=True), PartInit(conv="torch")
    normal = PartInit(conv="he", linear="normal", zero_bias=True)
    measured = {
        "wrn_40_2": (he_zero, he_zero),
        "resnet56": (he, he_zero),
        "resnet50": (he, he),
        "resnet18_imagenet": (he, he),
        "mobilenetv2_half": (normal, normal),
        "vgg13_bn": (normal, default),
        "shufflenet_v1": (default, he_zero),
        "shufflenet_v2": (default, default),
    }
    for name, rules in measured.items():
        spec = HierarchicalNet.on_meta(name, num_classes=2).spec
        assert (spec.backbone_init, spec.branch_init) == rules, name


@pytest.mark.parametrize("name", SMALL)
def test_our_initialization_is_one_rule_for_all(name: str) -> None:
    network = create_network(name, num_classes=100)
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.weight[0, 0].numel() * module.out_channels
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), path
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is None or not module.bias.any(), path
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), path
            assert not module.bias.any(), path


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
    for taps in ((9,), (0,), (2, 1), (1, 1)):
        with pytest.raises(ValueError, match="taps is"):
            create_network(name, num_classes=4, taps=taps)


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


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_shuffled_channels_are_interleaved_in_the_memory_format_they_had(groups: int, memory_format: torch.memory_format) -> None:
    maps = torch.randn(2, 12, 4, 5).contiguous(memory_format=memory_format).requires_grad_()
    shuffled = shuffle_channels(maps, groups)
    order = [first + member * (12 // groups) for first in range(12 // groups) for member in range(groups)]
    assert torch.equal(shuffled, maps[:, order])
    assert shuffled.is_contiguous(memory_format=memory_format)
    (gradient,) = torch.autograd.grad(shuffled, maps, shuffled.detach())
    assert torch.equal(gradient, maps)


@pytest.mark.parametrize("name", SMALL)
def test_memory_formats_give_the_same_step_and_features_are_not_overwritten(name: str) -> None:
    rows = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients: list[list[torch.Tensor]] = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        network = create_network(name, num_classes=4).double().to(memory_format=memory_format)
        features = network.backbone.stage_maps(rows)
        kept = [maps.detach().clone() for maps in features]
        joint_logits = [classifier(maps) for classifier, maps in zip(network.auxiliary_classifiers.values(), features, strict=True)]
        logits = network.backbone.classify(features[-1])
        assert all(torch.equal(maps, before) for maps, before in zip(features, kept, strict=True))
        sum(values.square().sum() for values in (logits, *joint_logits)).backward()
        gradients.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    scale = max(float(gradient.abs().max()) for gradient in gradients[0])  # some gradients are 0 but for rounding (biases before a BN)
    for contiguous, last in zip(*gradients, strict=True):
        torch.testing.assert_close(contiguous, last, rtol=1e-8, atol=1e-10 * scale)


@pytest.mark.parametrize("name", every_network(["resnet8_half", "vgg8_bn"]))
def test_networks_can_be_exported(name: str) -> None:
    network = create_network(name, num_classes=4).eval()
    rows = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        exported = torch.export.export(network, (rows,)).module()
        expected, got = network(rows), exported(rows)
    torch.testing.assert_close(got.logits, expected.logits)
    torch.testing.assert_close(got.joint_logits, expected.joint_logits)


def test_an_unknown_network_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match=r"unknown network 'resnet9'.*wrn_40_2"):
        create_network("resnet9", num_classes=10)


@pytest.mark.parametrize("name", every_network(SMALL))
def test_the_packaged_table_equals_what_is_measured(name: str) -> None:
    assert facts_of(name) == network_table()[name]


def test_the_packaged_table_has_every_network_and_no_other() -> None:
    assert sorted(network_table()) == network_names()


def test_the_module_lists_every_network_with_its_numbers() -> None:
    line = [sys.executable, "-m", "hsakd.models"]
    result = subprocess.run(line, capture_output=True, text=True, timeout=900, check=True, cwd=ROOT)
    rows = {cells[1].strip(): cells for line in result.stdout.splitlines() if len(cells := line.replace("┃", "│").split("│")) > 6}
    for name, facts in network_table().items():
        cells = [cell.strip() for cell in rows[name]]
        assert cells[2:5] == [f"{facts.parameters:,}", f"{facts.multi_adds / 1e6:,.1f} M", str(facts.num_branches)]
        assert cells[6] == ", ".join("x".join(map(str, shape)) for shape in facts.tap_shapes)
