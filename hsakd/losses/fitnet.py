"""Hints (FitNet): the student's middle maps, regressed, equal the teacher's."""

from torch import Tensor
from torch.nn.functional import mse_loss

from hsakd.losses.library import LIBRARY
from hsakd.losses.maps import convolutional_regressor
from hsakd.losses.objective import Step, TermContext, TermModule, feature_module

HINT_STAGE = 2  # `--hint_layer 2` of CRD's train_student.py: the second stage


@feature_module("fitnet", library=LIBRARY)
class FitNet(TermModule):
    """Mean squared difference of stage 2's maps (Romero et al. 2015, arXiv 1412.6550, Eq. 3), regressor trained along.

    The paper trains the hint first, alone; we follow CRD's code, which trains it with the other terms. Weight 100: CRD's published
    command (Tian et al. 2020, scripts/run_cifar_distill.sh). torchdistill's ConvReg is the regressor; its loss is PyTorch's.
    """

    def __init__(self, context: TermContext) -> None:
        super().__init__()
        self.stage = min(HINT_STAGE, len(context.student_maps)) - 1
        self.regressor = convolutional_regressor(context.student_maps[self.stage], context.teacher_maps[self.stage], uses_relu=True)

    def forward(self, step: Step) -> Tensor:
        student, teacher = step.unrotated_maps()[self.stage]
        return mse_loss(self.regressor(student), teacher)
