"""Contrastive representation distillation (CRD), with its memory of the training set."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hsakd.devices import sent
from hsakd.losses.objective import Step, TermContext, TermModule, feature_module
from hsakd.seeds import seed_of

EMBEDDING_WIDTH, NUM_NEGATIVES, TEMPERATURE, MOMENTUM = 128, 16384, 0.07, 0.5  # feat_dim, nce_k, nce_t, nce_m of CRD's train_student.py
EPS = 1e-7


@feature_module("crd")
class ContrastiveRepresentation(TermModule):
    """Noise-contrastive estimation in both directions: which of K+1 remembered embeddings is this image's.

    Tian et al. 2020 (arXiv 1910.10699), section 3, L_critic with h as in its code: K negatives of other classes, temperature 0.07, memory
    momentum 0.5. Weight 0.8: the authors' published command. K is 16384, or the images of other classes where they are fewer (the authors
    would draw them many times over); negatives are drawn with replacement, the authors' without. The memories (buffers, indexed by
    training image) and the normalization constants are part of the checkpoint; negatives depend on (seed, step) only. torchdistill's
    CRDLoss waits for the device five times a step and can't draw negatives itself (its `draw` reads an attribute that is never set), so
    this one is ours.
    """

    memory_student: Tensor
    memory_teacher: Tensor
    constants: Tensor
    by_class: Tensor
    class_starts: Tensor
    class_sizes: Tensor

    def __init__(self, context: TermContext) -> None:
        super().__init__()
        self.seed = context.seed
        self.embed_student = nn.Linear(context.student_width, EMBEDDING_WIDTH)
        self.embed_teacher = nn.Linear(context.teacher_width, EMBEDDING_WIDTH)
        labels = context.train_labels
        self.num_images = len(labels)
        bound = (EMBEDDING_WIDTH / 3) ** -0.5
        self.register_buffer("memory_student", torch.empty(self.num_images, EMBEDDING_WIDTH).uniform_(-bound, bound))
        self.register_buffer("memory_teacher", torch.empty(self.num_images, EMBEDDING_WIDTH).uniform_(-bound, bound))
        self.register_buffer("constants", torch.full((2,), -1.0))  # Z of student and teacher; set by the first batch
        sizes = torch.bincount(labels)
        self.register_buffer("by_class", torch.argsort(labels, stable=True), persistent=False)
        self.register_buffer("class_starts", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("class_sizes", sizes, persistent=False)
        self.num_negatives = max(1, min(NUM_NEGATIVES, self.num_images - int(sizes.max())))

    def forward(self, step: Step) -> Tensor:
        assert step.indices is not None
        student, teacher = step.unrotated_embeddings()
        own = sent(step.indices, student.device)
        chosen = torch.cat([own[:, None], self.negatives(step)], dim=1)
        return self.contrast(self.embed_student(student), self.embed_teacher(teacher), own, chosen)

    def contrast(self, student: Tensor, teacher: Tensor, own: Tensor, chosen: Tensor) -> Tensor:
        """Return both directions' losses, mean over B, and remember this batch.

        `student`, `teacher` [B, 128] are any length; `own` [B] are positions in the training set, `chosen` [B, 1+K] own and negatives.
        """
        student, teacher = normalize(student, dim=1), normalize(teacher, dim=1)
        scores = [
            (memory[chosen] @ anchor[:, :, None]).squeeze(2).div(TEMPERATURE).exp()
            for memory, anchor in ((self.memory_teacher, student), (self.memory_student, teacher))
        ]
        with torch.no_grad():
            first = torch.stack([score.mean() * self.num_images for score in scores])
            self.constants.copy_(torch.where(self.constants < 0, first, self.constants))
            for memory, anchor in ((self.memory_student, student), (self.memory_teacher, teacher)):
                memory.index_copy_(0, own, normalize(memory[own] * MOMENTUM + anchor * (1 - MOMENTUM), dim=1))
        return self._estimation_loss(scores[0] / self.constants[0]) + self._estimation_loss(scores[1] / self.constants[1])

    def _estimation_loss(self, probabilities: Tensor) -> Tensor:
        """Return -log h(positive) - sum of log(1 - h(negative)), mean over B, of [B, 1+K] with the positive first."""
        noise = (probabilities.shape[1] - 1) / self.num_images
        total = probabilities + noise + EPS
        found = (probabilities[:, 0] / total[:, 0]).log()
        rejected = (noise / total[:, 1:]).log()
        return -(found.sum() + rejected.sum()) / len(probabilities)

    def negatives(self, step: Step) -> Tensor:
        """Return [B, K] positions of training images of other classes than each image's."""
        generator = torch.Generator().manual_seed(seed_of("crd", self.seed, step.number))
        drawn = torch.randint(2**62, (len(step.labels), self.num_negatives), generator=generator)
        starts, sizes = self.class_starts[step.labels, None], self.class_sizes[step.labels, None]
        place = sent(drawn, starts.device) % (self.num_images - sizes)
        return self.by_class[place + sizes * (place >= starts)]
