"""Our networks against numbers measured on the authors' code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hsakd.losses import student_loss, teacher_loss
from hsakd.models import HierarchicalNet, count_multi_adds, count_parameters
from hsakd.models.authors import authors_keys

GOLDEN = Path(__file__).parent / "golden"
FORWARD = np.load(GOLDEN / "forward.npz")
FORWARD_NETWORKS = sorted({key.split("/")[0] for key in FORWARD.files})
STEPS = json.loads((GOLDEN / "step.json").read_text())
PRECISIONS = {"f64": torch.float64, "f32": torch.float32}


def test_parameters_and_multi_adds_of_every_published_network_are_exact(architectures: Any, our_names: Any) -> None:
    compared = 0
    for factory, expected in architectures.items():
        if expected["kind"] == "pair":
            continue
        is_hierarchical = expected["kind"] == "aux"
        network = HierarchicalNet.on_meta(
            our_names[factory.removesuffix("_aux")], num_classes=expected["num_classes"], taps=None if is_hierarchical else ()
        )
        parameters, multi_adds = count_parameters(network), count_multi_adds(network, expected["input"][-1])
        assert (parameters.total, multi_adds.total) == (expected["params_total"], expected["multi_adds_total"]), factory
        if is_hierarchical:
            assert list(parameters.branches) == expected["params_per_branch"], factory
            assert list(multi_adds.branches) == expected["multi_adds_per_branch"], factory
            assert multi_adds.backbone == expected["multi_adds_backbone"], factory
        compared += 1
    assert compared == 53


def test_keys_map_onto_the_authors_one_to_one_in_their_order_with_their_shapes(
    architectures: Any, golden_keys: Any, our_names: Any
) -> None:
    for factory, expected in architectures.items():
        if expected["kind"] == "pair":
            continue
        is_hierarchical = expected["kind"] == "aux"
        network = HierarchicalNet.on_meta(
            our_names[factory.removesuffix("_aux")], num_classes=expected["num_classes"], taps=None if is_hierarchical else ()
        )
        state = network.state_dict()
        got = [
            [theirs if is_hierarchical else theirs.removeprefix("backbone."), list(state[ours].shape)]
            for ours, theirs in authors_keys(network).items()
        ]
        assert got == [row[:2] for row in golden_keys[factory]], factory


def close(value: Any, expected: Any, tolerance: float) -> None:
    """Compare relative to the expected vector's L2 norm."""
    value, expected = np.asarray(value, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert value.shape == expected.shape
    assert np.linalg.norm(value - expected) <= tolerance * np.linalg.norm(expected)


def norms(tensors: list[torch.Tensor]) -> list[float]:
    return [float(tensor.detach().double().norm()) for tensor in tensors]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("factory", FORWARD_NETWORKS)
def test_forwards_match_the_authors_networks(factory: str, precision: str, rule_network: Any) -> None:
    network = rule_network(factory, PRECISIONS[precision])
    shape = tuple(FORWARD[f"{factory}/input_shape"])
    rows = np.random.Generator(np.random.PCG64(7)).standard_normal(shape).astype(np.float32)
    rows = torch.from_numpy(rows).to(PRECISIONS[precision])
    eval_tolerance, train_tolerance = (1e-10, 1e-10) if precision == "f64" else (1e-5, 2e-4)

    def golden(name: str) -> Any:
        return FORWARD[f"{factory}/{precision}/{name}"]

    with torch.no_grad():
        output = network.eval()(rows)
    close(output.logits[0], golden("backbone_sample0"), eval_tolerance)
    for tap, joint_logits in enumerate(output.joint_logits, start=1):
        close(joint_logits[0], golden(f"aux{tap}_sample0"), eval_tolerance)
    close(norms([output.logits, *output.joint_logits]), golden("logits_l2"), eval_tolerance)
    close(norms(list(output.features)), golden("feat_l2"), eval_tolerance)
    with torch.no_grad():
        output = network.train()(rows)
    close(norms([output.logits, *output.joint_logits]), golden("train_logits_l2"), train_tolerance)
    for kind in ("mean", "var"):
        buffers = [value.reshape(-1) for key, value in network.state_dict().items() if key.endswith(f"running_{kind}")]
        close(norms([torch.cat(buffers)])[0], golden(f"train_running_{kind}_l2"), train_tolerance)


def step_batch() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(np.random.Generator(np.random.PCG64(11)).standard_normal((8, 3, 32, 32)).astype(np.float32)).double()
    rows = torch.stack([torch.rot90(images[index // 4], index % 4, (1, 2)) for index in range(32)])
    return rows, torch.tensor(STEPS["settings"]["labels"])


def calibrate(network: HierarchicalNet, rows: torch.Tensor) -> None:
    """Make this batch's statistics the running ones."""
    norm_layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in norm_layers:
        layer.momentum = 1.0
    with torch.no_grad():
        network.train()(rows)
    for layer in norm_layers:
        layer.momentum = 0.1


def one_step(network: HierarchicalNet) -> torch.optim.SGD:
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trainable, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def gradient_norm(network: HierarchicalNet) -> float:
    return float(sum(float((p.grad**2).sum()) for p in network.parameters() if p.grad is not None) ** 0.5)


def parameter_norm(network: HierarchicalNet) -> float:
    return float(sum(float((p.detach() ** 2).sum()) for p in network.parameters()) ** 0.5)


@pytest.mark.parametrize("mode", ["raw", "calibrated"])
@pytest.mark.parametrize("pair", list(STEPS["student"]))
def test_a_student_step_matches_the_authors(pair: str, mode: str, rule_network: Any) -> None:
    expected = STEPS["student"][pair][mode]["f64"]
    rows, labels = step_batch()
    teacher, student = (rule_network(factory, torch.float64) for factory in pair.split("->"))
    if mode == "calibrated":
        calibrate(teacher, rows)
    with torch.no_grad():
        teacher_output = teacher.eval()(rows)
    optimizer = one_step(student)
    total, terms = student_loss(student.train()(rows), teacher_output, labels, temperature=3.0)
    total.backward()
    close(float(total.detach()), expected["total"], 1e-9)
    close(float(terms["task"].detach()), expected["loss_cls"], 1e-9)
    close(float(terms["kl_q"].detach()), sum(expected["kl_aux"]), 1e-9)
    close(float(terms["kl_p"].detach()), expected["kl_backbone"], 1e-9)
    close(gradient_norm(student), expected["grad_norm"]["global"], 1e-8)
    optimizer.step()
    close(parameter_norm(student), expected["param_l2_after_step"], 1e-8)
    with torch.no_grad():
        total, _ = student_loss(student(rows), teacher_output, labels, temperature=3.0)
    close(float(total), expected["after_one_step"]["total"], 1e-6)


@pytest.mark.parametrize("regime", ["joint", "raw", "calibrated"])
def test_a_teacher_step_matches_the_authors_in_both_regimes(regime: str, rule_network: Any) -> None:
    is_joint = regime == "joint"
    expected = STEPS["teacher_joint"]["wrn_40_2_aux"]["f64"] if is_joint else STEPS["teacher_frozen"]["wrn_40_2_aux"][regime]["f64"]
    rows, labels = step_batch()
    teacher = rule_network("wrn_40_2_aux", torch.float64)
    if regime == "calibrated":
        calibrate(teacher, rows)
    if not is_joint:
        teacher.freeze_backbone()
    before = {key: value.clone() for key, value in teacher.backbone.state_dict().items()}
    teacher.train()
    optimizer = one_step(teacher)
    output = teacher(rows)
    total, terms = teacher_loss(output, labels, regime="joint" if is_joint else "frozen")
    total.backward()
    close(float(terms["ce_q"].detach()), sum(expected["ce_aux"]), 1e-9)
    backbone_loss = nn.functional.cross_entropy(output.logits[0::4], labels)
    close(float(backbone_loss.detach()), expected["ce_backbone"], 1e-9)
    close(gradient_norm(teacher), expected["grad_norm"]["global"], 1e-8)
    optimizer.step()
    close(parameter_norm(teacher), expected["param_l2_after_step"], 1e-8)
    trainable = sum(parameter.numel() for parameter in teacher.parameters() if parameter.requires_grad)
    assert trainable == expected["trainable_elements"]
    with torch.no_grad():
        _, terms = teacher_loss(teacher(rows), labels, regime="joint" if is_joint else "frozen")
    close(float(terms["ce_q"]), sum(expected["after_one_step"]["ce_aux"]), 1e-6)
    unchanged = all(torch.equal(value, before[key]) for key, value in teacher.backbone.state_dict().items())
    assert unchanged != is_joint
