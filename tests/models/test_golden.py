"""Every network of the paper against numbers measured on the authors' code: counts, forwards, training steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hsakd.config import OptimConfig
from hsakd.data.views import rotate_rows
from hsakd.losses import student_loss, teacher_loss
from hsakd.models import HierarchicalNet, count_multi_adds, count_parameters, create_network
from hsakd.models.checkpoints import _our_order, authors_keys, load_weights
from hsakd.training.loop import make_optimizer

GOLDEN = Path(__file__).parent / "golden"
ARCHITECTURES = json.loads((GOLDEN / "architectures.json").read_text())["architectures"]
STEP = json.loads((GOLDEN / "step.json").read_text())
FORWARD = np.load(GOLDEN / "forward.npz")
OURS = {
    "ResNet50_aux": "resnet50",
    "mobilenetV2_aux": "mobilenetv2_half",
    "ShuffleV1_aux": "shufflenet_v1",
    "ShuffleV2_aux": "shufflenet_v2",
    "ResNet50": "resnet50",
    "ResNet18": "resnet18",
    "ResNet34": "resnet34",
}
WITH_BRANCHES = [name for name, facts in ARCHITECTURES.items() if facts["kind"] == "aux"]
FORWARDS = sorted({key.split("/")[0] for key in FORWARD.files})


def our_name(theirs: str) -> str:
    return OURS.get(theirs, theirs.removesuffix("_aux"))


def rule_weights(network: HierarchicalNet) -> HierarchicalNet:
    """The golden rule's deterministic weights, drawn in the authors' key order and loaded by their names."""
    shapes = network.state_dict()
    named = {theirs: shapes[ours] for theirs, ours in zip(authors_keys(network), _our_order(network), strict=True)}
    state = {}
    for index, key in enumerate(sorted(named)):
        shape = tuple(named[key].shape)
        generator = np.random.Generator(np.random.PCG64(1000 + index))
        if not named[key].is_floating_point():
            state[key] = torch.zeros(shape, dtype=torch.int64)
            continue
        if key.endswith("running_var"):
            values = generator.uniform(0.5, 1.5, shape)
        elif key.endswith("running_mean") or (len(shape) == 1 and key.endswith("bias")):
            values = 0.1 * generator.standard_normal(shape)
        elif len(shape) >= 2:
            values = generator.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            values = generator.uniform(0.5, 1.5, shape)
        state[key] = torch.from_numpy(values.astype(np.float32))
    load_weights(network, state)
    return network


@pytest.mark.parametrize("theirs", WITH_BRANCHES)
def test_parameters_and_multi_adds_are_the_authors(theirs: str) -> None:
    facts = ARCHITECTURES[theirs]
    network = create_network(our_name(theirs), num_classes=facts["num_classes"])
    parameters, multi_adds = count_parameters(network), count_multi_adds(network, facts["input"][-1])
    assert parameters.backbone == facts["params_backbone"]
    assert list(parameters.branches) == facts["params_per_branch"]
    assert multi_adds.backbone == facts["multi_adds_backbone"]
    assert list(multi_adds.branches) == facts["multi_adds_per_branch"]


PLAIN = ["wrn_16_1", "resnet8", "resnet14", "resnet32", "resnet44", "resnet110", "resnet18", "resnet34", "vgg11_bn"]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_networks_are_counted_like_the_authors(name: str) -> None:
    facts = ARCHITECTURES[{"resnet18": "ResNet18", "resnet34": "ResNet34"}.get(name, name)]
    network = create_network(name, num_classes=facts["num_classes"], taps=())
    assert count_parameters(network).backbone == facts["params_total"]
    if facts.get("multi_adds_total") is not None:
        assert count_multi_adds(network, facts["input"][-1]).backbone == facts["multi_adds_total"]


def relative(ours: object, golden: object) -> float:
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(golden, dtype=np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("theirs", FORWARDS)
@pytest.mark.parametrize(("precision", "eval_bound", "train_bound"), [("f64", 1e-10, 1e-10), ("f32", 1e-5, 2e-4)])
def test_eval_and_train_forwards_are_the_authors(theirs: str, precision: str, eval_bound: float, train_bound: float) -> None:
    network = rule_weights(create_network(our_name(theirs), num_classes=ARCHITECTURES[theirs]["num_classes"]))
    shape = tuple(FORWARD[f"{theirs}/input_shape"])
    images = torch.from_numpy(np.random.Generator(np.random.PCG64(7)).standard_normal(shape).astype(np.float32))
    if precision == "f64":
        network, images = network.double(), images.double()
    golden = {key: FORWARD[f"{theirs}/{precision}/{key}"] for key in ("logits_l2", "feat_l2", "train_logits_l2", "train_running_var_l2")}
    with torch.no_grad():
        output = network.eval()(images)
        rows = [output.logits[0], *(logits[0] for logits in output.joint_logits)]
        for index, row in enumerate(rows):
            name = "backbone" if index == 0 else f"aux{index}"
            assert relative(row, FORWARD[f"{theirs}/{precision}/{name}_sample0"]) < eval_bound
        assert relative([maps.double().norm() for maps in output.features], golden["feat_l2"]) < eval_bound
        all_logits = (output.logits, *output.joint_logits)
        assert relative([logits.double().norm() for logits in all_logits], golden["logits_l2"]) < eval_bound
        output = network.train()(images)
        all_logits = (output.logits, *output.joint_logits)
        assert relative([logits.double().norm() for logits in all_logits], golden["train_logits_l2"]) < train_bound
    variances = [tensor.double().flatten() for name, tensor in network.state_dict().items() if name.endswith("running_var")]
    assert relative(torch.cat(variances).norm(), golden["train_running_var_l2"]) < train_bound


def step_batch() -> tuple[torch.Tensor, torch.Tensor]:
    images = np.random.Generator(np.random.PCG64(11)).standard_normal((8, 3, 32, 32)).astype(np.float32)
    return rotate_rows(torch.from_numpy(images).double(), 4), torch.from_numpy(np.random.Generator(np.random.PCG64(12)).integers(0, 100, 8))


def gradient_norm(network: HierarchicalNet) -> float:
    return float(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).norm())


@pytest.mark.parametrize("pair", list(STEP["student"]))
@pytest.mark.parametrize("mode", ["raw", "calibrated"])
def test_a_student_step_is_the_authors(pair: str, mode: str) -> None:
    golden = STEP["student"][pair][mode]["f64"]
    teacher, student = (rule_weights(create_network(our_name(name), num_classes=100)).double() for name in pair.split("->"))
    rows, labels = step_batch()
    with torch.no_grad():
        if mode == "calibrated":
            norms = [module for module in teacher.modules() if isinstance(module, torch.nn.BatchNorm2d)]
            for norm in norms:
                norm.momentum = 1.0
            teacher.train()(rows)
        answers = teacher.eval()(rows)
    student.train()
    optimizer = make_optimizer(student, OptimConfig())
    total, values = student_loss(student(rows), answers, labels)
    assert relative(total.item(), golden["total"]) < 1e-9
    assert relative(values["task"].item(), golden["loss_cls"]) < 1e-9
    assert relative(values["kl_q"].item(), sum(golden["kl_aux"])) < 1e-9
    assert relative(values["kl_p"].item(), golden["kl_backbone"]) < 1e-9
    total.backward()
    assert relative(gradient_norm(student), golden["grad_norm"]["global"]) < 1e-8
    optimizer.step()
    with torch.no_grad():
        after = student_loss(student(rows), answers, labels)[0]
    assert relative(after.item(), golden["after_one_step"]["total"]) < 1e-6


def test_joint_and_frozen_teacher_steps_are_the_authors() -> None:
    rows, labels = step_batch()
    network = rule_weights(create_network("wrn_40_2", num_classes=100)).double().train()
    golden = STEP["teacher_joint"]["wrn_40_2_aux"]["f64"]
    total, values = teacher_loss(network(rows), labels, regime="joint")
    total.backward()
    assert relative(values["ce_q"].item(), sum(golden["ce_aux"])) < 1e-9
    assert relative(values["task"].item(), golden["ce_backbone"]) < 1e-9
    assert relative(gradient_norm(network), golden["grad_norm"]["global"]) < 1e-8
    frozen = rule_weights(create_network("wrn_40_2", num_classes=100)).double()
    frozen.freeze_backbone()
    golden = STEP["teacher_frozen"]["wrn_40_2_aux"]["raw"]["f64"]
    before = {name: tensor.clone() for name, tensor in frozen.backbone.state_dict().items()}
    total, values = teacher_loss(frozen.train()(rows), labels, regime="frozen")
    total.backward()
    assert relative(values["ce_q"].item(), sum(golden["ce_aux"])) < 1e-9
    assert relative(gradient_norm(frozen), golden["grad_norm"]["global"]) < 1e-8
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.backbone.state_dict().items())
