"""Our networks against numbers measured on the authors' code."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from hsakd.losses import softened_kl, student_loss, teacher_loss
from hsakd.models import HierarchicalNet, Output, count_multi_adds, count_parameters, create_network
from hsakd.models.authors import authors_keys
from hsakd.models.checkpoints import load_weights, save_weights, weights_sha256
from hsakd.models.counting import tap_shapes

GOLDEN = Path(__file__).parent / "golden"
FORWARD = np.load(GOLDEN / "forward.npz")
FORWARD_NETWORKS = sorted({key.split("/")[0] for key in FORWARD.files})
STEPS = json.loads((GOLDEN / "step.json").read_text())
PRECISIONS = {"f64": torch.float64, "f32": torch.float32}


PAIRS_THERE = {  # the authors' factory of two independent copies -> our name of one
    "mbv2_mbv2": "mobilenetv2_half",
    "WRN_40_2_WRN_40_2": "wrn_40_2",
    "WRN_40_1_WRN_40_1": "wrn_40_1",
    "WRN_16_2_WRN_16_2": "wrn_16_2",
    "vgg13_vgg13": "vgg13_bn",
    "shufflev1_shufflev1": "shufflenet_v1",
    "shufflev2_shufflev2": "shufflenet_v2",
    "resnet18_resnet18": "resnet18_imagenet",
    **{f"{name}_{name}": name for name in ("resnet20", "resnet56", "resnet8x4", "resnet32x4")},
}
FACTORIES = list(json.loads((GOLDEN / "architectures.json").read_text())["architectures"])
SINGLE = [factory for factory in FACTORIES if factory not in PAIRS_THERE]
HEAVY = (
    "wrn_40",
    "wrn_16_2_aux",
    "resnet44",
    "resnet32",
    "mobilenetV2_aux",
    "101",
    "152",
    "imagenet",
    "ResNet",
    "vgg16",
    "vgg19",
    "vgg11",
    "resnet110",
    "vgg13",
    "vgg8_bn",
    "resnet56",
)


def quick_first(factories: list[str]) -> list[Any]:
    """The same, with the large networks marked slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if any(word in name for word in HEAVY) else name for name in factories]


def build_on_meta(factory: str, expected: Any, our_names: Any) -> HierarchicalNet:
    taps = None if expected["kind"] == "aux" else ()
    return HierarchicalNet.on_meta(our_names[factory.removesuffix("_aux")], num_classes=expected["num_classes"], taps=taps)


@pytest.mark.parametrize("factory", quick_first(SINGLE))
def test_counts_shapes_keys_and_their_order_are_the_authors(factory: str, architectures: Any, golden_keys: Any, our_names: Any) -> None:
    expected = architectures[factory]
    network = build_on_meta(factory, expected, our_names)
    parameters, multi_adds = count_parameters(network), count_multi_adds(network, expected["input"][-1])
    assert (parameters.total, multi_adds.total) == (expected["params_total"], expected["multi_adds_total"])
    assert [list(shape) for shape in tap_shapes(network, expected["input"][-1])] == expected.get(
        "stage_feature_shapes", [list(shape) for shape in tap_shapes(network, expected["input"][-1])]
    )
    buffers = list(network.buffers())
    assert len(list(network.parameters())) == expected["param_tensors"]
    assert (len(buffers), sum(buffer.numel() for buffer in buffers)) == (expected["buffer_tensors"], expected["buffer_elements"])
    assert network.num_classes == expected["backbone_logits_width"]
    is_hierarchical = expected["kind"] == "aux"
    if is_hierarchical:
        assert (list(parameters.branches), list(multi_adds.branches)) == (expected["params_per_branch"], expected["multi_adds_per_branch"])
        assert (parameters.backbone, sum(parameters.branches)) == (expected["params_backbone"], expected["params_auxiliary"])
        assert (multi_adds.backbone, sum(multi_adds.branches)) == (expected["multi_adds_backbone"], expected["multi_adds_auxiliary"])
        assert len(network.taps) == expected["aux_branches"]
        heads = [classifier.head.out_features for classifier in network.auxiliary_classifiers.values()]
        assert heads == expected["aux_logits_width"]
    state = network.state_dict()
    got = [
        [theirs if is_hierarchical else theirs.removeprefix("backbone."), list(state[ours].shape)]
        for ours, theirs in authors_keys(network).items()
    ]
    assert got == [row[:2] for row in golden_keys[factory]]
    assert len(state) == expected["state_dict_keys"]


