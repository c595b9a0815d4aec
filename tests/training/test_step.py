"""A step's promises: no host synchronisation, only what is read is computed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hsakd.config import DataConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.data import load_dataset
from hsakd.data.batches import gather_batch
from hsakd.losses import LOSS_TERMS, Objective
from hsakd.models import HierarchicalNet, create_network
from hsakd.models.backbone import NETWORKS
from hsakd.network_table import network_table
from hsakd.training.predictions import LivePredictions
from hsakd.training.stages import term_context, training_stages
from hsakd.training.step import RunningLosses, compute_loss, make_optimizer, training_step
from sweeps.presets import COMPARATORS

TERMS = {
    **{name: config.terms for name, config in COMPARATORS.items()},
    "baseline": (("task", 1.0),),
    "teacher": (("task", 1.0), ("ce_q", 1.0)),
    "student": (("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0)),
    "kd": (("task", 0.1), ("kd", 0.9)),
    "AB of a rotated objective": (("task", 1.0), ("kl_p", 1.0), ("ab", 1.0)),
}
IN_A_ROW = {name for terms in TERMS.values() for name, _ in terms}
TERMS |= {name: (("task", 1.0), (name, 1.0)) for name in LOSS_TERMS if name not in IN_A_ROW}  # a new term is tested by being registered


def smallest_of_each_family() -> list[str]:
    found: dict[str, str] = {}
    for name in sorted(NETWORKS, key=lambda name: network_table()[name].parameters):
        found.setdefault(NETWORKS[name]().family, name)
    return list(found.values())


class NoIndexLists(TorchFunctionMode):
    """Refuses lists and ranges as indices, which PyTorch copies to the device while the host waits, where no dispatch sees it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(part, Sequence) for part in parts), f"{args[1]} waits for the device"
        return func(*args, **(kwargs or {}))


class NoWaiting(TorchDispatchMode):
    """Refuses what the meta device lets pass and a GPU would wait for: copies from the host that block, and indices that lie there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor) and value.dim() > 0]
        devices = {value.device.type for value in (*inputs, result) if isinstance(value, torch.Tensor)}
        if devices == {"cpu", "meta"}:
            assert func is torch.ops.aten._to_copy.default, f"{func} waits for the device"
            assert kwargs.get("non_blocking"), f"{func} blocks"
        return result


def take_steps_on_meta(
    terms: tuple[tuple[str, float], ...], student_name: str, teacher_name: str, **changes: Any
) -> tuple[HierarchicalNet, list[int]]:
    """Take two steps of every stage of a training; a hidden CPU tensor or a hidden `.item()` raises.

    Return the network, and how often it ran in each stage.
    """
    device = torch.device("meta")
    config = DataConfig(dataset="digits", train_subset=64)
    trial = TrialConfig(network=student_name, data=config, teacher=TrialConfig(network=teacher_name, data=config))
    on_cpu = load_dataset(config)
    data = on_cpu.to(device)
    objective = Objective.from_config(ObjectiveConfig(terms=terms))
    network = HierarchicalNet.on_meta(student_name, num_classes=10, taps=None if objective.reads_branches else ())
    objective = objective.with_modules(lambda: term_context(trial, network, on_cpu))
    modules = objective.modules.to(device)
    predictions = None
    if objective.reads_teacher:
        teacher = HierarchicalNet.on_meta(teacher_name, num_classes=10)
        branches = teacher.taps if objective.reads_teacher_branches else ()
        num_rotations, with_features = 4 if objective.is_rotated else 1, bool(objective.feature_terms)
        predictions = LivePredictions(teacher, branches=branches, num_rotations=num_rotations, with_features=with_features)
    order, views = torch.arange(64), torch.arange(64) % 9
    runs: list[int] = []
    network.register_forward_hook(lambda *_: runs.__setitem__(-1, runs[-1] + 1))
    for stage in training_stages(objective, OptimConfig()):
        runs.append(0)
        losses = RunningLosses(stage.objective.names, device)
        optimizer = make_optimizer(torch.nn.ModuleList([network, modules]), OptimConfig())
        for step in range(2):
            gather_batch(data, order[:1], views[:1], dtype=torch.float32)  # mean and deviation are brought to a device once
            with NoWaiting(), NoIndexLists():
                batch = gather_batch(data, order[:16], views[:16], dtype=torch.float32)
                training_step(network, stage.objective, optimizer, batch, predictions, losses, step=step, learning_rate=0.05, **changes)
        assert losses.sums.is_meta
    return network, runs


@pytest.mark.parametrize("kind", TERMS)
def test_a_whole_step_runs_on_the_meta_device(kind: str) -> None:
    """What keeps us honest about GPUs without one."""
    network, runs = take_steps_on_meta(TERMS[kind], "resnet8_half", "resnet14")
    assert all(parameter.grad is not None for parameter in network.parameters())
    stages = training_stages(Objective.from_config(ObjectiveConfig(terms=TERMS[kind])), OptimConfig())
    assert runs == [2 if stage.trains_network else 0 for stage in stages]  # what is not trained is not run


@pytest.mark.parametrize("name", smallest_of_each_family())
def test_a_whole_step_of_every_family_runs_on_the_meta_device(name: str) -> None:
    network, _ = take_steps_on_meta(TERMS["student"], name, name, rotations=(0, 2))
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("kind", ["teacher", "student", "kd"])
def test_a_step_in_parts_runs_on_the_meta_device(kind: str) -> None:
    network, runs = take_steps_on_meta(TERMS[kind], "resnet8_half", "resnet14", num_parts=4)
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert runs == [2 * 4]


class NoReading(TorchDispatchMode):
    """Refuses to bring a tensor's value to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_a_step_in_mixed_precision_reads_no_value() -> None:
    """On the CPU, since `meta` has no autocasting."""
    cpu, mixed = torch.device("cpu"), torch.bfloat16
    data = load_dataset(DataConfig(dataset="digits", train_subset=64))
    network, teacher = (create_network(name, num_classes=10) for name in ("resnet8_half", "resnet14"))
    objective = Objective.from_config(ObjectiveConfig(terms=TERMS["student"]))
    predictions = LivePredictions(teacher, branches=teacher.taps, num_rotations=4, autocast=mixed)
    losses, optimizer = RunningLosses(objective.names, cpu), make_optimizer(network, OptimConfig())
    kinds = set()
    network.backbone.stages[1].register_forward_hook(lambda *call: kinds.add(call[2].dtype))
    batch = gather_batch(data, torch.arange(16), torch.arange(16) % 9, dtype=torch.float32)
    with NoReading():
        for step in range(2):
            training_step(
                network, objective, optimizer, batch, predictions, losses, step=step, learning_rate=0.05, autocast=mixed, num_parts=2
            )
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            losses.sums[0].item()
    assert kinds == {mixed}


