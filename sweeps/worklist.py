"""Options -> the work-list: every trial of a sweep that is known beforehand, and the trials that a search will add."""

from dataclasses import dataclass, replace
from typing import Any

from hsakd.config import DataConfig, FolderConfig, NumericsConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.dataset_table import OWN_IMAGES, num_stored_images, stored_size
from hsakd.image_folder import PIXELS_PER_PADDING, scan_image_folder
from hsakd.records import PlanEntry
from hsakd.term_table import facts_of_terms
from sweeps.cli import STREAMED, SweepOptions
from sweeps.networks import network_facts
from sweeps.presets import (
    BACKBONE_METHODS,
    COMPARATORS,
    ONLINE,
    PRESETS,
    SLOW_LEARNERS,
    SLOW_LEARNING_RATE,
    TUNED,
    with_epochs,
)
from sweeps.space import SearchBudget
from sweeps.teacher_files import TeacherFile, TeacherFiles, teacher_files

TEACHER_TERMS = (("task", 1.0), ("ce_q", 1.0))  # Eq. 3
HSAKD_TEMPERATURE = 3.0  # the authors' code
KD_OBJECTIVE = ObjectiveConfig(terms=(("task", 0.1), ("kd", 0.9)), temperature=4.0)  # CRD's published KD command (Tian et al. 2020)
IMPORTED = OptimConfig(epochs=0, milestones=())
BACKWARD_FACTOR = 3.0  # a training row costs a forward and about two in the backward pass
VOC_TRAIN_IMAGES = 16_551  # of VOC 07+12
DETECTOR_AREA = 600 * 800  # pixels of the usual VOC image as detectors see it
DETECTOR_MULTI_ADDS = 56e9  # of pyramid, proposals and box head for such an image in training, counted with PyTorch's FLOP counter


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A teacher and a student by their network names."""

    teacher: str
    student: str

    @property
    def name(self) -> str:
        """TEACHER-STUDENT, also the study's name."""
        return f"{self.teacher}-{self.student}"

    def line(self, config: TrialConfig, *, purpose: str, method: str, **more: Any) -> PlanEntry:
        """Return a trial's line in the plan of this pair; `more` are the line's other columns."""
        own = {"teacher": self.teacher, "student": self.student, "trial_id": config.trial_id, "config_json": config.to_json()}
        return PlanEntry(purpose=purpose, method=method, **(own | more))


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What the search varies: the temperature, the weights of kl_q and kl_p, which branches are distilled (None: all), and, where the
    space asks for them, a weight per distilled branch (None: all 1) and the learning rate (None: the student's usual one)."""

    temperature: float = HSAKD_TEMPERATURE
    kl_q: float = 1.0
    kl_p: float = 1.0
    taps: tuple[int, ...] | None = None
    branch_weights: tuple[float, ...] | None = None
    learning_rate: float | None = None

    @property
    def objective(self) -> ObjectiveConfig:
        """The student's loss, Eq. 5."""
        terms = (("task", 1.0), ("kl_q", self.kl_q), ("kl_p", self.kl_p))
        return ObjectiveConfig(terms=terms, temperature=self.temperature, branch_weights=self.branch_weights)


PAPER_SETTING = Setting()
ONLINE_OBJECTIVE = ObjectiveConfig(terms=(("task", 1.0), ("ce_q", 1.0), ("kl_q", 1.0), ("kl_p", 1.0)), temperature=HSAKD_TEMPERATURE)


class TrialFactory:
    """Makes the configurations of one sweep; the same trial asked for twice is the same configuration."""

    def __init__(self, options: SweepOptions) -> None:
        preset = PRESETS[options.preset]
        self.data = data_of(options)
        self.search_data = replace(self.data, validation_fraction=preset.validation_fraction)
        self.optim, self.branch_optim = (_scheduled(optim, options) for optim in (preset.optim, preset.branch_optim))
        self.numerics = NumericsConfig(
            precision=options.precision,
            channels_last={"auto": None, "yes": True, "no": False}[options.channels_last],
            compile=options.compile,
            tf32=options.tf32,
            deterministic=options.deterministic,
            cudnn_benchmark=options.cudnn_benchmark,
            initialization=options.initialization,
        )
        self.student_numerics = replace(self.numerics, teacher_predictions=options.predictions, bank_dtype=options.bank_dtype)
        self.files = teacher_files(options)

    def student_learning_rate(self, network: str) -> float:
        """Return the learning rate of the paper's setting."""
        return self._optim(network, self.optim).learning_rate

    def _optim(self, network: str, optim: OptimConfig) -> OptimConfig:
        return replace(optim, learning_rate=SLOW_LEARNING_RATE) if network in SLOW_LEARNERS else optim

    def baseline(self, network: str, seed: int) -> TrialConfig:
        """The plain task, no branches: the Student row, and the frozen regime's backbone."""
        return TrialConfig(
            network=network, data=self.data, optim=self._optim(network, self.optim), numerics=self.numerics, taps=(), seed=seed
        )

    def _imported(self, file: TeacherFile, *, taps: tuple[int, ...] | None, objective: ObjectiveConfig) -> TrialConfig:
        """A trial that is read from a file and evaluated, not trained."""
        return TrialConfig(
            network=file.network, data=self.data, optim=IMPORTED, objective=objective, taps=taps, imported_sha256=file.sha256
        )

    def _files(self, network: str) -> TeacherFiles:
        return self.files.get(network, TeacherFiles())

    def teacher_backbone(self, network: str, seed: int) -> TrialConfig:
        """KD's teacher, and what the frozen regime's branches are trained on: from a file, or a baseline."""
        file = self._files(network).backbone
        return self.baseline(network, seed) if file is None else self._imported(file, taps=(), objective=ObjectiveConfig())

    def joint_teacher(self, network: str, seed: int, *, for_search: bool = False) -> TrialConfig:
        """Everything trained from scratch, or from a file; for searches trained on train minus validation."""
        file = self._files(network).joint
        if file is not None and not for_search:
            return self._imported(file, taps=None, objective=ObjectiveConfig(terms=TEACHER_TERMS))
        return self._trained_jointly(network, seed, for_search=for_search)

    def _trained_jointly(self, network: str, seed: int, *, for_search: bool) -> TrialConfig:
        data = self.search_data if for_search else self.data
        objective = ObjectiveConfig(terms=TEACHER_TERMS)
        return TrialConfig(
            network=network, data=data, optim=self._optim(network, self.optim), objective=objective, numerics=self.numerics, seed=seed
        )

    def frozen_teacher(self, network: str, seed: int) -> TrialConfig:
        """Branches trained on the frozen backbone, or the whole from a file."""
        file, backbone = self._files(network).frozen, self.teacher_backbone(network, seed)
        if file is not None:
            return replace(self._imported(file, taps=None, objective=ObjectiveConfig(terms=TEACHER_TERMS)), backbone=backbone)
        optim = self._optim(network, self.branch_optim)
        return replace(self._trained_jointly(network, seed, for_search=False), optim=optim, backbone=backbone)

    def kd(self, pair: Pair, seed: int, teacher_seed: int) -> TrialConfig:
        """Conventional distillation from the frozen regime's backbone."""
        return self.comparator(pair, seed, teacher_seed, KD_OBJECTIVE)

    def comparator(self, pair: Pair, seed: int, teacher_seed: int, objective: ObjectiveConfig) -> TrialConfig:
        """Distillation by any objective that needs no auxiliary classifiers, from the frozen regime's backbone."""
        teacher = self.teacher_backbone(pair.teacher, teacher_seed)
        return replace(self.baseline(pair.student, seed), objective=objective, numerics=self.student_numerics, teacher=teacher)

    def online(self, pair: Pair, seed: int) -> TrialConfig:
        """The student and the teacher network of a pair, both untrained at first, distilled into each other."""
        return TrialConfig(
            network=pair.student,
            data=self.data,
            optim=self._optim(pair.student, self.optim),
            objective=ONLINE_OBJECTIVE,
            numerics=self.numerics,
            seed=seed,
            peer=pair.teacher,
        )

    def hsakd(self, pair: Pair, seed: int, teacher: TrialConfig, setting: Setting = PAPER_SETTING) -> TrialConfig:
        """A student of `teacher`, on the same data."""
        optim = self._optim(pair.student, self.optim)
        return TrialConfig(
            network=pair.student,
            data=teacher.data,
            optim=optim if setting.learning_rate is None else replace(optim, learning_rate=setting.learning_rate),
            objective=setting.objective,
            numerics=self.student_numerics,
            taps=setting.taps,
            seed=seed,
            teacher=teacher,
        )


def _scheduled(optim: OptimConfig, options: SweepOptions) -> OptimConfig:
    """Return a preset's schedule with what the options change of it."""
    changes = {name: value for name in ("batch_size", "batch_shards") if (value := getattr(options, name)) is not None}
    return replace(optim if options.epochs is None else with_epochs(optim, options.epochs), **changes)


def data_of(options: SweepOptions) -> DataConfig:
    """Return the sweep's data; a user's images are listed and digested. Raises ValueError where they are not as they should be."""
    preset = PRESETS[options.preset].data
    if options.dataset == OWN_IMAGES:
        assert options.data_dir is not None
        found = scan_image_folder(options.data_dir.resolve())
        image_size = found.resolved_size(options.image_size)
        folder = FolderConfig(
            sha256=found.sha256,
            num_classes=len(found.classes),
            num_train_images=len(found.train),
            padding=image_size // PIXELS_PER_PADDING if options.padding is None else options.padding,
            has_flip=options.flip,
        )
        augmentation = options.augmentation or "shift"
        return DataConfig(
            dataset=OWN_IMAGES, image_size=image_size, train_subset=options.train_images, folder=folder, augmentation=augmentation
        )
    data = preset if options.dataset in (None, preset.dataset) else _usual_data(options.dataset or "", preset)
    sized = data if options.image_size is None else replace(data, image_size=options.image_size)
    return sized if options.train_images is None else replace(sized, train_subset=options.train_images)


def _usual_data(dataset: str, preset: DataConfig) -> DataConfig:
    """Return another data set than the preset's in the preset's place; ImageNet stays in its files."""
    if STREAMED in (dataset, preset.dataset):
        is_streamed = dataset == STREAMED
        return DataConfig(dataset=dataset, image_size=224 if is_streamed else None, augmentation="imagenet" if is_streamed else "shift")
    return replace(preset, dataset=dataset)


def pairs_of(options: SweepOptions) -> list[Pair]:
    """Return the sweep's pairs."""
    names = options.pairs or PRESETS[options.preset].pairs
    return [Pair(teacher=name.partition("-")[0], student=name.partition("-")[2]) for name in names]


def seeds_of(options: SweepOptions) -> range:
    """Return the student seeds."""
    return range(options.seeds if options.seeds is not None else len(PRESETS[options.preset].seeds))


def search_budget(options: SweepOptions) -> SearchBudget:
    """Return what each pair's study may spend."""
    if options.search_budget is not None:
        return SearchBudget.parse(options.search_budget)
    return SearchBudget(trials=options.trials if options.trials is not None else PRESETS[options.preset].num_search_trials)


def num_search_trials(options: SweepOptions) -> int:
    """Return the Optuna trials per pair, if none is pruned."""
    return search_budget(options).most_trials_at_full_cost


def known_work(options: SweepOptions) -> list[tuple[PlanEntry, TrialConfig]]:
    """Return the plan lines whose configurations are known before any search, requirements included, each trial possibly many times."""
    factory, lines = TrialFactory(options), []

    def add(pair: Pair, purpose: str, method: str, config: TrialConfig, *, seed: int = 0, teacher_seed: int = 0) -> None:
        lines.append((pair.line(config, purpose=purpose, method=method, seed=seed, teacher_seed=teacher_seed), config))

    methods = options.methods
    for pair in pairs_of(options):
        for teacher_seed in range(options.teacher_seeds):
            joint = factory.joint_teacher(pair.teacher, teacher_seed)
            frozen = factory.frozen_teacher(pair.teacher, teacher_seed)
            if set(BACKBONE_METHODS) & set(methods):
                add(pair, "backbone", "Teacher", factory.teacher_backbone(pair.teacher, teacher_seed), teacher_seed=teacher_seed)
            if "HSAKD" in methods:
                add(pair, "teacher", "Teacher", frozen, teacher_seed=teacher_seed)
            if "HSAKD*" in methods or TUNED in methods:
                add(pair, "teacher", "Teacher*", joint, teacher_seed=teacher_seed)
            for seed in seeds_of(options):
                rows = {
                    "KD": factory.kd(pair, seed, teacher_seed),
                    **{name: factory.comparator(pair, seed, teacher_seed, objective) for name, objective in COMPARATORS.items()},
                    "HSAKD": factory.hsakd(pair, seed, frozen),
                    "HSAKD*": factory.hsakd(pair, seed, joint),
                }
                if TUNED in methods and "HSAKD*" not in methods:  # what was searched is reported beside what it is compared with
                    add(pair, "report", "HSAKD*", rows["HSAKD*"], seed=seed, teacher_seed=teacher_seed)
                if "Student" in methods and teacher_seed == 0:
                    add(pair, "report", "Student", factory.baseline(pair.student, seed), seed=seed)
                if ONLINE in methods and teacher_seed == 0:
                    add(pair, "report", ONLINE, factory.online(pair, seed), seed=seed)
                for method, config in rows.items():
                    if method in methods:
                        add(pair, "report", method, config, seed=seed, teacher_seed=teacher_seed)
        if TUNED in methods:
            add(pair, "teacher", "search", factory.joint_teacher(pair.teacher, 0, for_search=True))
    return lines


def training_multi_adds(config: TrialConfig, num_images: int, *, asks_teacher: bool = True) -> float:
    """Return a trial's multiply-adds: images x epochs x rotations x (student forward and backward, teacher forward unless it is kept)."""
    if config.detection is not None:
        area = config.detection.shorter_side**2 * 4 / 3
        facts = network_facts(config.network)
        per_image = area * (facts.multi_adds / facts.image_size**2 + DETECTOR_MULTI_ADDS / DETECTOR_AREA)
        return BACKWARD_FACTOR * per_image * num_images * config.optim.epochs
    reads = facts_of_terms(name for name, _ in config.objective.terms)
    rotations = config.num_rotations if reads.is_rotated else 1
    fed = rotations if config.rotations is None else min(rotations, len(config.rotations))
    own = _multi_adds(config, with_branches=reads.reads_branches)
    frozen = _multi_adds(config, with_branches=False) if config.backbone is not None else 0.0  # forward only
    per_image = fed * (BACKWARD_FACTOR * (own - frozen) + frozen)
    if config.peer is not None:
        peer = replace(config, network=config.peer)
        per_image += fed * BACKWARD_FACTOR * _multi_adds(peer, with_branches=reads.reads_branches)
    if config.teacher is not None and asks_teacher:
        per_image += rotations * _multi_adds(config.teacher, with_branches=reads.reads_teacher_branches)
    epochs = config.optim.epochs * (1 + reads.pretraining_share)
    return per_image * num_images * epochs


def num_train_images(config: TrialConfig) -> int:
    """Return the training images, as far as the configuration tells."""
    folder = config.data.folder
    usual = VOC_TRAIN_IMAGES if config.detection is not None else num_stored_images(config.data.dataset)
    stored = usual if folder is None else folder.num_train_images
    images = config.data.train_subset or stored
    return round(images * config.data.few_shot_ratio * (1 - config.data.validation_fraction))


def _multi_adds(config: TrialConfig, *, with_branches: bool) -> float:
    """Return a network's multiply-adds for one row of the trial's image size."""
    facts = network_facts(config.network)
    taps = config.taps if config.taps is not None else range(1, facts.num_branches + 1)
    counted = facts.multi_adds + (sum(facts.branch_multi_adds[tap - 1] for tap in taps) if with_branches else 0)
    size = config.data.image_size or stored_size(config.data.dataset)
    return counted * (size / facts.image_size) ** 2
