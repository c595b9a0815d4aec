"""Distillation via knowledge review (ReviewKD): low stages of the teacher review high stages of the student."""

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from hsakd.losses.library import LIBRARY, hooked, mid_level_losses
from hsakd.losses.maps import pooled_to_smaller
from hsakd.losses.objective import Step, TermContext, TermModule, feature_module

WARM_UP_EPOCHS = 20  # of 240, the authors' `--kd-warm-up`: the term grows linearly from 0


@feature_module("review", library=LIBRARY)
class KnowledgeReview(TermModule):
    """Hierarchical context loss of fused student maps and teacher maps, summed over the stages and the pooled last one, with warm-up.

    Chen et al. 2021 (arXiv 2104.09044), section 3, with attention-based fusion from the last stage downwards. Weight 1: the default of the
    authors' `--kd-loss-weight`; their commands take 0.6 to 8 by pair. Fusion and loss are torchdistill's. Fused maps that differ in size
    from the teacher's are average-pooled with them to the smaller one (the authors repeat pixels); maps are as the stages give them
    (the authors' ResNets: before the ReLU).
    """

    def __init__(self, context: TermContext) -> None:
        super().__init__()
        from torchdistill.models.wrapper import AttentionBasedFusion

        student = [*context.student_maps, (context.student_maps[-1][0], 1, 1)]
        teacher = [*context.teacher_maps, (context.teacher_maps[-1][0], 1, 1)]
        middle = min(512, student[-1][0])
        self.sizes = [maps[1] for maps in student]
        self.fusions = nn.ModuleList(
            AttentionBasedFusion(s[0], middle, t[0], uses_attention=level < len(student) - 1)
            for level, (s, t) in enumerate(zip(student, teacher, strict=True))
        )

    def forward(self, step: Step) -> Tensor:
        pairs = step.unrotated_maps()
        pairs.append((adaptive_avg_pool2d(pairs[-1][0], 1), adaptive_avg_pool2d(pairs[-1][1], 1)))
        loss = mid_level_losses().HierarchicalContextLoss("0", "output", "0", "output")
        residual: Tensor | None = None
        total = pairs[0][0].new_zeros(())
        for level in reversed(range(len(pairs))):
            student, teacher = pairs[level]
            fused, residual = self.fusions[level](student, residual, self.sizes[level])
            fused, teacher = pooled_to_smaller(fused, teacher)
            total = total + loss(hooked((fused, fused)), hooked(teacher))
        return total * min(step.authors_epoch(first=0) / WARM_UP_EPOCHS, 1.0)
