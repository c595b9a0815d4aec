"""Online mutual distillation (the extended version's HSSAKD): two networks trained together, each the other's teacher."""

import torch
from torch import Tensor

from hsakd.config import TrialConfig
from hsakd.data.views import Batch, rotate_rows
from hsakd.devices import autocasting
from hsakd.losses.objective import Objective, Step
from hsakd.models import HierarchicalNet, create_network

PEER_SEED_OFFSET = 1000  # a peer of the same architecture must start elsewhere


def attach_peer(network: HierarchicalNet, config: TrialConfig) -> None:
    """Give `network` the peer of `config`, initialized from a seed of its own, in the same precision.

    Raises:
        ValueError: the two have different numbers of auxiliary classifiers.
    """
    assert config.peer is not None
    peer = create_network(
        config.peer,
        num_classes=network.num_classes,
        num_rotations=network.num_rotations,
        taps=config.taps,
        seed=config.seed + PEER_SEED_OFFSET,
        initialization=config.numerics.initialization,
    )
    if len(peer.taps) != len(network.taps):
        raise ValueError(
            f"peer is {config.peer!r} with {len(peer.taps)} branches; accepted: one with {len(network.taps)}, as {network.name}"
        )
    network.peer = peer.to(network.backbone.head.weight.dtype)


def mutual_loss(
    network: HierarchicalNet, objective: Objective, batch: Batch, *, autocast: torch.dtype | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum of both networks' objectives, and of each term: the teacher of each is what the other says, without gradient.

    With terms task, ce_q, kl_q, kl_p this is the authors' published online loss: cross-entropies of both networks, final and branches,
    and T^2 KL in both directions, final and branches, over all rotations.
    """
    peer = network.peer
    assert peer is not None
    num_rotations = network.num_rotations if objective.is_rotated else 1
    rows = rotate_rows(batch.images, num_rotations)
    with autocasting(rows.device, autocast):
        outputs = [member(rows, branches=member.taps if objective.reads_branches else ()) for member in (network, peer)]
    shape = (len(batch.labels), num_rotations, -1)
    logits = [output.logits.view(shape) for output in outputs]
    joint_logits = [tuple(branch.view(shape) for branch in output.joint_logits) for output in outputs]
    results = [
        objective(
            Step(
                labels=batch.labels,
                student_logits=logits[own],
                student_joint_logits=joint_logits[own],
                teacher_logits=logits[other].detach(),
                teacher_joint_logits=tuple(branch.detach() for branch in joint_logits[other]),
                temperature=objective.temperature,
                branch_weights=objective.branch_weights,
            )
        )
        for own, other in ((0, 1), (1, 0))
    ]
    (first, first_values), (second, second_values) = results
    return first + second, {name: value + second_values[name] for name, value in first_values.items()}