def test_every_published_network_and_pair_is_compared(architectures: Any, our_names: Any) -> None:
    assert (len(SINGLE), len(PAIRS_THERE)) == (53, 12)
    assert {factory.removesuffix("_aux") for factory in SINGLE} <= set(our_names)
    for factory, name in PAIRS_THERE.items():
        expected = architectures[factory]
        assert expected["kind"] == "pair"
        network = HierarchicalNet.on_meta(name, num_classes=expected["num_classes"])
        assert 2 * count_parameters(network).total == expected["params_total"], factory


@pytest.mark.parametrize("factory", quick_first(SINGLE))
def test_rule_weights_load_and_are_written_back_in_the_authors_order(
    factory: str, architectures: Any, golden_keys: Any, rule_weights: Any, our_names: Any, tmp_path: Path
) -> None:
    """What their code saved is read to the last tensor; what we save, their code could load, and holds the same bits."""
    expected, weights = architectures[factory], rule_weights(factory)
    floats = [weights[key].numpy().astype("<f4").tobytes() for key in sorted(weights) if weights[key].is_floating_point()]
    assert hashlib.sha256(b"".join(floats)).hexdigest() == expected["rule_fingerprint"]["sha256_f32_le_sorted_keys"]
    network = build_on_meta(factory, expected, our_names).to_empty(device="cpu")
    report = load_weights(network, weights, origin="hsakd")
    assert (report.missing, report.ignored, len(report.loaded)) == ((), (), len(weights))
    save_weights(network, tmp_path / "file.pth.tar", layout="hsakd")
    checkpoint = torch.load(tmp_path / "file.pth.tar", weights_only=True)
    assert [[key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in checkpoint["net"].items()] == [
        [key, shape, dtype.removeprefix("torch.")] for key, shape, dtype in golden_keys[factory]
    ]
    assert all(torch.equal(value, weights[key]) for key, value in checkpoint["net"].items())
    again = build_on_meta(factory, expected, our_names).to_empty(device="cpu")
    assert load_weights(again, tmp_path / "file.pth.tar").format == "hsakd"
    assert weights_sha256(again) == weights_sha256(network)


@pytest.mark.parametrize("factory", ["resnet20_resnet20", "WRN_16_2_WRN_16_2", pytest.param("mbv2_mbv2", marks=pytest.mark.slow)])
def test_each_member_of_the_authors_pairs_loads(factory: str, rule_weights: Any) -> None:
    weights, network = rule_weights(factory), create_network(PAIRS_THERE[factory], num_classes=100)
    ours = {theirs: ours for ours, theirs in authors_keys(network).items()}
    for number in (1, 2):
        assert load_weights(network, weights, member=number).missing == ()  # type: ignore[arg-type]
        state, prefix = network.state_dict(), f"net{number}."
        mine = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        assert all(torch.equal(state[ours[key]], value) for key, value in mine.items())


def close(value: Any, expected: Any, tolerance: float) -> None:
    """Compare relative to the expected vector's L2 norm."""
    value, expected = np.asarray(value, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert value.shape == expected.shape
    assert np.linalg.norm(value - expected) <= tolerance * np.linalg.norm(expected)


def norms(tensors: list[torch.Tensor]) -> list[float]:
    return [float(tensor.detach().double().norm()) for tensor in tensors]


def close_sums(tensors: list[torch.Tensor], expected: Any, tolerance: float) -> None:
    """Compare each tensor's sum relative to its L2 norm times the root of its size, since sums cancel."""
    for tensor, value in zip(tensors, expected, strict=True):
        scale = float(tensor.double().norm()) * tensor.numel() ** 0.5
        assert abs(float(tensor.double().sum()) - float(value)) <= tolerance * scale


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("factory", quick_first(FORWARD_NETWORKS))
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
    close_sums([output.logits, *output.joint_logits], golden("logits_sum"), eval_tolerance)
    close(norms(list(output.features)), golden("feat_l2"), eval_tolerance)
    close_sums(list(output.features), golden("feat_sum"), eval_tolerance)
    with torch.no_grad():
        output = network.train()(rows)
    close(norms([output.logits, *output.joint_logits]), golden("train_logits_l2"), train_tolerance)
    close_sums([output.logits, *output.joint_logits], golden("train_logits_sum"), train_tolerance)
    for kind in ("mean", "var"):
        buffers = [value.reshape(-1) for key, value in network.state_dict().items() if key.endswith(f"running_{kind}")]
        close(norms([torch.cat(buffers)])[0], golden(f"train_running_{kind}_l2"), train_tolerance)


def step_batch(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    images = np.random.Generator(np.random.PCG64(11)).standard_normal((8, 3, 32, 32)).astype("<f4")
    assert hashlib.sha256(images.tobytes()).hexdigest() == STEPS["settings"]["x_sha256_f32_le"]
    batch = torch.from_numpy(images).to(dtype)
    rows = torch.stack([torch.rot90(batch[index // 4], index % 4, (1, 2)) for index in range(32)])
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


def parameter_norm(network: HierarchicalNet) -> float:
    return float(sum(float((p.detach().double() ** 2).sum()) for p in network.parameters()) ** 0.5)


def close_gradients(network: HierarchicalNet, expected: Any, tolerance: float, module_tolerance: float) -> None:
    """Compare the norm of all gradients, of each child's and of each grandchild's, under the authors' names."""
    squares: dict[str, float] = {}
    theirs = authors_keys(network)
    count = 0
    for name, parameter in network.named_parameters():
        if parameter.grad is None:
            continue
        count += 1
        square = float((parameter.grad.double() ** 2).sum())
        part, module = theirs[name].split(".")[:2]
        for group in ("", part, f"{part}.{module}"):
            squares[group] = squares.get(group, 0.0) + square
    assert count == expected["n_tensors_with_grad"]
    close(squares.pop("") ** 0.5, expected["global"], tolerance)
    modules = expected["depth1"] | expected["depth2"]
    assert set(squares) == set(modules)
    for group, square in squares.items():
        close(square**0.5, modules[group], module_tolerance)


def close_buffers(network: HierarchicalNet, expected: Any, tolerance: float) -> None:
    """Compare the BN buffers' norms and batch counters."""
    state = network.state_dict()
    for kind in ("mean", "var"):
        values = torch.cat([value.double().reshape(-1) for key, value in state.items() if key.endswith(f"running_{kind}")])
        close(float(values.norm()), expected[f"running_{kind}_l2"], tolerance)
    assert max(int(value) for key, value in state.items() if key.endswith("num_batches_tracked")) == expected["num_batches_tracked_max"]


class Tolerances(NamedTuple):
    """Relative: first losses, global gradient, each module's gradient, after the step (None: not compared)."""

    first: float
    gradient: float
    module: float
    after: float | None


TOLERANCES = {"f64": Tolerances(1e-9, 1e-8, 1e-8, 1e-6), "f32": Tolerances(1e-4, 2e-3, 2e-2, None)}


def close_student_losses(output: Output, teacher: Output, labels: torch.Tensor, expected: Any, tolerance: float) -> torch.Tensor:
    total, terms = student_loss(output, teacher, labels, temperature=3.0)
    close(float(total.detach()), expected["total"], tolerance)
    close(float(terms["task"].detach()), expected["loss_cls"], tolerance)
    close(float(terms["kl_p"].detach()), expected["kl_backbone"], tolerance)
    close(float(terms["kl_q"].detach()), sum(expected["kl_aux"]), tolerance)
    each = [float(softened_kl(t, s.detach(), 3.0)) for t, s in zip(teacher.joint_logits, output.joint_logits, strict=True)]
    close(each, expected["kl_aux"], tolerance)
    if "loss_div" in expected:
        close(float((terms["kl_p"] + terms["kl_q"]).detach()), expected["loss_div"], tolerance)
    return total


SMALL_PAIR, LARGE_PAIR = STEPS["student"]
SLOW_STEPS = [
    pytest.param(pair, mode, precision, marks=() if (pair, mode, precision) == (SMALL_PAIR, "calibrated", "f64") else pytest.mark.slow)
    for pair in (SMALL_PAIR, LARGE_PAIR)
    for mode in ("raw", "calibrated")
    for precision in PRECISIONS
]


@pytest.mark.parametrize(("pair", "mode", "precision"), SLOW_STEPS)
def test_a_student_step_matches_the_authors(pair: str, mode: str, precision: str, rule_network: Any) -> None:
    expected, tolerances = STEPS["student"][pair][mode][precision], TOLERANCES[precision]
    rows, labels = step_batch(PRECISIONS[precision])
    teacher, student = (rule_network(factory, PRECISIONS[precision]) for factory in pair.split("->"))
    if mode == "calibrated":
        calibrate(teacher, rows)
    with torch.no_grad():
        taught: Output = teacher.eval()(rows)
    close(norms([taught.logits, *taught.joint_logits]), expected["teacher_logits_l2"], tolerances.first)
    probabilities = [float((logits / 3).softmax(dim=1).amax(dim=1).mean()) for logits in (taught.logits, *taught.joint_logits)]
    close(probabilities, expected["teacher_max_prob_mean_at_T"], tolerances.first)
    close(parameter_norm(student), expected["param_l2_before"], tolerances.first)
    optimizer = one_step(student)
    close_student_losses(student.train()(rows), taught, labels, expected, tolerances.first).backward()
    close_gradients(student, expected["grad_norm"], tolerances.gradient, tolerances.module)
    close_buffers(student, expected["bn_after_first_forward"], tolerances.first)
    optimizer.step()
    if tolerances.after is not None:
        close(parameter_norm(student), expected["param_l2_after_step"], tolerances.gradient)
        with torch.no_grad():
            close_student_losses(student(rows), taught, labels, expected["after_one_step"], tolerances.after)


def close_teacher_losses(output: Output, labels: torch.Tensor, regime: Any, expected: Any, tolerance: float) -> torch.Tensor:
    total, terms = teacher_loss(output, labels, regime=regime)
    close(float(total.detach()), expected["total"], tolerance)
    close(float(terms["task"].detach()), expected["ce_backbone"], tolerance)
    close(float(terms["ce_q"].detach()), sum(expected["ce_aux"]), tolerance)
    joint = (labels[:, None] * 4 + torch.arange(4)).reshape(-1)
    close([float(nn.functional.cross_entropy(logits, joint).detach()) for logits in output.joint_logits], expected["ce_aux"], tolerance)
    return total


@pytest.mark.parametrize(
    ("regime", "precision"),
    [
        pytest.param(regime, precision, marks=() if (regime, precision) == ("raw", "f64") else pytest.mark.slow)
        for regime in ("joint", "raw", "calibrated")
        for precision in PRECISIONS
    ],
)
def test_a_teacher_step_matches_the_authors_in_both_regimes(regime: str, precision: str, rule_network: Any) -> None:
    is_joint, tolerances = regime == "joint", TOLERANCES[precision]
    steps = STEPS["teacher_joint"]["wrn_40_2_aux"] if is_joint else STEPS["teacher_frozen"]["wrn_40_2_aux"][regime]
    expected, loss_regime = steps[precision], "joint" if is_joint else "frozen"
    rows, labels = step_batch(PRECISIONS[precision])
    teacher = rule_network("wrn_40_2_aux", PRECISIONS[precision])
    if regime == "calibrated":
        calibrate(teacher, rows)
    if not is_joint:
        teacher.freeze_backbone()
    theirs, before = authors_keys(teacher), {key: value.clone() for key, value in teacher.state_dict().items()}
    trainable = {name: parameter for name, parameter in teacher.named_parameters() if parameter.requires_grad}
    assert len(trainable) == expected["trainable_tensors"]
    assert sum(parameter.numel() for parameter in trainable.values()) == expected["trainable_elements"]
    assert sorted({theirs[name].split(".")[0] for name in trainable}) == expected["trainable_prefixes"]
    close(parameter_norm(teacher), expected["param_l2_before"], tolerances.first)
    teacher.train()
    optimizer = one_step(teacher)
    close_teacher_losses(teacher(rows), labels, loss_regime, expected, tolerances.first).backward()
    close_gradients(teacher, expected["grad_norm"], tolerances.gradient, tolerances.module)
    close_buffers(teacher, expected["bn_after_first_forward"], tolerances.first)
    optimizer.step()
    changed = [theirs[key] for key, value in teacher.state_dict().items() if not torch.equal(value, before[key])]
    assert sorted({key.split(".")[0] for key in changed}) == expected["changed_state_prefixes"]
    assert sum(key.startswith("backbone.") for key in changed) == expected["backbone_tensors_changed"]
    if tolerances.after is not None:
        close(parameter_norm(teacher), expected["param_l2_after_step"], tolerances.gradient)
        with torch.no_grad():
            close_teacher_losses(teacher(rows), labels, loss_regime, expected["after_one_step"], tolerances.after)
