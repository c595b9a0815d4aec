"""Every comparator's term against its paper's formula written as loops over images, classes, channels and pixels."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from hsakd.config import ObjectiveConfig, OptimConfig
from hsakd.losses import LOSS_TERMS, Objective, Step
from hsakd.losses.contrastive import ContrastiveRepresentation
from hsakd.losses.correlation import GAMMA, gaussian_correlation
from hsakd.losses.objective import TermContext, TermModule, build_module
from hsakd.losses.relational import pair_distances
from sweeps.presets import COMPARATORS

B, N, T = 4, 5, 2.5
CONTEXT = TermContext(
    student_maps=((3, 8, 8), (4, 4, 4), (5, 2, 2)),
    teacher_maps=((6, 8, 8), (8, 4, 4), (7, 2, 2)),
    student_width=5,
    teacher_width=7,
    train_labels=torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 0]),
    seed=3,
)


def make_step(context: TermContext = CONTEXT, *, num_rotations: int = 1) -> Step:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(B, num_rotations, *shape, generator=generator, dtype=torch.float64)

    return Step(
        labels=torch.tensor([4, 0, 2, 0]),
        indices=torch.tensor([4, 0, 2, 10]),
        student_logits=(draw(N) * 2).requires_grad_(),
        teacher_logits=draw(N) * 2,
        student_maps=tuple(draw(*shape).requires_grad_() for shape in context.student_maps),
        teacher_maps=tuple(draw(*shape) for shape in context.teacher_maps),
        student_embedding=draw(context.student_width).requires_grad_(),
        teacher_embedding=draw(context.teacher_width),
        temperature=T,
        epoch=20,
        num_epochs=24,
        number=7,
    )


def module_of(name: str, context: TermContext = CONTEXT) -> TermModule:
    return build_module(name, context).double()


def rows(tensor: Tensor | None) -> list[list[float]]:
    assert tensor is not None
    return [[float(value) for value in row] for row in tensor[:, 0].detach().flatten(1)]


def logits_of(step: Step) -> tuple[list[list[float]], list[list[float]]]:
    return rows(step.student_logits), rows(step.teacher_logits)


def softmax(values: list[float], temperature: float = T) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def norm(a: list[float]) -> float:
    return math.sqrt(dot(a, a))


def minus(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def huber(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def attention_reference(step: Step) -> float:
    total = 0.0
    for student, teacher in zip(step.student_maps, step.teacher_maps, strict=True):
        size = student.shape[-1]
        for b in range(B):
            attentions = []
            for maps in (student[b, 0].detach(), teacher[b, 0]):
                attention = [sum(float(maps[c, i, j]) ** 2 for c in range(len(maps))) for i in range(size) for j in range(size)]
                attentions.append([value / norm(attention) for value in attention])
            total += sum(value**2 for value in minus(*attentions)) / (B * size * size)
    return total


def similarity_reference(step: Step) -> float:
    matrices = []
    for maps in (rows(step.student_maps[-1]), rows(step.teacher_maps[-1])):
        gram = [[dot(a, b) for b in maps] for a in maps]
        matrices.append([[value / norm(row) for value in row] for row in gram])
    return sum((matrices[0][i][j] - matrices[1][i][j]) ** 2 for i in range(B) for j in range(B)) / B**2


def relational_reference(step: Step) -> float:
    distances, angles = [], []
    for e in (rows(step.student_embedding), rows(step.teacher_embedding)):
        pairs = [[norm(minus(a, b)) for b in e] for a in e]
        mean = sum(sum(row) for row in pairs) / (B * (B - 1))
        distances.append([value / mean for row in pairs for value in row])
        cosines = []
        for i in range(B):
            for j in range(B):
                for k in range(B):
                    left, right = minus(e[j], e[i]), minus(e[k], e[i])
                    cosines.append(dot(left, right) / (norm(left) * norm(right)) if i not in (j, k) else 0.0)
        angles.append(cosines)
    of_distances = sum(huber(a, b) for a, b in zip(*distances, strict=True)) / B**2
    return 25 * of_distances + 50 * sum(huber(a, b) for a, b in zip(*angles, strict=True)) / B**3


def probabilistic_reference(step: Step) -> float:
    conditionals = []
    for e in (rows(step.teacher_embedding), rows(step.student_embedding)):
        kernel = [[(dot(a, b) / (norm(a) * norm(b)) + 1) / 2 for b in e] for a in e]
        conditionals.append([[value / sum(row) for value in row] for row in kernel])
    return sum(kl(p, q) for p, q in zip(*conditionals, strict=True)) / B**2


def pearson(a: list[float], b: list[float]) -> float:
    x, y = ([value - sum(values) / len(values) for value in values] for values in (a, b))
    return dot(x, y) / (norm(x) * norm(y))


def dist_reference(step: Step) -> float:
    students, teachers = ([softmax(row) for row in logits] for logits in logits_of(step))
    inter = sum(1 - pearson(students[b], teachers[b]) for b in range(B)) / B
    columns = [([row[n] for row in students], [row[n] for row in teachers]) for n in range(N)]
    return T**2 * (inter + sum(1 - pearson(*column) for column in columns) / N)


def standardized_reference(step: Step) -> float:
    total = 0.0
    for student, teacher in zip(*logits_of(step), strict=True):
        standard = []
        for logits in (teacher, student):
            mean = sum(logits) / N
            deviation = math.sqrt(sum((value - mean) ** 2 for value in logits) / (N - 1))
            standard.append(softmax([(value - mean) / deviation for value in logits]))
        total += T**2 * kl(*standard) / B
    return total


def target_class_reference(step: Step) -> float:
    total = 0.0
    for b, (student, teacher) in enumerate(zip(*logits_of(step), strict=True)):
        target = [softmax(teacher)[step.labels[b]], softmax(student)[step.labels[b]]]
        total += T**2 * kl([target[0], 1 - target[0]], [target[1], 1 - target[1]]) / B
    return total


def nontarget_reference(step: Step) -> float:
    total = 0.0
    for b, logits in enumerate(zip(*logits_of(step), strict=True)):
        others = [softmax([value for n, value in enumerate(values) if n != step.labels[b]]) for values in logits]
        total += T**2 * kl(others[1], others[0]) / B
    return total


REFERENCES: dict[str, Callable[[Step], float]] = {
    "at": attention_reference,
    "sp": similarity_reference,
    "rkd": relational_reference,
    "pkt": probabilistic_reference,
    "dist": dist_reference,
    "kd_standardized": standardized_reference,
    "tckd": target_class_reference,
    "nckd": nontarget_reference,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_term_equals_its_papers_formula_written_as_loops(name: str) -> None:
    step = make_step()
    compute = LOSS_TERMS[name].compute
    assert compute is not None
    assert compute(step).item() == pytest.approx(REFERENCES[name](step), rel=2e-5)


def test_rkds_distances_and_their_gradients_are_torchdistills() -> None:
    from torchdistill.losses.mid_level import RKDLoss

    embeddings = torch.randn(16, 32, generator=torch.Generator().manual_seed(2))
    embeddings[3] = embeddings[5]  # equal ones, whose distance is bounded from below
    given, weights = [embeddings.clone().requires_grad_() for _ in range(2)], torch.rand(16, 16, generator=torch.Generator().manual_seed(3))
    distances = [distance(values) for distance, values in zip((pair_distances, RKDLoss.pdist), given, strict=True)]
    assert torch.equal(*distances)
    for distance in distances:
        (distance * weights).sum().backward()
    assert torch.equal(*(values.grad for values in given))


def test_fitnet_is_the_mean_square_of_the_regressed_second_stage() -> None:
    step, module = make_step(), module_of("fitnet")
    regressed, teacher = rows(module.regressor(step.student_maps[1][:, 0])[:, None]), rows(step.teacher_maps[1])
    reference = sum((a - b) ** 2 for s, t in zip(regressed, teacher, strict=True) for a, b in zip(s, t, strict=True))
    assert module(step).item() == pytest.approx(reference / (B * 8 * 4 * 4))


def test_vid_is_the_negative_log_likelihood_without_its_constant() -> None:
    step, module = make_step(), module_of("vid")
    with torch.no_grad():
        module.regressors[1].soft_plus_param.add_(torch.arange(8) / 4)
    total = 0.0
    for stage, regressor in enumerate(module.regressors):
        mean, teacher = regressor.regressor(step.student_maps[stage][:, 0]), step.teacher_maps[stage][:, 0]
        for b in range(B):
            for c in range(teacher.shape[1]):
                variance = math.log(1 + math.exp(regressor.soft_plus_param[c].item())) + 1e-5
                squares = ((mean[b, c] - teacher[b, c]) ** 2).sum().item()
                total += 0.5 * (squares / variance / teacher[0, 0].numel() + math.log(variance)) / (B * teacher.shape[1])
    assert module.regressors[0](step.student_maps[0][:, 0])[1].mean().item() == pytest.approx(5.0)
    assert module(step).item() == pytest.approx(total)


def test_cc_is_the_mean_square_of_the_gaussian_correlations_difference() -> None:
    step, module = make_step(), module_of("cc")
    matrices = []
    for embedding, linear in ((step.student_embedding, module.embed_student), (step.teacher_embedding, module.embed_teacher)):
        assert embedding is not None
        f = rows(linear(embedding))
        cosines = [[dot(a, b) / (norm(a) * norm(b)) for b in f] for a in f]
        series = [[1 + 2 * GAMMA * x + (2 * GAMMA * x) ** 2 / 2 for x in row] for row in cosines]
        matrices.append([[math.exp(-2 * GAMMA) * value for value in row] for row in series])
    reference = sum((matrices[0][i][j] - matrices[1][i][j]) ** 2 for i in range(B) for j in range(B)) / B**2
    assert module(step).item() == pytest.approx(reference)


def test_ccs_series_is_near_the_gaussian_of_the_distance() -> None:
    unit = torch.nn.functional.normalize(torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=1)
    gaussian = torch.exp(-GAMMA * torch.cdist(unit, unit) ** 2)
    assert torch.allclose(gaussian_correlation(unit), gaussian, atol=0.05)


def test_ab_is_the_hinge_that_puts_neurons_on_the_teachers_side() -> None:
    step, module = make_step(), module_of("ab")
    total = 0.0
    for stage, connector in enumerate(module.connectors):
        connected, teacher = connector(step.student_maps[stage][:, 0]).flatten().tolist(), step.teacher_maps[stage].flatten().tolist()
        for s, t in zip(connected, teacher, strict=True):
            hinge = max(0.0, 1 - s) if t > 0 else max(0.0, 1 + s)
            total += 2.0 ** (stage + 1 - 3) * 3 / 1000 * hinge**2 / B
    assert module.pretrain(step).item() == pytest.approx(total)


def test_review_is_the_pyramid_loss_of_fused_maps() -> None:
    step, module = make_step(), module_of("review")
    students = [*(maps[:, 0] for maps in step.student_maps), adaptive_avg_pool2d(step.student_maps[-1][:, 0], 1)]
    teachers = [*(maps[:, 0] for maps in step.teacher_maps), adaptive_avg_pool2d(step.teacher_maps[-1][:, 0], 1)]
    total, residual = 0.0, None
    for level in (3, 2, 1, 0):
        fusion = module.fusions[level]
        own = fusion.conv1(students[level])
        if residual is not None:
            above = residual.repeat_interleave(own.shape[-1] // residual.shape[-1], 2).repeat_interleave(
                own.shape[-1] // residual.shape[-1], 3
            )
            gates = fusion.attention_conv(torch.cat([own, above], dim=1))
            own = own * gates[:, :1] + above * gates[:, 1:]
        residual = own
        fused, value, weights, weight = fusion.conv2(own), 0.0, 0.0, 1.0
        for size in [fused.shape[-1], *(size for size in (4, 2, 1) if size < fused.shape[-1])]:
            difference = adaptive_avg_pool2d(fused, size) - adaptive_avg_pool2d(teachers[level], size)
            value += weight * difference.square().mean().item()
            weights, weight = weights + weight, weight / 2
        total += value / weights
    assert module(step).item() == pytest.approx(total)


def crd_case() -> tuple[ContrastiveRepresentation, Tensor, Tensor, Tensor, Tensor]:
    module, generator = module_of("crd"), torch.Generator().manual_seed(5)
    assert isinstance(module, ContrastiveRepresentation)
    student, teacher = (torch.nn.functional.normalize(torch.randn(B, 128, generator=generator, dtype=torch.float64), dim=1) for _ in "st")
    own = torch.tensor([4, 0, 2, 10])
    chosen = torch.cat([own[:, None], torch.randint(12, (B, 6), generator=generator)], dim=1)
    return module, student, teacher, own, chosen


def test_crd_is_noise_contrastive_estimation_in_both_directions() -> None:
    module, student, teacher, own, chosen = crd_case()
    n, negatives, total = 12, chosen.shape[1] - 1, 0.0
    for memory, anchors in ((module.memory_teacher, student), (module.memory_student, teacher)):
        scores = [[math.exp(dot(memory[i].tolist(), anchors[b].tolist()) / 0.07) for i in chosen[b]] for b in range(B)]
        constant = n * sum(sum(row) for row in scores) / (B * (negatives + 1))
        noise = negatives / n
        for row in scores:
            total -= math.log(row[0] / constant / (row[0] / constant + noise + 1e-7)) / B
            total -= sum(math.log(noise / (score / constant + noise + 1e-7)) for score in row[1:]) / B
    before = module.memory_student.clone()
    assert module.contrast(student, teacher, own, chosen).item() == pytest.approx(total)
    for b, image in enumerate(own.tolist()):
        mixed = 0.5 * before[image] + 0.5 * student[b]
        assert torch.allclose(module.memory_student[image], mixed / mixed.norm())
    assert torch.equal(module.memory_student[1], before[1])


def test_crd_equals_torchdistills_for_given_negatives() -> None:
    from torchdistill.losses.mid_level import CRDLoss

    module, student, teacher, own, chosen = crd_case()
    theirs = CRDLoss("s", "e", "t", 128, 12, chosen.shape[1] - 1, 12).double()
    theirs.memory_v1.copy_(module.memory_student)
    theirs.memory_v2.copy_(module.memory_teacher)
    for _ in range(2):  # the second time with kept constants and updated memories
        given = {"s": {"output": student}, "e": {"input": {"pos_idx": own, "contrast_idx": chosen}}}
        expected = theirs(given, {"t": {"output": teacher}})
        assert module.contrast(student, teacher, own, chosen).item() == pytest.approx(expected.item(), rel=1e-6)


def test_crds_negatives_are_all_images_of_other_classes_and_depend_on_seed_and_step_only() -> None:
    module, step = module_of("crd"), make_step()
    assert isinstance(module, ContrastiveRepresentation)
    assert module.num_negatives == 8  # 12 images, 4 of the largest class
    seen = torch.cat([module.negatives(replace(step, number=number)) for number in range(200)], dim=1)
    for b, label in enumerate(step.labels.tolist()):
        assert sorted(seen[b].unique().tolist()) == [i for i, other in enumerate(CONTEXT.train_labels.tolist()) if other != label]
    assert torch.equal(module.negatives(step), module_of("crd").negatives(step))
    assert not torch.equal(module.negatives(step), module.negatives(replace(step, number=8)))


def test_sskd_is_the_divergence_over_rotated_rows_and_over_similarities_of_the_least_wrong() -> None:
    from torchdistill.losses.mid_level import SSKDLoss

    step, module = make_step(num_rotations=4), module_of("sskd_similarity")
    compute = LOSS_TERMS["sskd_classes"].compute
    assert compute is not None
    total = 0.0
    for b in range(B):
        for j in (1, 2, 3):
            pair = [softmax(logits[b, j].tolist()) for logits in (step.required_teacher_logits(), step.student_logits)]
            total += T**2 * kl(*pair) / (3 * B)
    assert compute(step).item() == pytest.approx(total)

    student, teacher = module.project_student(step.student_embedding), module.project_teacher(step.teacher_embedding)
    found = []
    for b in range(B):
        for j in (1, 2, 3):
            cosines = [
                [dot(e[b, j].tolist(), e[i, 0].tolist()) / (norm(e[b, j].tolist()) * norm(e[i, 0].tolist())) for i in range(B)]
                for e in (teacher, student)
            ]
            rank = sum(value > cosines[0][b] for value in cosines[0])
            found.append((rank, kl(softmax(cosines[0], 0.5), softmax(cosines[1], 0.5)) * 0.25))
    found.sort(key=lambda item: item[0])  # stable: rows of one rank stay in order
    num_wrong = sum(rank > 0 for rank, _ in found)
    assert 0 < num_wrong < len(found)
    kept = found[: len(found) - num_wrong + int(0.75 * num_wrong)]
    assert module(step).item() == pytest.approx(sum(value for _, value in kept) / len(kept))

    flat = {key: {"output": value.flatten(0, 1)} for key, value in (("l", step.student_logits), ("s", student))}
    taught = {key: {"output": value.flatten(0, 1)} for key, value in (("l", step.required_teacher_logits()), ("s", teacher))}
    all_kept = {"kl_temp": T, "ss_temp": 0.5, "tf_temp": T, "ss_ratio": 0.75, "tf_ratio": 1.0}
    theirs = SSKDLoss("l", "l", "s", "s", **all_kept, loss_weights=[0.0, 0.0, 0.0, 1.0])
    assert theirs(flat, taught, step.labels).item() == pytest.approx(total)


def test_sskds_teacher_learns_which_image_a_rotated_one_comes_from() -> None:
    step, module = make_step(num_rotations=4), module_of("sskd_similarity")
    teacher = module.project_teacher(step.teacher_embedding)
    total = 0.0
    for b in range(B):
        for j in (1, 2, 3):
            cosines = [dot(teacher[b, j].tolist(), e) / (norm(teacher[b, j].tolist()) * norm(e)) for e in teacher[:, 0].tolist()]
            total -= math.log(softmax(cosines, 1.0)[b]) / (3 * B)
    assert module.pretrain(step).item() == pytest.approx(total)
    module.pretrain(step).backward()
    assert all(parameter.grad is not None for parameter in module.project_teacher.parameters())
    assert all(parameter.grad is None for parameter in module.project_student.parameters())


@pytest.mark.parametrize("sizes", [(16, 8), (8, 16), (4, 16), (8, 8), (8, 6)])
@pytest.mark.parametrize("name", ["fitnet", "at", "vid", "ab", "review", "sp"])
def test_maps_of_other_sizes_are_brought_together(name: str, sizes: tuple[int, int]) -> None:
    student, teacher = sizes
    context = replace(
        CONTEXT,
        student_maps=tuple((c, student >> stage, student >> stage) for stage, (c, _, _) in enumerate(CONTEXT.student_maps)),
        teacher_maps=tuple((c, max(1, teacher >> stage), max(1, teacher >> stage)) for stage, (c, _, _) in enumerate(CONTEXT.teacher_maps)),
    )
    step, term = make_step(context), LOSS_TERMS[name]
    if term.compute is not None:
        value = term.compute(step)
    else:
        module = module_of(name, context)
        value = module.pretrain(step) if term.pretraining is not None else module(step)
    assert torch.isfinite(value)


def test_a_modules_initial_weights_depend_on_term_and_seed_only() -> None:
    torch.manual_seed(11)
    untouched = torch.get_rng_state()
    first, again = build_module("vid", CONTEXT), build_module("vid", CONTEXT)
    other = build_module("vid", replace(CONTEXT, seed=4))
    assert torch.equal(torch.get_rng_state(), untouched)
    for name, weights in first.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name])
    assert not torch.equal(first.regressors[0].regressor[0].weight, other.regressors[0].regressor[0].weight)


def test_warm_ups_keep_their_share_of_any_schedule() -> None:
    compute = LOSS_TERMS["nckd"].compute
    assert compute is not None
    step = make_step()
    full = compute(step).item()
    for epoch, num_epochs, share in ((0, 240, 0.05), (9, 240, 0.5), (19, 240, 1.0), (0, 24, 0.5), (1, 24, 1.0)):
        assert compute(replace(step, epoch=epoch, num_epochs=num_epochs)).item() == pytest.approx(full * share)
    review = module_of("review")
    assert review(replace(step, epoch=0, num_epochs=240)).item() == 0
    assert review(replace(step, epoch=5, num_epochs=240)).item() == pytest.approx(review(step).item() / 4)


def test_pretraining_is_declared_and_scales_with_the_schedule() -> None:
    optim = OptimConfig()
    stage = LOSS_TERMS["sskd_similarity"].pretraining
    assert stage is not None
    assert (stage.schedule(optim).epochs, stage.schedule(optim).milestones) == (60, (30, 45))
    assert stage.schedule(replace(optim, epochs=40, milestones=())).epochs == 10
    objective = Objective.from_config(COMPARATORS["AB"])
    assert objective.training_proper().names == ("task", "kd")
    assert Objective.from_config(COMPARATORS["SSKD"]).training_proper().names[-1] == "sskd_similarity"
    both = Objective.from_config(ObjectiveConfig(terms=(("ab", 1.0), ("sskd_similarity", 1.0))))
    with pytest.raises(ValueError, match="accepted: at most one that is pre-trained"):
        both.pretraining()


def test_terms_that_need_the_library_say_so_and_its_absence_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsakd.losses.objective.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"the loss term at needs torchdistill: pip install '\.\[comparators\]'"):
        Objective.from_config(COMPARATORS["AT"])
    Objective.from_config(COMPARATORS["DKD"])
