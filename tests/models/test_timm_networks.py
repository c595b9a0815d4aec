"""timm models as teachers and students."""

import pytest
import torch

from hsakd.losses import student_loss
from hsakd.models import create_network

pytest.importorskip("timm")


def test_a_timm_model_gets_branches_on_its_stages() -> None:
    network = create_network("timm/resnet18", num_classes=5, seed=1)
    output = network(torch.randn(2, 3, 32, 32))
    assert output.logits.shape == (2, 5)
    assert [logits.shape for logits in output.joint_logits] == [(2, 20)] * 4
    (output.logits.sum() + sum(logits.sum() for logits in output.joint_logits)).backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


def test_its_weights_depend_on_the_seed_only() -> None:
    first, again = (create_network("timm/mobilenetv3_small_050", num_classes=5, seed=1).state_dict() for _ in range(2))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    other = create_network("timm/mobilenetv3_small_050", num_classes=5, seed=2).state_dict()
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


def test_an_unknown_timm_model_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="timm has no model 'resnet1800'"):
        create_network("timm/resnet1800", num_classes=5)


def test_a_pair_with_a_timm_teacher_learns_real_digits_for_an_epoch() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.nn.functional.interpolate(torch.tensor(digits.images[:256, None] / 16, dtype=torch.float32), 16).expand(-1, 3, -1, -1)
    labels = torch.tensor(digits.target[:256])
    teacher = create_network("timm/resnet10t", num_classes=10, seed=0).eval()
    student = create_network("timm/mobilenetv3_small_050", num_classes=10, seed=0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.02, momentum=0.9)
    totals = []
    for start in range(0, 256, 32):
        batch = images[start : start + 32]
        rows = torch.stack([torch.rot90(batch, turn, (2, 3)) for turn in range(4)], dim=1).flatten(0, 1)
        with torch.no_grad():
            taught = teacher(rows)
        total, _ = student_loss(student(rows), taught, labels[start : start + 32])
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert all(torch.isfinite(torch.tensor(totals)))
    assert totals[-1] < totals[0]
