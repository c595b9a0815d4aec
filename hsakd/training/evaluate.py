"""Accuracy of a trained network: one evaluate for every trial."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from hsakd.data.datasets import evaluation_batch_size
from hsakd.data.views import normalize, rotate_rows
from hsakd.models import HierarchicalNet
from hsakd.training.team import SOLO, Team


class Accuracy(NamedTuple):
    """Per cent (0-100). `top5` is None with fewer than 6 classes.

    The branch values are over all M rotations: `branch_top1_joint` of the joint label k, `branch_top1_class` of the class marginal
    (the M joint logits of a class summed, as the authors report it); empty unless asked for. `num_not_finite` counts the rows, rotated
    ones too, with NaN or infinity among their logits.
    """

    top1: float
    top5: float | None
    branch_top1_joint: list[float]
    branch_top1_class: list[float]
    num_not_finite: int


def evaluate(
    network: HierarchicalNet,
    images: Tensor,
    labels: Tensor,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    with_branches: bool = False,
    batch_size: int | None = None,
) -> Accuracy:
    """Evaluate on uint8 `images` [n, C, H, W] with `labels` [n], as `evaluate_batches`; no images (n = 0) raise ValueError."""
    if len(labels) == 0:
        raise ValueError("evaluate: no images")
    batch_size = batch_size or evaluation_batch_size(images.device)
    batches = zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
    return evaluate_batches(network, batches, num_images=len(labels), mean=mean, std=std, with_branches=with_branches)


@torch.inference_mode()
def evaluate_batches(
    network: HierarchicalNet,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    num_images: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    with_branches: bool = False,
    team: Team = SOLO,
) -> Accuracy:
    """Evaluate in eval mode on batches of uint8 images [B, C, H, W] and labels [B]; the network's mode is restored.

    The backbone sees unrotated images only, unless `with_branches` asks for the auxiliary classifiers' rotated accuracies too. The ranks
    of a team evaluate different batches; `num_images` are those of all, and the accuracy is.
    """
    was_training = network.training
    network.eval()
    parameter = next(network.parameters())
    num_rotations, num_classes = network.num_rotations, network.num_classes
    branches = network.taps if with_branches else ()
    device = parameter.device
    correct1 = torch.zeros((), dtype=torch.int64, device=device)
    correct5 = torch.zeros_like(correct1)
    joint_correct = torch.zeros(len(branches), dtype=torch.int64, device=device)
    class_correct = torch.zeros_like(joint_correct)
    not_finite = torch.zeros_like(correct1)
    for batch_images, batch_labels in batches:
        rows = normalize(batch_images, mean, std, parameter.dtype)
        if branches:
            rows = rotate_rows(rows, num_rotations)
        output = network(rows, branches=branches)
        logits = output.logits[::num_rotations] if branches else output.logits
        ranked = logits.topk(min(5, num_classes), dim=1).indices == batch_labels[:, None]
        correct1 += ranked[:, 0].sum()
        correct5 += ranked.sum()
        not_finite += (~torch.cat((output.logits, *output.joint_logits), dim=1).isfinite().all(dim=1)).sum()
        if branches:
            rotated_labels = batch_labels.repeat_interleave(num_rotations)
            turns = torch.arange(num_rotations, device=device).repeat(len(batch_labels))
            for index, joint in enumerate(output.joint_logits):
                joint_correct[index] += (joint.argmax(dim=1) == rotated_labels * num_rotations + turns).sum()
                class_logits = joint.view(-1, num_classes, num_rotations).sum(dim=2)
                class_correct[index] += (class_logits.argmax(dim=1) == rotated_labels).sum()
    network.train(was_training)
    team.sum_(correct1, correct5, joint_correct, class_correct, not_finite)
    scale = 100.0 / num_images
    return Accuracy(
        top1=correct1.item() * scale,
        top5=correct5.item() * scale if num_classes > 5 else None,
        branch_top1_joint=[value * scale / num_rotations for value in joint_correct.tolist()],
        branch_top1_class=[value * scale / num_rotations for value in class_correct.tolist()],
        num_not_finite=int(not_finite.item()),
    )
