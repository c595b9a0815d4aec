"""Distillation of activation boundaries (AB): a pre-training of the student's stages, then conventional distillation."""

from torch import Tensor, nn

from hsakd.losses.library import LIBRARY, hooked, hooked_pairs, mid_level_losses
from hsakd.losses.maps import convolutional_regressor
from hsakd.losses.objective import Pretraining, Step, TermContext, TermModule, feature_module

MARGIN = 1.0
SCALE = 3 / 1000  # of the authors' code and of CRD's


@feature_module("ab", library=LIBRARY, pretraining=Pretraining(epochs=30, trains_student=True, is_all=True))
class ActivationBoundaries(TermModule):
    """The squared hinge of margin 1 that puts the student's neurons on the teacher's side of zero, in every stage, for 30 of 240 epochs.

    Heo et al. 2019 (arXiv 1811.03233), the alternative loss, with connectors (convolution and BN) where shapes differ; stage l of L
    weighs 2^(l-L). 30 epochs before, nothing of it afterwards, weight 1: CRD's code and published command. The loss is torchdistill's. A
    teacher's neuron is active where its map after the ReLU is positive, which is where it is positive before; the student's connector
    reads the map as the stage gives it (after the ReLU in ResNets and VGG), CRD's before.
    """

    def __init__(self, context: TermContext) -> None:
        super().__init__()
        pairs = list(zip(context.student_maps, context.teacher_maps, strict=True))
        self.connectors = nn.ModuleList(nn.Identity() if s == t else convolutional_regressor(s, t, uses_relu=False) for s, t in pairs)
        self.weights = tuple(SCALE * 2.0 ** (stage + 1 - len(pairs)) for stage in range(len(pairs)))

    def pretrain(self, step: Step) -> Tensor:
        pairs = step.unrotated_maps()
        connected = [connector(student) for connector, (student, _) in zip(self.connectors, pairs, strict=True)]
        loss = mid_level_losses().AltActTransferLoss(hooked_pairs(len(pairs), self.weights), MARGIN, "mean")
        value: Tensor = loss(hooked(*connected), hooked(*(teacher for _, teacher in pairs)))
        return value
