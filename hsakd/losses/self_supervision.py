"""Self-supervision as auxiliary task (SSKD): rotated images' class distributions, and which image a rotated one comes from."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from hsakd.losses.objective import Pretraining, Step, TermContext, TermModule, feature_module, loss_term, softened_kl

SS_TEMPERATURE = 0.5  # `--ss-T`
WRONG_KEPT = 0.75  # `--ratio-ss`: the share of the teacher's wrong answers that is distilled, the least wrong first


@loss_term("sskd_classes", is_rotated=True, reads_branches=False, reads_teacher=True)
def transformed_classes(step: Step) -> Tensor:
    """T^2 KL(teacher's p || student's p) on the rotated images only, mean over the B*(M-1) rows.

    Xu et al. 2020 (arXiv 2006.07114), section 3, L_T. Weight 2.7 (`--tf-weight`), and all wrong answers are kept (`--ratio-tf 1.0`): the
    authors' defaults, which their published commands use.
    """
    return softened_kl(step.required_teacher_logits()[:, 1:], step.student_logits[:, 1:], step.temperature)


@feature_module(
    "sskd_similarity", is_rotated=True, pretraining=Pretraining(epochs=60, milestones=(30, 45), trains_student=False, is_all=False)
)
class SelfSupervisedSimilarity(TermModule):
    """T^2 KL of the distributions over a batch's B unrotated images, by cosine similarity to each of the B*(M-1) rotated ones.

    Xu et al. 2020, section 3, L_ss, T = 0.5, on rows that the teacher gets right and the three quarters of the others where it is least
    wrong. Weight 10 (`--ss-weight`). Pre-training: 60 epochs (milestones 30, 45) of the teacher's projection alone, with
    cross-entropy of the similarities, its backbone as it is. torchdistill's SSKDLoss has the same values, but waits for the device (it
    counts wrong answers to cut its rows), so this one is ours: it weighs rows by 0 and 1.
    """

    def __init__(self, context: TermContext) -> None:
        super().__init__()
        self.project_student = projection(context.student_width)
        self.project_teacher = projection(context.teacher_width)

    def pretrain(self, step: Step) -> Tensor:
        _, teacher = step.embeddings()
        similarity = similarities(self.project_teacher(teacher))
        return cross_entropy(similarity, origins(similarity))

    def forward(self, step: Step) -> Tensor:
        student, teacher = step.embeddings()
        with torch.no_grad():
            taught = similarities(self.project_teacher(teacher))
            kept = least_wrong(taught, origins(taught), WRONG_KEPT)
        p, q = ((rows / SS_TEMPERATURE).log_softmax(dim=1) for rows in (taught, similarities(self.project_student(student))))
        divergence = (p.exp() * (p - q)).sum(dim=1)
        return (divergence * kept).sum() / kept.sum() * SS_TEMPERATURE**2


def projection(width: int) -> nn.Sequential:
    """Return the authors' projection head: linear, ReLU, linear, all of one width."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def similarities(embeddings: Tensor) -> Tensor:
    """Return the cosines [B*(M-1), B] of every rotated image with every unrotated one, from [B, M, C]."""
    unit = normalize(embeddings, dim=2)
    return unit[:, 1:].flatten(0, 1) @ unit[:, 0].t()


def origins(similarity: Tensor) -> Tensor:
    """Return [B*(M-1)]: which unrotated image each rotated one comes from."""
    rows, images = similarity.shape
    return torch.arange(images, device=similarity.device).repeat_interleave(rows // images)


def least_wrong(similarity: Tensor, targets: Tensor, share: float) -> Tensor:
    """Return [rows] of 1 and 0: 1 where the target ranks first, and for the whole part of `share` of the others, best ranks first."""
    rows = len(similarity)
    rank = (similarity > similarity.gather(1, targets[:, None])).sum(dim=1)
    num_wrong = (rank > 0).sum()
    num_kept = rows - num_wrong + (num_wrong * share).floor()
    place = torch.argsort(torch.argsort(rank, stable=True), stable=True)
    return (place < num_kept).to(similarity.dtype)
