"""What every registered term promises, whatever it computes: a term is tested by being registered."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hsakd.losses import LOSS_TERMS, Step
from hsakd.losses.objective import TermContext, TermModule, build_module

B, M, N, L = 4, 4, 5, 2
CONTEXT = TermContext(
    student_maps=((3, 8, 8), (4, 4, 4), (5, 2, 2)),
    teacher_maps=((6, 8, 8), (8, 4, 4), (7, 2, 2)),
    student_width=5,
    teacher_width=7,
    train_labels=torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 0]),
    seed=3,
)


@pytest.fixture(params=sorted(LOSS_TERMS))
def name(request: pytest.FixtureRequest) -> str:
    term: str = request.param
    if LOSS_TERMS[term].library:
        pytest.importorskip(LOSS_TERMS[term].library)
    return term


def step_for(name: str, *, dtype: torch.dtype, scale: float = 2.0) -> Step:
    """Return a batch that has what the term declares to read, and nothing else; `scale` is the logits' standard deviation."""
    term, generator = LOSS_TERMS[name], torch.Generator().manual_seed(0)

    def draw(*shape: int, factor: float = 1.0) -> Tensor:
        values = torch.randn(B, M if term.is_rotated else 1, *shape, generator=generator, dtype=torch.float64)
        return (values * factor).to(dtype)

    def joint_logits() -> tuple[Tensor, ...]:
        return tuple(draw(M * N, factor=scale) for _ in range(L))

    step = Step(
        labels=torch.tensor([4, 0, 2, 0]),
        indices=torch.tensor([4, 0, 2, 10]),
        student_logits=draw(N, factor=scale),
        epoch=1,
        num_epochs=2,
        number=7,
    )
    if term.reads_branches:
        step = replace(step, student_joint_logits=joint_logits())
    if term.reads_teacher:
        step = replace(step, teacher_logits=draw(N, factor=scale))
    if term.reads_branches and term.reads_teacher:
        step = replace(step, teacher_joint_logits=joint_logits())
    if term.reads_features:
        step = replace(
            step,
            student_maps=tuple(draw(*shape) for shape in CONTEXT.student_maps),
            teacher_maps=tuple(draw(*shape) for shape in CONTEXT.teacher_maps),
            student_embedding=draw(CONTEXT.student_width),
            teacher_embedding=draw(CONTEXT.teacher_width),
        )
    for leaf in student_leaves(step):
        leaf.requires_grad_()
    return step


def student_leaves(step: Step) -> list[Tensor]:
    embedding = [] if step.student_embedding is None else [step.student_embedding]
    return [step.student_logits, *step.student_joint_logits, *step.student_maps, *embedding]


def value_of(name: str, step: Step) -> tuple[Tensor, TermModule | None]:
    """Return a term's value in the stage of training that it is for, and the module that it was computed with."""
    term = LOSS_TERMS[name]
    if term.compute is not None:
        return term.compute(step), None
    module = build_module(name, CONTEXT).to(torch.float64 if step.student_logits.dtype == torch.float64 else torch.float32)
    is_before = term.pretraining is not None and term.pretraining.is_all
    return (module.pretrain(step) if is_before else module(step)), module


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_term_is_a_finite_scalar_of_what_it_declares_to_read_in_float32_or_wider(name: str, dtype: torch.dtype) -> None:
    value, _ = value_of(name, step_for(name, dtype=dtype))
    assert value.shape == ()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(value)


def test_a_terms_gradient_reaches_the_student_and_the_terms_own_parameters(name: str) -> None:
    step = step_for(name, dtype=torch.float32)
    value, module = value_of(name, step)
    value.backward()
    gradients = [leaf.grad for leaf in student_leaves(step) if leaf.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() and gradient.abs().sum() > 0 for gradient in gradients)
    for path, parameter in module.named_parameters() if module is not None else ():
        assert parameter.grad is not None or path.startswith("project_teacher"), path  # trained before, with the teacher


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_a_term_and_its_gradient_are_numbers_for_logits_without_contrast_and_with_all_of_it(name: str, scale: float) -> None:
    step = step_for(name, dtype=torch.float32, scale=scale)
    value, _ = value_of(name, step)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(leaf.grad).all() for leaf in student_leaves(step) if leaf.grad is not None)
