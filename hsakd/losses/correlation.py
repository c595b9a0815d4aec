"""Correlation congruence (CC)."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hsakd.losses.objective import Step, TermContext, TermModule, feature_module

EMBEDDING_WIDTH = 128  # CRD's `--feat_dim`
GAMMA, ORDER = 0.4, 2  # the kernel of torchdistill's configuration for CCKD


@feature_module("cc")
class CorrelationCongruence(TermModule):
    """Squared Frobenius distance of the Gaussian correlation matrices of linear embeddings of width 128, over B^2.

    Peng et al. 2019 (arXiv 1904.01802), section 3, L_CC: the kernel is a Taylor series of order 2 of unit vectors. torchdistill's CCKDLoss
    takes the distance without the square, and CRD's code has another formula altogether (products of neighbours' differences), so
    this one is ours. Weight 0.02: CRD's published command. Both embeddings are trained, as CRD does.
    """

    def __init__(self, context: TermContext) -> None:
        super().__init__()
        self.embed_student = nn.Linear(context.student_width, EMBEDDING_WIDTH)
        self.embed_teacher = nn.Linear(context.teacher_width, EMBEDDING_WIDTH)

    def forward(self, step: Step) -> Tensor:
        student, teacher = step.unrotated_embeddings()
        difference = gaussian_correlation(self.embed_student(student)) - gaussian_correlation(self.embed_teacher(teacher))
        return difference.square().mean()


def gaussian_correlation(embedding: Tensor) -> Tensor:
    """Return exp(-2 gamma) * sum over p of (2 gamma)^p / p! * (f_i . f_j)^p for unit vectors f, [B, B] from [B, C]."""
    unit = normalize(embedding, dim=1)
    cosines = unit @ unit.t()
    terms = [(2 * GAMMA) ** power / math.factorial(power) * cosines**power for power in range(ORDER + 1)]
    return torch.stack(terms).sum(dim=0) * math.exp(-2 * GAMMA)
