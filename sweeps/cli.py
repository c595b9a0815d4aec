"""Options of a sweep, checked at the boundary. Imports neither torch nor ray, so that --help is quick."""

import math
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from hsakd.config import DETECTION_DATASET
from hsakd.dataset_table import DATASET_TABLE, OWN_IMAGES
from hsakd.network_table import network_table
from hsakd.result_folder import check_trials
from sweeps.networks import is_network, network_facts
from sweeps.packing import parse_fractions
from sweeps.presets import DEFAULT_METHODS, METHODS, PRESETS, SLOW_LEARNERS, SLOW_LEARNING_RATE, needs_library, needs_whole_batches
from sweeps.space import SearchBudget, SearchSpace, read_space

if TYPE_CHECKING:
    PresetName = str
else:
    PresetName = Literal[tuple(PRESETS)]

MOST_TRIALS = 100_000  # of a study: a forecast counts each
FIELD_OPTIONS = {"train_subset": "--train-images", "few_shot_ratio": "--ratios", "image_size": "--image-size"}
DATASET_NAMES = tuple(sorted(DATASET_TABLE))
STREAMED = "imagenet"  # the augmentation whose images stay in their files, and the data set that has it


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOptions:
    """Train teachers and students of every pair, search HSAKD's setting with Optuna, and store every result under --out.

    Run the same command again after any interruption: it does exactly what is missing.
    """

    out: Path
    """Result folder; shared by all nodes."""
    gpus: int = 0
    """Most GPUs used at once; 0 trains on the CPU."""
    preset: PresetName = "paper"
    """Data, pairs and schedule."""
    pairs: tuple[str, ...] = ()
    """TEACHER-STUDENT names; default: the preset's."""
    methods: tuple[str, ...] = DEFAULT_METHODS
    """Table rows; beside the default ones, the comparators of Table 1 and later ones (FitNet AT AB VID ...)."""
    seeds: int | None = None
    """Number of student seeds; default: the preset's."""
    teacher_seeds: int = 1
    """Number of teacher seeds (the paper has one)."""
    trials: int | None = None
    """Optuna trials per pair; default: the preset's."""
    search_budget: str | None = None
    """Instead of --trials: 20 (trials) or 12x (as much as 12 full student runs; pruned trials count in part)."""
    space: Path | None = None
    """TOML file of other ranges to search, of lines such as temperature = [1, 10], kl_p = 1.0 (fixed) or placement = ["1+2", "3"]; the
    other keys are kl_q, branch_weight and learning_rate."""
    top_k: int | None = None
    """Settings of each study that are confirmed with all seeds; default: the preset's."""
    epochs: int | None = None
    """Epochs of every training, to which milestones are scaled; default: the preset's."""
    train_images: int | None = None
    """Train on a stratified part of the training set, of so many images; default: the preset's (1000 for fashion, else all)."""
    batch_size: int | None = None
    """Images of a step, before rotation; default: the preset's."""
    batch_shards: int | None = None
    """Equal parts of a batch with batch statistics of their own, as on so many GPUs; default: the preset's (8 for ImageNet, else 1)."""
    dataset: str | None = None
    """Another data set than the preset's; imagefolder: your own images, in train/CLASS/ and val/CLASS/ of --data-dir."""
    image_size: int | None = None
    """Side in pixels that images are resized to; default: the preset's, or as stored."""
    augmentation: Literal["shift", "imagenet"] | None = None
    """Of an imagefolder: shifts and flips of images in memory (default), or ImageNet's resized crops of images that stay in their files."""
    padding: int | None = None
    """Pixels that random crops shift an imagefolder's images by; default: an eighth of the side."""
    flip: bool = True
    """Whether an imagefolder's images are mirrored at random (--no-flip for digits, text, signs)."""
    data_dir: Path | None = None
    """Where data sets lie (or go, with --download)."""
    download: bool = False
    """Fetch the data set into --data-dir if it isn't there."""
    pruner: Literal["none", "median", "hyperband"] = "none"
    """Optuna pruner of search trials, on validation accuracy; the paper's setting is never pruned."""
    predictions: Literal["live", "bank"] = "live"
    """Ask the teacher at each step, or keep its answers on disk."""
    bank_dir: Path | None = None
    """Node-local folder of teacher banks; default: hsakd-banks in $SLURM_TMPDIR, $TMPDIR or /tmp."""
    bank_budget: float | None = None
    """Gigabytes that all banks of --bank-dir may take, open ones as if they were full; default: half of the free disk."""
    bank_dtype: Literal["float16", "float32"] = "float16"
    """How --predictions bank stores answers."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """Arithmetic of every training; bfloat16 is autocast."""
    channels_last: Literal["auto", "yes", "no"] = "auto"
    """Memory format; auto: each family's faster one on CPUs, no on GPUs."""
    compile: bool = False
    """Compile each trained network with torch.compile; its teacher, or a peer, runs as it is."""
    tf32: bool = False
    """Let GPUs round float32 products to TF32."""
    deterministic: bool = False
    """Deterministic kernels only, on GPUs too."""
    cudnn_benchmark: bool = False
    """Let cuDNN time its algorithms on each GPU and take the fastest: as fast as can be, not the same numbers each time."""
    threads: int = 1
    """CPU threads of a trial."""
    trials_per_gpu: int = 1
    """Trials that share a GPU."""
    ranks_per_trial: int = 1
    """Data-parallel processes of one trial, each with a GPU of one node (with --gpus 0: with --threads CPU threads)."""
    loader_workers: int | None = None
    """Processes of each rank that decode images which stay in their files, a CPU each; default: 4 with GPUs, else none."""
    gpu_fraction: tuple[str, ...] = ()
    """NETWORK=FRACTION: the part of a GPU that trials of one network get, instead of 1 / --trials-per-gpu."""
    max_failures: int = 2
    """Times that a crashed trial is tried again."""
    checkpoint_minutes: float = 10.0
    """Besides each epoch's end, checkpoint this often."""
    keep_checkpoints: Literal["all", "teachers", "last"] = "last"
    """Of finished trials, keep everything, the final weights of trials that others need, or all final weights."""
    teachers_from: Path | None = None
    """Another sweep's result folder: teachers finished there are shared, not trained again."""
    time_limit: str | None = None
    """MINUTES, HH:MM:SS or D-HH:MM:SS: nothing is started that can't reach a checkpoint before, then all trials checkpoint and stop."""
    teacher_weights: Path | None = None
    """Folder of backbones or whole teachers, named after their network, used instead of training them."""
    initialization: Literal["he", "authors"] = "he"
    """Initial weights: one rule for all networks, or the authors' family by family."""
    address: str | None = None
    """A running Ray cluster: auto or HOST:PORT; default: one of this command's own."""
    dashboard: bool = False
    """Start Ray's dashboard (with a Ray that this command starts)."""
    require_gpus: bool = False
    """Refuse to start with fewer GPUs than --gpus."""
    tensorboard: bool = False
    """Write each trial's epochs to --out/tensorboard, too (needs the extra "ui")."""
    dry_run: bool = False
    """Print the work-list and its cost; start nothing."""

    def __post_init__(self) -> None:
        for name in ("teacher_seeds", "threads", "trials_per_gpu", "ranks_per_trial"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("seeds", "top_k", "epochs", "train_images", "batch_size", "batch_shards"):
            _check(name, getattr(self, name), getattr(self, name) is None or getattr(self, name) >= 1, "1 or more")
        _check("trials", self.trials, self.trials is None or 1 <= self.trials <= MOST_TRIALS, f"1 to {MOST_TRIALS}")
        if self.tensorboard and find_spec("tensorboard") is None:
            raise ValueError("--tensorboard needs the package tensorboard; accepted after: pip install 'hsakd-sweeper[ui]'")
        if self.search_budget is not None:
            most = SearchBudget.parse(self.search_budget).most_trials_at_full_cost
            _check("search_budget", self.search_budget, most <= MOST_TRIALS, f"at most {MOST_TRIALS} trials or student runs")
            _check("trials", self.trials, self.trials is None, "nothing beside --search-budget")
        _check("gpus", self.gpus, self.gpus >= 0, "0 (CPU) or more")
        _check("tf32", "given", not self.tf32 or self.gpus > 0, "with --gpus 1 or more; a CPU has no TF32")
        is_timed = not self.cudnn_benchmark or (self.gpus > 0 and not self.deterministic)
        _check("cudnn_benchmark", "given", is_timed, "with --gpus 1 or more, without --deterministic")
        has_bank = self.predictions == "bank"
        _check("bank_dtype", self.bank_dtype, has_bank or self.bank_dtype == "float16", "float32 with --predictions bank only")
        _check("max_failures", self.max_failures, self.max_failures >= 0, "0 or more")
        _check("checkpoint_minutes", self.checkpoint_minutes, 0 <= self.checkpoint_minutes < math.inf, "minutes, 0 or more")
        budget = self.bank_budget
        _check("bank_budget", budget, budget is None or 0 <= budget < math.inf, "gigabytes, 0 or more")
        for name in ("pairs", "methods"):
            names = getattr(self, name)
            _check(name, " ".join(names), len(set(names)) == len(names), "each one once")
        has_rows = bool(type(self).__dataclass_fields__["methods"].default)  # probes and detectors have none of their own
        _check("methods", "given without a row", self.methods or not has_rows, ", ".join(METHODS))
        for method in self.methods:
            _check_listed("methods", method, method in METHODS, ", ".join(METHODS))
            if needs_library(method) and find_spec("torchdistill") is None:
                raise ValueError(f"--methods is {method}, which needs torchdistill: pip install '.[comparators]'")
        for pair in self.pairs:
            teacher, _, student = pair.partition("-")
            for network in (teacher, student):
                _check_listed("pairs", pair, is_network(network), f"TEACHER-STUDENT of {', '.join(network_table())}, timm/<model>")
            same_depth = network_facts(teacher).num_branches == network_facts(student).num_branches
            _check("pairs", pair, same_depth, "networks with equally many branches")
        self._check_space()
        self._check_ranks()
        if self.dataset is not None:
            known = self.dataset_names()
            _check("dataset", self.dataset, self.dataset in known, ", ".join(known))
        is_own = self.dataset == OWN_IMAGES
        _check("data_dir", self.data_dir, not is_own or self.data_dir is not None, f"a folder of images, with --dataset {OWN_IMAGES}")
        _check(
            "image_size",
            self.image_size,
            self.image_size is None or self.image_size >= self.least_side(),
            f"{self.least_side()} or more pixels",
        )
        is_shifted = is_own and self.augmentation != STREAMED
        _check(
            "padding", self.padding, self.padding is None or (is_shifted and self.padding >= 0), f"0 or more, with --dataset {OWN_IMAGES}"
        )
        is_chosen = self.augmentation is None or is_own
        _check("augmentation", self.augmentation, is_chosen, f"nothing but with --dataset {OWN_IMAGES}; other data sets have their own")
        has_size = self.augmentation != STREAMED or self.image_size is not None
        _check("image_size", self.image_size, has_size, f"a side in pixels, with --augmentation {STREAMED}")
        if is_own and self.data_dir is not None:
            from hsakd.image_folder import scan_image_folder  # PIL is for those who need it

            found = scan_image_folder(self.data_dir.resolve())
            try:
                found.resolved_size(self.image_size)
            except ValueError as error:
                raise ValueError(in_options(error)) from error
        _check(
            "no_flip", "given", self.flip or is_shifted, f"with --dataset {OWN_IMAGES} only; other data sets have their own augmentation"
        )
        _check(
            "address",
            self.address,
            self.address is None or self.address == "auto" or re.fullmatch(r"[\w.-]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", self.address),
            "auto or HOST:PORT; for ray:// use `ray job submit`",
        )
        parse_fractions(self.gpu_fraction)
        parse_time(self.time_limit)
        check_trials("--out", self.out)
        source = self.teachers_from
        if source is not None:
            check_trials("--teachers-from", source)
        _check("teachers_from", str(source), source is None or (source / "trials").is_dir(), "the result folder of a sweep")
        is_other = source is None or source.resolve() != self.out.resolve()
        _check("teachers_from", str(source), is_other, "another folder than --out")
        folder = self.teacher_weights
        _check("teacher_weights", folder, folder is None or folder.is_dir(), "a folder of weight files")
        one_teacher = folder is None or self.teacher_seeds == 1
        _check("teacher_seeds", self.teacher_seeds, one_teacher, "1 with --teacher-weights, as a file is one teacher")
        _check("out", str(self.out), "://" not in str(self.out) and ":/" not in str(self.out), "a folder that all nodes share")
        _check("out", str(self.out), not self.out.exists() or self.out.is_dir(), "a folder")
        if self.out.is_dir() and any(self.out.iterdir()):
            known_files = ("plan.parquet", "trials", "studies.journal", "driver.lock")
            _check("out", str(self.out), any((self.out / name).exists() for name in known_files), "a new folder or one of a sweep")

    def dataset_names(self) -> tuple[str, ...]:
        """Return what --dataset accepts."""
        return DATASET_NAMES

    def least_side(self) -> int:
        """Return the least side in pixels that --image-size accepts."""
        return 8

    def search_space(self) -> SearchSpace:
        """Return what the searches vary; raises ValueError where --space can't be used."""
        return SearchSpace() if self.space is None else read_space(self.space)

    def _check_ranks(self) -> None:
        """A trial's ranks share its batch's parts and the GPUs that there are."""
        optim, ranks = PRESETS[self.preset].optim, self.ranks_per_trial
        shards, batch_size = self.batch_shards or optim.batch_shards, self.batch_size or optim.batch_size
        _check("batch_shards", shards, batch_size % shards == 0, f"a divisor of the batch's {batch_size} images")
        for method in self.methods:
            is_accepted = shards == 1 or not needs_whole_batches(method)
            _check(
                "methods",
                method,
                is_accepted,
                f"it with --batch-shards 1, not {shards}, as it compares or remembers the images of whole batches",
            )
        accepted = f"a divisor of the batch's {shards} parts (--batch-shards), each of which has batch statistics of its own"
        _check("ranks_per_trial", ranks, shards % ranks == 0, accepted)
        _check("ranks_per_trial", ranks, not self.gpus or ranks <= self.gpus, f"at most --gpus, {self.gpus}")
        _check("trials_per_gpu", self.trials_per_gpu, ranks == 1 or self.trials_per_gpu == 1, "1 with --ranks-per-trial above 1")
        _check("gpu_fraction", " ".join(self.gpu_fraction), ranks == 1 or not self.gpu_fraction, "nothing with --ranks-per-trial above 1")
        workers = self.loader_workers
        _check("loader_workers", workers, workers is None or workers >= 0, "0 or more")

    def _check_space(self) -> None:
        if self.space is None:
            return
        space, preset = self.search_space(), PRESETS[self.preset]
        for pair in self.pairs or preset.pairs:
            student = pair.partition("-")[2]
            try:
                space.check_learning_rate(SLOW_LEARNING_RATE if student in SLOW_LEARNERS else preset.optim.learning_rate, student)
                space.placements(network_facts(student).num_branches)
            except ValueError as error:
                raise ValueError(f"--space {self.space}: {error}") from error


Study = Literal["loss-terms", "aux-placement", "temperature", "loss-weights", "few-shot", "rotations"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationOptions(SweepOptions):
    """Run ablation studies of HSAKD's student: arms that share teacher, stream and bank, so that differences are paired by seed.

    Results join those of other studies and sweeps in --out. Run the same command again after any interruption.
    """

    study: tuple[Study, ...]
    """One or more studies."""
    teacher: Literal["joint", "frozen"] = "joint"
    """Regime of the teacher that all arms share (the paper's ablations: joint)."""
    placements: Literal["subsets", "paper"] = "subsets"
    """aux-placement: none and every non-empty subset of c1..cL, or none, each alone, and all."""
    objective: Literal["task+kl_q", "full"] = "task+kl_q"
    """aux-placement: the paper's task+kl_q, or the full objective."""
    temperatures: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0)
    """temperature: the grid."""
    weights: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    """loss-weights: the grid of kl_q and of kl_p."""
    full_grid: bool = False
    """loss-weights: every combination instead of one weight at a time (the other at 1)."""
    ratios: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """few-shot: parts of the training set that the student sees."""
    methods: tyro.conf.Fixed[tuple[str, ...]] = ()
    trials: tyro.conf.Fixed[int | None] = None
    search_budget: tyro.conf.Fixed[str | None] = None
    space: tyro.conf.Fixed[Path | None] = None
    top_k: tyro.conf.Fixed[int | None] = None
    pruner: tyro.conf.Fixed[Literal["none", "median", "hyperband"]] = "none"

    def __post_init__(self) -> None:
        SweepOptions.__post_init__(self)
        _check("study", "nothing", len(self.study) > 0, "one or more names of studies")
        for name in ("temperatures", "weights", "ratios"):
            values = getattr(self, name)
            _check(
                name,
                " ".join(map(str, values)) or "nothing",
                len(values) > 0 and all(0 < value < math.inf for value in values),
                "one or more numbers above 0",
            )
            _check(name, " ".join(map(str, values)), len(set(values)) == len(values), "different numbers")
        _check("ratios", " ".join(map(str, self.ratios)), max(self.ratios) <= 1, "at most 1")
        _check("weights", " ".join(map(str, self.weights)), 1.0 in self.weights, "a grid with 1, the paper's, in it")


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferOptions(SweepOptions):
    """Train linear probes on the frozen backbones of all finished students of a sweep, by the authors' linear evaluation.

    Results join those of the sweep in --out. Run the same command again after any interruption.
    """

    students: tuple[str, ...] = ()
    """Table rows whose students are probed; default: all of the folder's."""
    pairs: tuple[str, ...] = ()
    """TEACHER-STUDENT names whose students are probed; default: all of the folder's."""
    epochs: int | None = None
    """Epochs of every training, 100 by default; milestones scale."""
    dataset: str | None = None
    """The data set to transfer to (required); imagefolder: your own images, in train/CLASS/ and val/CLASS/ of --data-dir."""
    image_size: int | None = None
    """Side in pixels that crops are resized to; default: that of the student's own images."""
    preset: tyro.conf.Fixed[PresetName] = "paper"
    teacher_weights: tyro.conf.Fixed[Path | None] = None
    methods: tyro.conf.Fixed[tuple[str, ...]] = ()
    seeds: tyro.conf.Fixed[int | None] = None
    teacher_seeds: tyro.conf.Fixed[int] = 1
    train_images: tyro.conf.Fixed[int | None] = None
    batch_size: tyro.conf.Fixed[int | None] = None
    batch_shards: tyro.conf.Fixed[int | None] = None
    ranks_per_trial: tyro.conf.Fixed[int] = 1
    loader_workers: tyro.conf.Fixed[int | None] = None
    augmentation: tyro.conf.Fixed[Literal["shift", "imagenet"] | None] = None
    predictions: tyro.conf.Fixed[Literal["live", "bank"]] = "live"
    bank_dir: tyro.conf.Fixed[Path | None] = None
    bank_budget: tyro.conf.Fixed[float | None] = None
    bank_dtype: tyro.conf.Fixed[Literal["float16", "float32"]] = "float16"
    precision: tyro.conf.Fixed[Literal["float32", "bfloat16", "float64"]] = "float32"
    channels_last: tyro.conf.Fixed[Literal["auto", "yes", "no"]] = "auto"
    compile: tyro.conf.Fixed[bool] = False
    tf32: tyro.conf.Fixed[bool] = False
    deterministic: tyro.conf.Fixed[bool] = False
    cudnn_benchmark: tyro.conf.Fixed[bool] = False
    padding: tyro.conf.Fixed[int | None] = None
    flip: tyro.conf.Fixed[bool] = True
    trials: tyro.conf.Fixed[int | None] = None
    search_budget: tyro.conf.Fixed[str | None] = None
    space: tyro.conf.Fixed[Path | None] = None
    top_k: tyro.conf.Fixed[int | None] = None
    pruner: tyro.conf.Fixed[Literal["none", "median", "hyperband"]] = "none"

    def __post_init__(self) -> None:
        SweepOptions.__post_init__(self)
        _check("dataset", self.dataset, self.dataset is not None, f"the data set to transfer to, {', '.join(self.dataset_names())}")
        _check("out", str(self.out), (self.out / "plan.parquet").is_file(), "the folder of a sweep")

    def dataset_names(self) -> tuple[str, ...]:
        """Return what probes are trained on: images in memory, of which their crops are taken."""
        return tuple(name for name in DATASET_NAMES if name != STREAMED)


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionOptions(TransferOptions):
    """Train Faster R-CNN on Pascal VOC (2007 and 2012 trainval, tested on 2007 test) on the backbones of a sweep's finished students.

    Students have to be an ImageNet ResNet (18, 34, 50). Needs the extra "detection". Results join those of the sweep in --out. Run the
    same command again after any interruption.
    """

    students: tuple[str, ...] = ()
    """Table rows whose students are detectors' backbones; default: all of the folder's."""
    pairs: tuple[str, ...] = ()
    """TEACHER-STUDENT names whose students are detectors' backbones; default: all of the folder's."""
    epochs: int | None = None
    """Epochs of every training, 12 by default; the milestone scales."""
    batch_size: int = 16
    """Images of a step; the learning rate is 0.01 for 16 and in proportion."""
    image_size: int = 600
    """Pixels of an image's shorter side; the longer one has at most 5/3 of it."""
    trainable_layers: int = 3
    """Of stem and four stages, the last ones that are trained (0 to 5)."""
    dataset: tyro.conf.Fixed[str] = DETECTION_DATASET
    initialization: tyro.conf.Fixed[Literal["he", "authors"]] = "he"

    def __post_init__(self) -> None:
        if find_spec("pycocotools") is None:
            raise ValueError("detection needs pycocotools: pip install '.[detection]'")
        TransferOptions.__post_init__(self)
        _check("trainable_layers", self.trainable_layers, 0 <= self.trainable_layers <= 5, "0 to 5")

    def dataset_names(self) -> tuple[str, ...]:
        """Return what detectors are trained on."""
        return (DETECTION_DATASET,)

    def least_side(self) -> int:
        """Return the least shorter side: a pixel of a backbone's last stage."""
        return 32


def parse_time(text: str | None) -> float | None:
    """Return seconds from MINUTES, HH:MM:SS or D-HH:MM:SS (Slurm's forms), None from None; raises ValueError on anything else."""
    if text is None:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", text) and float(text) > 0:
        return 60 * float(text)
    parts = re.fullmatch(r"(?:(\d+)-)?(\d{1,3}):(\d\d):(\d\d)", text)
    if parts is None:
        raise ValueError(f"--time-limit is {text}; accepted: minutes above 0, HH:MM:SS or D-HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    total = float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    if not total or max(minutes, seconds) >= 60:
        raise ValueError(f"--time-limit is {text}; accepted: a time above 0, with minutes and seconds below 60")
    return total


def in_options(error: Exception) -> str:
    """Return what a configuration or the data sets refuse, in the words of the option that sets the field."""
    sentence = str(error.args[0])
    name, _, rest = sentence.partition(" ")
    return f"{FIELD_OPTIONS[name]} {rest}" if name in FIELD_OPTIONS else sentence


def _check(name: str, value: object, is_accepted: object, accepted: str) -> None:
    if not is_accepted:
        raise ValueError(f"--{name.replace('_', '-')} is {value}; accepted: {accepted}")


def _check_listed(name: str, value: object, is_accepted: object, accepted: str) -> None:
    """Check one value of several: whoever separates them otherwise than by blanks is told so."""
    if not is_accepted:
        raise ValueError(f"--{name} is {value}; accepted, separated by blanks: {accepted}")