def test_a_step_of_two_networks_trained_together_runs_on_the_meta_device() -> None:
    device = torch.device("meta")
    data = load_dataset(DataConfig(dataset="digits", train_subset=64)).to(device)
    network = HierarchicalNet.on_meta("resnet8_half", num_classes=10)
    network.peer = HierarchicalNet.on_meta("resnet14", num_classes=10)
    objective = Objective.from_config(ObjectiveConfig(terms=(("task", 1.0), ("ce_q", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))))
    losses, optimizer = RunningLosses(objective.names, device), make_optimizer(network, OptimConfig())
    batch = gather_batch(data, torch.arange(16), torch.arange(16) % 9, dtype=torch.float32)
    training_step(network, objective, optimizer, batch, None, losses, step=0, learning_rate=0.05)
    assert losses.sums.is_meta
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("kind", "computed"), [("baseline", 0), ("kd", 0), ("AT", 0), ("teacher", 3), ("student", 3)])
def test_branches_that_the_objective_does_not_read_are_not_computed(kind: str, computed: int) -> None:
    data = load_dataset(DataConfig(dataset="digits", train_subset=64))
    network = create_network("resnet8_half", num_classes=10)  # with all its branches
    teacher = create_network("resnet14", num_classes=10)
    trial = TrialConfig(network="resnet8_half", data=DataConfig(dataset="digits"))
    objective = Objective.from_config(ObjectiveConfig(terms=TERMS[kind]))
    objective = objective.with_modules(lambda: term_context(replace(trial, teacher=replace(trial, network="resnet14")), network, data))
    predictions = LivePredictions(teacher, branches=(), num_rotations=1, with_features=bool(objective.feature_terms))
    if objective.is_rotated:
        predictions = LivePredictions(teacher, branches=(1, 2, 3), num_rotations=4)
    calls = []
    for classifier in network.auxiliary_classifiers.values():
        classifier.register_forward_hook(lambda module, *_: calls.append(module))
    batch = gather_batch(data, torch.arange(16), torch.arange(16) % 9, dtype=torch.float32)
    compute_loss(network, objective, batch, predictions if objective.reads_teacher else None, autocast=None)
    assert len(calls) == computed
