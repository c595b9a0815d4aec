"""What trials cost: multiply-adds, and the seconds they take as far as results have shown. Knows neither torch nor Ray."""

from math import exp, log

from hsakd.config import TrialConfig
from hsakd.records import EpochMetrics, TrialRecord
from hsakd.term_table import facts_of_terms
from sweeps.wording import counted
from sweeps.worklist import num_train_images, training_multi_adds

ASSUMED_RATES = {"cuda": 2e12, "cpu": 1e10}  # multiply-adds per second of one trial that has a GPU or a CPU thread to itself: a guess
PARENT_WEIGHT = 0.5  # a network's or a kind's own mean counts its trials against half a trial of what is known in general
REPRICE_GROWTH = 1.1  # prices are revised when a tenth more epochs are measured than at the last revision


def cost_of(config: TrialConfig) -> float:
    """Return a trial's cost in multiply-adds; a student that has a bank (logits of finitely many crops) does not ask its teacher again."""
    reads_maps = facts_of_terms(name for name, _ in config.objective.terms).reads_features
    is_live = reads_maps or config.data.augmentation != "shift" or config.numerics.teacher_predictions == "live"
    return training_multi_adds(config, num_train_images(config), asks_teacher=is_live)


def kind_of(config: TrialConfig) -> str:
    """Return what, besides the network, decides a trial's throughput: its terms, its teacher and how that is asked."""
    terms = "+".join(name for name, _ in config.objective.terms) if config.detection is None else config.role
    teacher = f" <- {config.teacher.network} ({config.numerics.teacher_predictions})" if config.teacher is not None else ""
    return terms + teacher


class Mean:
    """A mean of logarithms that leans on its parent's while it has few values."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.total = 0.0

    def put(self, name: str, value: float) -> None:
        """Take or replace the value of `name`."""
        self.total += value - self.values.get(name, 0.0)
        self.values[name] = value

    def lean_on(self, parent: float) -> float:
        """Return the mean with `PARENT_WEIGHT` values of the parent added."""
        return (self.total + PARENT_WEIGHT * parent) / (len(self.values) + PARENT_WEIGHT)


class CostModel:
    """Seconds of a trial: its multiply-adds over the throughput measured for its network and kind, or else for others, or else assumed.

    `device` is "cpu" or "cuda"; results of the other are not taken. `revision` grows whenever prices have changed enough to sort anew.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.overall, self.networks, self.kinds = Mean(), dict[str, Mean](), dict[tuple[str, str], Mean]()
        self.epochs: dict[str, int] = {}
        self.revision = 0
        self.num_epochs = self.num_epochs_priced = 0

    def observe(self, config: TrialConfig, seconds: float, epochs: int) -> None:
        """Take note that `epochs` of a trial took `seconds`; a later note on the same trial replaces the earlier."""
        multi_adds = cost_of(config)
        if seconds <= 0 or epochs <= 0 or multi_adds <= 0:
            return
        value = log(seconds * config.optim.epochs / epochs / multi_adds)
        kind = (config.network, kind_of(config))
        for mean in (self.overall, self.networks.setdefault(config.network, Mean()), self.kinds.setdefault(kind, Mean())):
            mean.put(config.trial_id, value)
        self.num_epochs += epochs - self.epochs.get(config.trial_id, 0)
        self.epochs[config.trial_id] = epochs
        if self.num_epochs > REPRICE_GROWTH * self.num_epochs_priced:
            self.num_epochs_priced = self.num_epochs
            self.revision += 1

    def observe_record(self, record: TrialRecord) -> None:
        """Take note of a finished trial, if it ran on this kind of device."""
        if record.device == self.device and record.epochs_done > 0:
            self.observe(record.config, max(record.total_seconds, record.train_seconds), record.epochs_done)

    def observe_epochs(self, config: TrialConfig, epochs: list[EpochMetrics]) -> None:
        """Take note of a running trial's epochs so far."""
        self.observe(config, sum(row.train_seconds + row.eval_seconds for row in epochs), len(epochs))

    @property
    def num_measured(self) -> int:
        """Trials that the throughput rests on."""
        return len(self.overall.values)

    def seconds(self, config: TrialConfig) -> float:
        """Return the seconds that a trial is expected to take in a slot of its own."""
        overall = self.overall.total / self.num_measured if self.num_measured else -log(ASSUMED_RATES[self.device])
        network = self.networks[config.network].lean_on(overall) if config.network in self.networks else overall
        kind = (config.network, kind_of(config))
        return exp(self.kinds[kind].lean_on(network) if kind in self.kinds else network) * cost_of(config)

    def describe(self) -> str:
        """Return what the seconds rest on."""
        if self.num_measured == 0:
            return f"an assumed {ASSUMED_RATES[self.device]:.0e} multiply-adds per second and trial; no trial has been measured yet"
        rate = exp(-self.overall.total / self.num_measured)
        return f"{rate:.3g} multiply-adds per second and trial, measured on {counted(self.num_measured, 'trial')}"
