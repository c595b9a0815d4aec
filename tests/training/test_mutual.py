"""Online mutual distillation against a plainly written step of the published one; its records, its resumption, its row."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hsakd.config import DataConfig, NumericsConfig, OptimConfig, TrialConfig
from hsakd.data import load_dataset
from hsakd.data.batches import gather_batch
from hsakd.losses import Objective
from hsakd.models import HierarchicalNet, create_network
from hsakd.models.checkpoints import load_weights
from hsakd.store import ResultStore
from hsakd.training.evaluate import evaluate
from hsakd.training.mutual import attach_peer
from hsakd.training.step import RunningLosses, make_optimizer, training_step
from hsakd.training.trial import PEER_WEIGHTS_FILE, RunContext, TrialInterrupted, run_trial
from sweeps.cli import SweepOptions
from sweeps.presets import ONLINE
from sweeps.schedule import cost_of
from sweeps.worklist import ONLINE_OBJECTIVE, known_work

DATA = DataConfig(dataset="digits", train_subset=100)
OPTIM = OptimConfig(epochs=2, batch_size=32, milestones=(1,))
CONFIG = TrialConfig(network="resnet8_half", peer="wrn_16_1", data=DATA, optim=OPTIM, objective=ONLINE_OBJECTIVE)


def together(config: TrialConfig) -> tuple[HierarchicalNet, HierarchicalNet]:
    network = create_network(config.network, num_classes=10, seed=config.seed)
    attach_peer(network, config)
    assert network.peer is not None
    return network, network.peer


def published_loss(first: HierarchicalNet, second: HierarchicalNet, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The online script's loss, row by row of its description, with nothing of ours but the networks."""
    rows, joint = [], []
    for image, label in zip(images, labels.tolist(), strict=True):
        for turns in range(4):
            rows.append(torch.rot90(image, turns, (1, 2)))
            joint.append(4 * label + turns)
    stacked, joint_labels = torch.stack(rows), torch.tensor(joint)
    one, two = first(stacked), second(stacked)
    total = F.cross_entropy(one.logits[0::4], labels) + F.cross_entropy(two.logits[0::4], labels)
    for output in (one, two):
        for branch in output.joint_logits:
            total = total + F.cross_entropy(branch, joint_labels)
    for student, teacher in ((one, two), (two, one)):
        heads = [(student.logits, teacher.logits), *zip(student.joint_logits, teacher.joint_logits, strict=True)]
        for own, other in heads:
            target = F.softmax(other.detach() / 3, dim=1)
            total = total + 9 * F.kl_div(F.log_softmax(own / 3, dim=1), target, reduction="batchmean")
    return total


def test_two_steps_are_the_published_ones() -> None:
    data = load_dataset(DATA)
    network, peer = together(CONFIG)
    network.double()
    theirs = [copy.deepcopy(member) for member in (network, peer)]
    theirs[0].peer = None
    both = torch.nn.ModuleList(theirs)
    reference = torch.optim.SGD(both.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    optimizer, losses = make_optimizer(network, OPTIM), RunningLosses(("task", "ce_q", "kl_q", "kl_p"), torch.device("cpu"))
    objective = Objective.from_config(ONLINE_OBJECTIVE)
    totals = []
    for step in range(2):
        batch = gather_batch(data, torch.arange(8) + 8 * step, torch.arange(8), dtype=torch.float64)
        loss = published_loss(theirs[0], theirs[1], batch.images, batch.labels)
        reference.zero_grad()
        loss.backward()
        reference.step()
        totals.append(loss.item())
        training_step(network.train(), objective, optimizer, batch, None, losses, step=step, learning_rate=0.05)
    assert losses.sums[0].item() == pytest.approx(sum(totals), rel=1e-10)
    assert losses.sums[1:].sum().item() == pytest.approx(sum(totals), rel=1e-10)
    for ours, expected in zip((network, peer), theirs, strict=True):
        found = {name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("peer.")}
        for name, tensor in expected.state_dict().items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-8, atol=1e-10, msg=name)


def test_the_record_holds_both_accuracies_and_the_files_both_networks(tmp_path: Path) -> None:
    store, data = ResultStore(tmp_path), load_dataset(DATA)
    record = run_trial(CONFIG, RunContext(store=store))
    assert (record.status, record.role, record.network, record.peer_network) == ("complete", "student", "resnet8_half", "wrn_16_1")
    folder = store.checkpoint_dir(CONFIG.trial_id)
    for path, name, top1 in (
        (store.weights_path(CONFIG.trial_id), "resnet8_half", record.top1_last),
        (folder / PEER_WEIGHTS_FILE, "wrn_16_1", record.peer_top1_last),
    ):
        network = create_network(name, num_classes=10)
        load_weights(network, path)
        assert evaluate(network, data.test_images, data.test_labels, mean=data.mean, std=data.std).top1 == top1
    epochs = store.read_epochs(CONFIG.trial_id)
    assert epochs[-1].top1_test_peer == record.peer_top1_last
    assert record.peer_top1_best_test == max(row.top1_test_peer or 0 for row in epochs)
    assert len(record.branch_top1_joint) == 3


def test_a_stopped_pair_goes_on_bit_identically_both_networks(tmp_path: Path) -> None:
    run_trial(CONFIG, RunContext(store=ResultStore(tmp_path / "undisturbed")))
    calls = iter(range(1000))
    context = RunContext(store=ResultStore(tmp_path / "stopped"))
    with pytest.raises(TrialInterrupted, match="stopped at epoch 1, step 2"):
        run_trial(CONFIG, context, should_stop=lambda: next(calls) >= 6)
    run_trial(CONFIG, context)
    for name in ("weights.safetensors", PEER_WEIGHTS_FILE):
        one, two = (load_file(tmp_path / folder / "checkpoints" / CONFIG.trial_id / name) for folder in ("undisturbed", "stopped"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_network_can_be_its_own_kind_of_peer_but_starts_elsewhere() -> None:
    network, peer = together(replace(CONFIG, peer="resnet8_half"))
    assert not torch.equal(network.backbone.head.weight, peer.backbone.head.weight)


def test_a_peer_with_other_branches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"peer is 'mobilenetv2_half' with 4 branches; accepted: one with 3, as resnet8_half"):
        run_trial(replace(CONFIG, peer="mobilenetv2_half"), RunContext(store=ResultStore(tmp_path)))
    with pytest.raises(ValueError, match="peer is 'resnet8'; accepted: None where there is a teacher"):
        replace(CONFIG, peer="resnet8", teacher=replace(CONFIG, peer=None))
    with pytest.raises(ValueError, match=r"^teacher is None; accepted: a trial \(or a peer\) with the terms task\+"):
        run_trial(replace(CONFIG, peer=None), RunContext(store=ResultStore(tmp_path)))


def test_the_row_is_asked_for_by_name_and_no_default(tmp_path: Path) -> None:
    default = SweepOptions(out=tmp_path / "new", preset="digits")
    assert ONLINE not in {entry.method for entry, _ in known_work(default)}
    lines = known_work(replace(default, methods=(ONLINE,)))
    assert [(entry.method, config.network, config.peer, config.seed) for entry, config in lines[:2]] == [
        (ONLINE, "resnet8_half", "resnet14", 0),
        (ONLINE, "resnet8_half", "resnet14", 1),
    ]
    assert all(config.requirements() == () for _, config in lines)
    alone = replace(lines[0][1], peer=None)
    assert cost_of(lines[0][1]) > 2 * cost_of(alone)
    assert NumericsConfig() == lines[0][1].numerics
