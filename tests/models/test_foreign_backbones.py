"""Backbones of CRD (RepDistiller), SSKD and torchvision: what was measured on their code holds for ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hsakd.models import create_network
from hsakd.models.authors import AUTHORS_FACTORIES
from hsakd.models.checkpoints import load_weights

GOLDEN = Path(__file__).parent / "golden"
COMPATIBILITY = json.loads((GOLDEN / "backbone_compat.json").read_text())
CASES = [(factory, source) for factory, sources in COMPATIBILITY["cifar"].items() for source in sources]
WRAPPERS = {"RepDistiller": ("model", "crd"), "SSKD": ("state_dict", "sskd")}
LARGE = ("resnet110", "resnet56", "ResNet", "vgg11", "vgg13", "vgg16", "vgg19", "32x4")


def marked(cases: list[tuple[str, str]]) -> list[Any]:
    return [pytest.param(*case, marks=pytest.mark.slow) if any(word in case[0] for word in LARGE) else case for case in cases]


@pytest.mark.parametrize(("factory", "source"), marked(CASES))
def test_a_foreign_backbone_file_loads_where_their_network_is_ours(
    factory: str, source: str, rule_weights: Any, our_names: Any, tmp_path: Path
) -> None:
    """Under their wrapper and their keys; where their network computes something else, only under its own name."""
    expected, (wrapper, origin) = COMPATIBILITY["cifar"][factory][source], WRAPPERS[source]
    weights = rule_weights(factory)
    renamed = expected.get("loadable_after_renaming", {})
    assert expected["same_keys_and_order"] == (not renamed)
    assert expected["shape_mismatch"] == []
    torch.save({"epoch": 240, wrapper: {renamed.get(key, key): value for key, value in weights.items()}}, tmp_path / "file.pth")
    is_same_network = expected["eval_logits_rel_diff_f64"] < 1e-12
    name = our_names[factory] if is_same_network else f"{our_names[factory]}_s2"
    network = create_network(name, num_classes=100)
    report = load_weights(network, tmp_path / "file.pth")
    assert (report.format, report.is_backbone_only, report.ignored) == (origin, True, ())
    assert len(report.loaded) == len(weights)
    if not is_same_network:
        with pytest.raises(ValueError, match="the stem's stride differs, no key and no shape does"):
            load_weights(create_network(our_names[factory], num_classes=100), tmp_path / "file.pth")


def test_the_two_strides_of_mobilenet_differ_as_much_as_measured(rule_weights: Any) -> None:
    weights = rule_weights("mobilenetV2")
    rows = torch.from_numpy(np.random.Generator(np.random.PCG64(7)).standard_normal((4, 3, 32, 32)).astype(np.float32)).double()
    logits = []
    for name, origin in (("mobilenetv2_half", "hsakd"), ("mobilenetv2_half_s2", "sskd")):
        network = create_network(name, num_classes=100, taps=())
        load_weights(network, weights, origin=origin)  # type: ignore[arg-type]
        with torch.no_grad():
            logits.append(network.double().eval()(rows).logits)
    difference = float((logits[0] - logits[1]).norm() / logits[0].norm())
    expected = COMPATIBILITY["cifar"]["mobilenetV2"]["SSKD"]["eval_logits_rel_diff_f64"]
    assert difference == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_torchvisions_networks_have_the_measured_keys_and_our_logits(
    name: str, golden_keys: Any, rule_weights: Any, tmp_path: Path
) -> None:
    import torchvision

    theirs = getattr(torchvision.models, name)(weights=None)
    factory = f"{name}_imagenet"
    assert [[key, list(value.shape)] for key, value in theirs.state_dict().items()] == [row[:2] for row in golden_keys[factory]]
    theirs.load_state_dict(rule_weights(factory))
    torch.save(theirs.state_dict(), tmp_path / f"{name}.pth")
    network = create_network(factory, num_classes=1000)
    report = load_weights(network, tmp_path / f"{name}.pth")
    assert (report.format, report.is_backbone_only) == ("torchvision", True)
    rows = torch.from_numpy(np.random.Generator(np.random.PCG64(7)).standard_normal((1, 3, 96, 96)))
    with torch.no_grad():
        ours, expected = network.double().eval()(rows).logits, theirs.double().eval()(rows)
    assert float((ours - expected).norm() / expected.norm()) < 1e-12


def test_the_other_names_cover_every_network_that_was_compared(our_names: Any) -> None:
    assert {factory for factory, _ in CASES} <= set(our_names)
    assert set(COMPATIBILITY["cifar"]) - set(AUTHORS_FACTORIES.values()) <= set(AUTHORS_FACTORIES) | set(our_names)


@pytest.mark.parametrize("height", [64, *(pytest.param(height, marks=pytest.mark.slow) for height in (32, 48, 66))])
def test_vgg_pools_a_fourth_time_where_images_are_64_pixels_high_but_not_in_branches(height: int, rule_weights: Any) -> None:
    """Against a VGG-8 in functions only, under the authors' keys."""
    state = {key: value.double() for key, value in rule_weights("vgg8_bn_aux").items()}
    network = create_network("vgg8_bn", num_classes=100)
    load_weights(network, rule_weights("vgg8_bn_aux"))
    rows = torch.from_numpy(np.random.Generator(np.random.PCG64(height)).standard_normal((2, 3, height, 64)))

    def group(maps: torch.Tensor, path: str) -> torch.Tensor:
        maps = nn.functional.conv2d(maps, state[f"{path}.0.weight"], state[f"{path}.0.bias"], padding=1)
        mean, variance = state[f"{path}.1.running_mean"], state[f"{path}.1.running_var"]
        return nn.functional.batch_norm(maps, mean, variance, state[f"{path}.1.weight"], state[f"{path}.1.bias"]).relu()

    def head(maps: torch.Tensor, path: str) -> torch.Tensor:
        return nn.functional.linear(maps.mean(dim=(2, 3)), state[f"{path}.weight"], state[f"{path}.bias"])

    maps, taps = rows, []
    for number in range(5):
        if number in (1, 2, 3) or (number == 4 and height == 64):
            maps = nn.functional.max_pool2d(maps, 2)
        maps = group(maps, f"backbone.block{number}")
        taps.append(maps)
    branch = taps[2]  # branch 3: pool, group 3, group 4
    branch = group(nn.functional.max_pool2d(branch, 2), "auxiliary_classifier.block_extractor3.1")
    branch = group(branch, "auxiliary_classifier.block_extractor3.3")
    with torch.no_grad():
        output = network.double().eval()(rows)
    torch.testing.assert_close(output.logits, head(maps, "backbone.classifier"), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(output.joint_logits[2], head(branch, "auxiliary_classifier.fc3"), rtol=1e-10, atol=1e-10)
