"""Realistic result folders: real configurations, records and Parquet, with invented accuracies."""

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hsakd.config import DataConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.records import EpochMetrics, PlanEntry, TrialRecord
from hsakd.store import ResultStore
from sweeps.presets import PRESETS, SLOW_LEARNERS, SLOW_LEARNING_RATE

sys.path.insert(0, str(Path(__file__).parent))  # for `browser`
NUM_EPOCHS = 4
ALL_TERMS = (("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))
LOSS_ARMS = {
    "task": ("task",),
    "task+kl_q": ("task", "kl_q"),
    "task+kl_q+kd": ("task", "kl_q", "kd"),
    "task+kl_q+kl_p": ("task", "kl_q", "kl_p"),
    "task+kl_q+kl_p+ce_q": ("task", "kl_q", "kl_p", "ce_q"),
}
PLACEMENTS: dict[str, tuple[int, ...]] = {"none": (), "c1": (1,), "c2": (2,), "c3": (3,), "c1+c2+c3": (1, 2, 3)}


class Folder:
    """A result folder under construction; with `is_papers` its trials have the paper's schedule and data (and short curves)."""

    def __init__(
        self,
        root: Path,
        *,
        dataset: str = "cifar100",
        teacher: str = "wrn_40_2",
        student: str = "wrn_16_2",
        epochs: int = NUM_EPOCHS,
        is_papers: bool = False,
    ) -> None:
        self.store = ResultStore(root)
        self.root, self.is_papers = root, is_papers
        self.dataset, self.teacher, self.student, self.epochs = dataset, teacher, student, epochs
        self.plan: list[PlanEntry] = []

    def config(
        self, network: str, *, validation: float = 0.0, terms: tuple[tuple[str, float], ...] = (("task", 1.0),), **fields: object
    ) -> TrialConfig:
        data = DataConfig(
            dataset=self.dataset, validation_fraction=validation, few_shot_ratio=float(str(fields.pop("few_shot_ratio", 1.0)))
        )
        optim = OptimConfig(epochs=self.epochs)
        if self.is_papers:
            preset = PRESETS["imagenet" if self.dataset == "imagenet" else "paper"]
            data = dataclasses.replace(data, image_size=preset.data.image_size, augmentation=preset.data.augmentation)
            optim = preset.branch_optim if fields.get("backbone") else preset.optim
            optim = dataclasses.replace(optim, learning_rate=SLOW_LEARNING_RATE) if network in SLOW_LEARNERS else optim
        objective = ObjectiveConfig(terms=terms, temperature=float(str(fields.pop("temperature", 3.0))))
        return TrialConfig(network=network, data=data, optim=optim, objective=objective, **fields)  # type: ignore[arg-type]

    def record(self, config: TrialConfig, top1: float, status: str = "complete", error: str = "") -> TrialRecord:
        has_validation = config.data.validation_fraction > 0
        return TrialRecord(
            trial_id=config.trial_id,
            status=status,
            error=error,
            role=config.role,
            network=config.network,
            dataset=config.data.dataset,
            seed=config.seed,
            terms="+".join(name for name, _ in config.objective.terms),
            teacher_network=config.teacher.network if config.teacher else "",
            teacher_regime=config.teacher_regime,
            teacher_trial_id=config.teacher.trial_id if config.teacher else "",
            num_epochs=config.optim.epochs,
            epochs_done=config.optim.epochs,
            top1_last=top1 if status == "complete" else None,
            top1_best_test=top1 + 0.25 if status == "complete" else None,
            top1_val=top1 - 1 if has_validation else None,
            top1_at_best_val=top1 - 0.5 if has_validation else None,
            diverged_step=17 if status == "diverged" else None,
            multi_adds=10_000_000,
            train_seconds=36.0,
            total_seconds=40.0,
            bank_hits=300,
            bank_misses=100,
            device="cpu",
            versions={"torch": "2.9", "python": "3.11"},
            finished_at=f"2026-01-01T00:00:{config.seed:02d}Z",
            config_json=config.to_json(),
        )

    def finish(self, config: TrialConfig, top1: float, status: str = "complete", error: str = "") -> None:
        curve = [top1 * (1 - math.exp(-(epoch + 1))) for epoch in range(self.epochs)]
        epochs = [
            EpochMetrics(
                trial_id=config.trial_id, epoch=i, learning_rate=0.05, loss=1.0 / (i + 1), loss_terms={"task": 1.0}, top1_test=value
            )
            for i, value in enumerate(curve)
        ]
        self.store.write_trial(self.record(config, top1, status, error), epochs)

    def add(
        self,
        config: TrialConfig,
        purpose: str,
        method: str,
        top1: float | None,
        *,
        status: str = "complete",
        error: str = "",
        **more: object,
    ) -> None:
        """Plan a trial, and finish it unless `top1` is None."""
        entry = PlanEntry(
            trial_id=config.trial_id,
            purpose=purpose,
            method=method,
            teacher=self.teacher,
            student=self.student,
            seed=config.seed,
            config_json=config.to_json(),
        )
        self.plan.append(dataclasses.replace(entry, **more))  # type: ignore[arg-type]
        if top1 is not None:
            self.finish(config, top1, status, error)

    def write(self) -> Path:
        self.store.write_plan(self.plan)
        return self.root

    def teachers(self, validation: float = 0.0) -> tuple[TrialConfig, TrialConfig, TrialConfig]:
        """Return the backbone, the frozen and the joint teacher."""
        terms = (("task", 1.0), ("ce_q", 1.0))
        backbone = self.config(self.teacher, validation=validation, taps=())
        frozen = self.config(self.teacher, validation=validation, terms=terms, backbone=backbone)
        return backbone, frozen, self.config(self.teacher, validation=validation, terms=terms)

    def pair(self, seeds: int = 3, unfinished: tuple[tuple[str, int], ...] = ()) -> None:
        """Add Table 1's rows of the pair."""
        backbone, frozen, joint = self.teachers()
        self.add(backbone, "backbone", "Teacher", 76.2)
        self.add(frozen, "teacher", "Teacher", 76.2)
        self.add(joint, "teacher", "Teacher*", 80.5)
        kd = (("task", 0.1), ("kd", 0.9))
        rows = (
            ("Student", None, (("task", 1.0),), 73.5),
            ("KD", backbone, kd, 75.1),
            ("HSAKD", frozen, ALL_TERMS, 77.1),
            ("HSAKD*", joint, ALL_TERMS, 78.6),
        )
        for method, teacher, terms, top1 in rows:
            for seed in range(seeds):
                config = self.config(self.student, terms=terms, teacher=teacher, seed=seed, taps=None if "HSAKD" in method else ())
                self.add(config, "report", method, None if (method, seed) in unfinished else top1 + 0.1 * seed)

    def studies(self, seeds: int = 3) -> None:
        """Add the arms of every ablation study, and a search."""
        _, _, joint = self.teachers()

        def arm(study: str, label: str, top1: float, **fields: object) -> None:
            for seed in range(seeds):
                fields_of_seed = {"terms": ALL_TERMS, "teacher": joint, **fields, "seed": seed}
                self.add(self.config(self.student, **fields_of_seed), "report", label, top1 + 0.1 * seed, study=study)  # type: ignore[arg-type]

        for i, (label, names) in enumerate(LOSS_ARMS.items()):
            teacher = {"teacher": joint} if len(names) > 1 else {"teacher": None}
            arm("loss-terms", label, 73.5 + i, terms=tuple((name, 1.0) for name in names), **teacher)
        for i, (label, taps) in enumerate(PLACEMENTS.items()):
            terms = (("task", 1.0), ("kl_q", 1.0)) if taps else (("task", 1.0),)
            arm("aux-placement", label, 73.5 + i, taps=taps, terms=terms, teacher=joint if taps else None)
        for temperature in (1.0, 2.0, 3.0, 5.0, 10.0):
            arm("temperature", f"temperature={temperature:g}", 78 - abs(math.log(temperature / 3)), temperature=temperature)
        for name in ("kl_q", "kl_p"):
            for weight in (0.1, 1.0, 10.0):
                terms = tuple((term, weight if term == name else 1.0) for term, _ in ALL_TERMS)
                arm("loss-weights", f"{name}={weight:g}", 78 - abs(math.log10(weight)), terms=terms)
        for ratio in (0.25, 0.5, 0.75, 1.0):
            arm("few-shot", f"{ratio:.0%}", 60 + 18 * ratio, few_shot_ratio=ratio)
        _, _, search_teacher = self.teachers(0.1)
        self.add(search_teacher, "teacher", "search", 79.0)
        for number in range(12):
            temperature, weight = (3.0, 1.0) if number == 0 else (1.0 + number * 0.7, 0.1 * 1.5**number)
            config = self.config(
                self.student,
                validation=0.1,
                terms=(("task", 1.0), ("kl_q", weight), ("kl_p", 1.0)),
                temperature=temperature,
                teacher=search_teacher,
            )
            status = "pruned" if number == 3 else "complete"
            more = {"study": f"{self.teacher}-{self.student}", "study_number": number}
            self.add(config, "search", "search", 77 - abs(temperature - 4) * 0.3, status=status, **more)
        for temperature in (3.0, 4.0):
            for seed in range(seeds):
                config = self.config(
                    self.student, validation=0.1, terms=ALL_TERMS, temperature=temperature, teacher=search_teacher, seed=seed
                )
                self.add(config, "confirm", "confirm", 76 + temperature, study=f"{self.teacher}-{self.student}")

    def await_tuned(self, seeds: int = 3) -> None:
        """Add the lines that the sweep writes for trials it does not know yet: they have no id."""
        line = PlanEntry(trial_id="", purpose="report", method="HSAKD-tuned", teacher=self.teacher, student=self.student)
        self.plan += [dataclasses.replace(line, seed=seed) for seed in range(seeds)]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Folder]:
    """Return a maker of result folders under the test's own folder."""
    return lambda name="run", **fields: Folder(tmp_path / name, **fields)


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Folder]:
    """Return a maker of result folders anywhere."""
    return Folder
