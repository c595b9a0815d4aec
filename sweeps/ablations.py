"""Ablation studies as data: an arm is one line; what makes a trial of it is one function."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from hsakd.config import ObjectiveConfig, TrialConfig
from hsakd.records import PlanEntry
from sweeps.cli import AblationOptions
from sweeps.networks import network_facts
from sweeps.worklist import HSAKD_TEMPERATURE, KD_OBJECTIVE, Pair, TrialFactory, pairs_of, seeds_of

Terms = tuple[tuple[str, float], ...]
TURNS = ("0", "90", "180", "270")  # degrees


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One row of a study: what it changes of the published student. `ratio` is the part of the training set (few-shot rule).

    `distils_backbone`: from the plain backbone, as the KD row of Table 1, instead of the study's teacher.
    """

    label: str
    terms: Terms = (("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))
    temperature: float = HSAKD_TEMPERATURE
    taps: tuple[int, ...] | None = None
    ratio: float = 1.0
    rotations: tuple[int, ...] | None = None
    distils_backbone: bool = False


def terms_of(text: str) -> Terms:
    """Return the terms of "task+kl_q", each with weight 1."""
    return tuple((name, 1.0) for name in text.split("+"))


def loss_terms(options: AblationOptions, num_branches: int) -> list[Arm]:
    """The paper's "effect of loss terms", left to right."""
    del options, num_branches
    sums = ("task", "task+kl_q", "task+kl_q+kd", "task+kl_q+kl_p", "task+kl_q+kl_p+ce_q")
    return [Arm(label=text, terms=terms_of(text)) for text in sums]


def aux_placement(options: AblationOptions, num_branches: int) -> list[Arm]:
    """None, then every non-empty subset of the auxiliary classifiers, or the paper's: each alone, and all."""
    taps = range(1, num_branches + 1)
    sizes = (0, 1, num_branches) if options.placements == "paper" else range(num_branches + 1)
    subsets = dict.fromkeys(subset for size in sizes for subset in itertools.combinations(taps, size))
    terms = terms_of("task+kl_q" if options.objective == "task+kl_q" else "task+kl_q+kl_p")
    without = tuple(term for term in terms if term[0] != "kl_q")
    return [
        Arm(
            label="+".join(f"c{tap}" for tap in subset) or "none",
            terms=terms if subset else without,
            taps=None if len(subset) == num_branches else subset,
        )
        for subset in subsets
    ]


def temperature(options: AblationOptions, num_branches: int) -> list[Arm]:
    """The distillation temperature; the paper's is 3."""
    del num_branches
    return [Arm(label=f"temperature={value:g}", temperature=value) for value in options.temperatures]


def loss_weights(options: AblationOptions, num_branches: int) -> list[Arm]:
    """The weights of kl_q and kl_p, one at a time or every combination."""
    del num_branches
    grid = itertools.product(options.weights, options.weights)
    chosen = [pair for pair in grid if options.full_grid or 1.0 in pair]
    return [Arm(label=f"kl_q={q:g}, kl_p={p:g}", terms=(("task", 1.0), ("kl_q", q), ("kl_p", p))) for q, p in chosen]


def few_shot(options: AblationOptions, num_branches: int) -> list[Arm]:
    """A part of the training set for the student, by the authors' split; the teacher has seen all of it (Table 5)."""
    del num_branches
    name = "HSAKD*" if options.teacher == "joint" else "HSAKD"
    terms, t = KD_OBJECTIVE.terms, KD_OBJECTIVE.temperature
    kd = [Arm(label=f"KD {ratio:.0%}", terms=terms, temperature=t, ratio=ratio, distils_backbone=True) for ratio in options.ratios]
    return kd + [Arm(label=f"{name} {ratio:.0%}", ratio=ratio) for ratio in options.ratios]


def rotations(options: AblationOptions, num_branches: int) -> list[Arm]:
    """Which of the four quarter turns the student sees: the unrotated image, and every subset of the others."""
    del options, num_branches
    subsets = [(0, *others) for size in range(4) for others in itertools.combinations((1, 2, 3), size)]
    return [Arm(label="+".join(TURNS[turn] for turn in turns), rotations=None if len(turns) == 4 else turns) for turns in subsets]


STUDIES: dict[str, Callable[[AblationOptions, int], list[Arm]]] = {
    "loss-terms": loss_terms,
    "aux-placement": aux_placement,
    "temperature": temperature,
    "loss-weights": loss_weights,
    "few-shot": few_shot,
    "rotations": rotations,
}


def student_of(arm: Arm, factory: TrialFactory, pair: Pair, seed: int, teacher: TrialConfig) -> TrialConfig:
    """Return the arm's trial; an arm that reads no teacher and no auxiliary classifier is the plain student."""
    config, objective = factory.baseline(pair.student, seed), ObjectiveConfig(terms=arm.terms, temperature=arm.temperature)
    if arm.distils_backbone:
        config = factory.comparator(pair, seed, teacher.seed, objective)
    elif arm.terms != (("task", 1.0),):
        config = replace(factory.hsakd(pair, seed, teacher), objective=objective, taps=arm.taps, rotations=arm.rotations)
    return replace(config, data=replace(config.data, few_shot_ratio=arm.ratio))


def study_name(options: AblationOptions, study: str) -> str:
    """Return the name that results carry: the placement study with the full objective is a study of its own."""
    return f"{study}-full" if study == "aux-placement" and options.objective == "full" else study


def ablation_work(options: AblationOptions) -> list[tuple[PlanEntry, TrialConfig]]:
    """Return the plan lines of all studies asked for; the arms of a pair share teacher (KD: its plain sibling) and stream."""
    factory, lines = TrialFactory(options), []
    for study, pair, teacher_seed in itertools.product(options.study, pairs_of(options), range(options.teacher_seeds)):
        make_teacher = factory.joint_teacher if options.teacher == "joint" else factory.frozen_teacher
        teacher = make_teacher(pair.teacher, teacher_seed)
        arms = STUDIES[study](options, network_facts(pair.student).num_branches)
        name = "Teacher*" if options.teacher == "joint" else "Teacher"
        rows = [("teacher", name, 0, teacher)]
        if any(arm.distils_backbone for arm in arms):
            rows.append(("backbone", "Teacher", 0, factory.teacher_backbone(pair.teacher, teacher_seed)))
        rows += [("report", arm.label, seed, student_of(arm, factory, pair, seed, teacher)) for arm in arms for seed in seeds_of(options)]
        for purpose, method, seed, config in rows:
            more = {"seed": seed, "teacher_seed": teacher_seed, "study": study_name(options, study)}
            lines.append((pair.line(config, purpose=purpose, method=method, **more), config))
    return lines
