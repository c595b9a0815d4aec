"""Variational information distillation (VID)."""

from torch import Tensor, nn

from hsakd.losses.library import LIBRARY, hooked, hooked_pairs, mid_level_losses
from hsakd.losses.maps import pooled_to_smaller
from hsakd.losses.objective import Step, TermContext, TermModule, feature_module

INITIAL_VARIANCE, EPS = 5.0, 1e-5  # the authors' code, as CRD has it


@feature_module("vid", library=LIBRARY)
class VariationalInformation(TermModule):
    """Negative log likelihood of the teacher's maps under a Gaussian whose mean is regressed from the student's, summed over all stages.

    Ahn et al. 2019 (arXiv 1904.05835), section 2, the Gaussian variational bound: three 1x1 convolutions, a variance per channel, the
    constant left out. Weight 1: CRD's published command. Loss and regressors are torchdistill's; maps of different sizes are pooled as
    CRD does.
    """

    def __init__(self, context: TermContext) -> None:
        super().__init__()
        from torchdistill.models.wrapper import Regressor4VID

        pairs = zip(context.student_maps, context.teacher_maps, strict=True)
        self.regressors = nn.ModuleList(Regressor4VID(s[0], t[0], t[0], EPS, INITIAL_VARIANCE) for s, t in pairs)

    def forward(self, step: Step) -> Tensor:
        pairs = [pooled_to_smaller(*pair) for pair in step.unrotated_maps()]
        predicted = [regressor(student) for regressor, (student, _) in zip(self.regressors, pairs, strict=True)]
        loss = mid_level_losses().VIDLoss(hooked_pairs(len(pairs)))
        value: Tensor = loss(hooked(*predicted), hooked(*(teacher for _, teacher in pairs)))
        return value
