"""Evaluation: the backbone on unrotated images; the branches, rotated, on request only."""

import pytest
import torch

from hsakd.models import HierarchicalNet, create_network
from hsakd.training.evaluate import evaluate

IMAGES = torch.randint(256, (30, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(30) % 10
STATISTICS: dict[str, tuple[float, ...]] = {"mean": (0.3,), "std": (0.4,)}


@pytest.fixture
def network() -> HierarchicalNet:
    """A network in train mode whose statistics have moved."""
    network = create_network("resnet8_half", num_classes=10)
    with torch.no_grad():
        network(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    return network


def test_accuracies_are_those_of_a_loop_over_images_turns_and_branches(network: HierarchicalNet) -> None:
    got = evaluate(network, IMAGES, LABELS, **STATISTICS, with_branches=True, batch_size=7)
    assert network.training
    network.eval()
    top1 = top5 = 0
    joint, marginal = [0, 0, 0], [0, 0, 0]
    for image, label in zip(IMAGES, LABELS.tolist(), strict=True):
        pixels = ((image / 255 - 0.3) / 0.4).expand(3, -1, -1)
        for turn in range(4):
            with torch.no_grad():
                output = network(torch.rot90(pixels, turn, dims=(1, 2))[None])
            if turn == 0:
                order = output.logits[0].argsort(descending=True).tolist()
                top1, top5 = top1 + (order[0] == label), top5 + (label in order[:5])
            for index, logits in enumerate(output.joint_logits):
                joint[index] += int(logits.argmax()) == label * 4 + turn
                marginal[index] += int(logits.view(10, 4).sum(dim=1).argmax()) == label
    assert (got.top1, got.top5) == pytest.approx((top1 / 0.3, top5 / 0.3))
    assert got.branch_top1_joint == pytest.approx([count / 1.2 for count in joint])
    assert got.branch_top1_class == pytest.approx([count / 1.2 for count in marginal])


def test_without_a_request_the_backbone_sees_each_image_once_and_no_branch_runs(network: HierarchicalNet) -> None:
    rows, calls = [], []
    network.backbone.stem.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    for classifier in network.auxiliary_classifiers.values():
        classifier.register_forward_hook(lambda module, *_: calls.append(module))
    plain = evaluate(network, IMAGES, LABELS, **STATISTICS)
    assert (sum(rows), calls, plain.branch_top1_joint) == (30, [], [])
    with_branches = evaluate(network, IMAGES, LABELS, **STATISTICS, with_branches=True)
    assert (with_branches.top1, with_branches.top5) == (plain.top1, plain.top5)
    assert (sum(rows), len(calls)) == (30 + 120, 3)
