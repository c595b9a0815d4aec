"""A plain reference step with the published semantics: live teacher, all branches, NCHW, loops. Slow and obvious on purpose."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hsakd.models import HierarchicalNet


def reference_losses(
    student: HierarchicalNet, teacher: HierarchicalNet, images: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the total and (task, kl_q, kl_p) of images [B, 3, H, W]; section 3.3 of the paper, weights 1."""
    rows = torch.stack([torch.rot90(image, turns, dims=(1, 2)) for image in images for turns in range(4)])
    teacher.eval()
    with torch.no_grad():
        said = teacher(rows)
    output = student(rows)
    task = F.cross_entropy(output.logits[0::4], labels)

    def divergence(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        target = F.softmax(teacher_logits / temperature, dim=1)
        return F.kl_div(F.log_softmax(student_logits / temperature, dim=1), target, reduction="batchmean") * temperature**2

    kl_q = torch.zeros_like(task)
    for teacher_joint, student_joint in zip(said.joint_logits, output.joint_logits, strict=True):
        kl_q = kl_q + divergence(teacher_joint, student_joint)
    kl_p = divergence(said.logits, output.logits)
    return task + kl_q + kl_p, {"task": task, "kl_q": kl_q, "kl_p": kl_p}
