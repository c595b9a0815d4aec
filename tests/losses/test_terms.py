"""The loss terms against references written as loops over images, rotations, branches and classes."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hsakd.config import ObjectiveConfig
from hsakd.losses import LOSS_TERMS, Objective, Step, student_loss, teacher_loss

B, M, N, L = 3, 4, 5, 2
TEMPERATURE = 2.5


@pytest.fixture
def step() -> Step:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * 2

    return Step(
        labels=torch.tensor([4, 0, 2]),
        student_logits=draw(B, M, N),
        student_joint_logits=tuple(draw(B, M, M * N) for _ in range(L)),
        teacher_logits=draw(B, M, N),
        teacher_joint_logits=tuple(draw(B, M, M * N) for _ in range(L)),
        temperature=TEMPERATURE,
        branch_weights=(0.5, 2.0),
    )


def softmax(logits: Tensor, temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in logits.tolist()]
    return [value / sum(exponentials) for value in exponentials]


def loop_kl(teacher: Tensor, student: Tensor, temperature: float) -> float:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def reference(name: str, step: Step) -> float:
    """Equations 1 to 5 as loops."""
    total = 0.0
    for b in range(B):
        if name == "task":
            total -= math.log(softmax(step.student_logits[b, 0], 1.0)[step.labels[b]]) / B
        if name == "kd":
            total += loop_kl(step.required_teacher_logits()[b, 0], step.student_logits[b, 0], TEMPERATURE) / B
        for j in range(M):
            if name == "kl_p":
                total += loop_kl(step.required_teacher_logits()[b, j], step.student_logits[b, j], TEMPERATURE) / (B * M)
            for branch in range(L):
                weight = step.weights_of_branches[branch] / (B * M)
                if name == "kl_q":
                    total += weight * loop_kl(step.teacher_joint_logits[branch][b, j], step.student_joint_logits[branch][b, j], TEMPERATURE)
                if name == "ce_q":
                    k = int(step.labels[b]) * M + j
                    total -= weight * math.log(softmax(step.student_joint_logits[branch][b, j], 1.0)[k])
    return total


@pytest.mark.parametrize("name", ["task", "ce_q", "kl_q", "kl_p", "kd"])
def test_term_equals_its_equation_written_as_loops(name: str, step: Step) -> None:
    assert LOSS_TERMS[name].compute(step).item() == pytest.approx(reference(name, step), rel=1e-12)


def test_ce_q_with_fewer_turns_fed_keeps_the_joint_labels_of_those_turns(step: Step) -> None:
    turns = (0, 2)
    joint_logits = tuple(logits[:, list(turns)] for logits in step.student_joint_logits)
    fed = replace(step, student_logits=step.student_logits[:, list(turns)], student_joint_logits=joint_logits, rotations=turns)
    expected = 0.0
    for b in range(B):
        for branch in range(L):
            for j in turns:
                k = int(step.labels[b]) * M + j
                weight = step.weights_of_branches[branch] / (B * len(turns))
                expected -= weight * math.log(softmax(step.student_joint_logits[branch][b, j], 1.0)[k])
    assert LOSS_TERMS["ce_q"].compute(fed).item() == pytest.approx(expected, rel=1e-12)


def test_objective_weighs_its_terms_and_reports_them_unweighted(step: Step) -> None:
    objective = Objective.from_config(ObjectiveConfig(terms=(("task", 0.1), ("kd", 0.9)), temperature=TEMPERATURE))
    total, values = objective(step)
    assert total.item() == pytest.approx(0.1 * reference("task", step) + 0.9 * reference("kd", step))
    assert list(values) == ["task", "kd"]
    assert not objective.is_rotated
    assert not objective.reads_branches
    assert objective.reads_teacher


def test_unknown_term_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match=r"unknown loss term 'kl_x'; known: .*ce_q.*task"):
        Objective.from_config(ObjectiveConfig(terms=(("kl_x", 1.0),)))


class Rows:
    """A network's output for B*M sample-major rows."""

    def __init__(self, logits: Tensor, joint_logits: tuple[Tensor, ...]) -> None:
        self.logits = logits.flatten(0, 1).requires_grad_()
        self.joint_logits = tuple(branch.flatten(0, 1).requires_grad_() for branch in joint_logits)


def test_public_losses_take_sample_major_rows(step: Step) -> None:
    student = Rows(step.student_logits, step.student_joint_logits)
    teacher = Rows(step.required_teacher_logits(), step.teacher_joint_logits)
    total, values = student_loss(student, teacher, step.labels, temperature=TEMPERATURE)
    unweighted = Step(
        labels=step.labels,
        student_logits=step.student_logits,
        student_joint_logits=step.student_joint_logits,
        teacher_logits=step.teacher_logits,
        teacher_joint_logits=step.teacher_joint_logits,
        temperature=TEMPERATURE,
        branch_weights=(1.0, 1.0),
    )
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {name: reference(name, unweighted) for name in ("task", "kl_q", "kl_p")}
    )
    total.backward()
    assert teacher.logits.grad is None
    assert student.logits.grad is not None


def test_frozen_regime_has_the_joint_value_and_no_gradient_into_the_backbone(step: Step) -> None:
    outputs = {regime: Rows(step.student_logits, step.student_joint_logits) for regime in ("joint", "frozen")}
    joint = teacher_loss(outputs["joint"], step.labels, regime="joint")[0]
    frozen = teacher_loss(outputs["frozen"], step.labels, regime="frozen")[0]
    assert joint.item() == frozen.item()
    frozen.backward()
    assert outputs["frozen"].logits.grad is None
    assert outputs["frozen"].joint_logits[0].grad is not None
    with pytest.raises(ValueError, match="regime is 'half'; accepted: joint, frozen"):
        teacher_loss(outputs["joint"], step.labels, regime="half")  # type: ignore[arg-type]
