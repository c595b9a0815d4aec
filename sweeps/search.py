"""One Optuna study per pair, asked and told directly: the driver is the journal's only writer.

The paper's setting is trial 0 and never pruned. A study sees validation accuracy only.
"""

import warnings
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from hsakd.records import EpochMetrics, TrialRecord
from sweeps.networks import network_facts
from sweeps.worklist import PAPER_SETTING, Pair, Setting

TEMPERATURE_RANGE = (1.0, 20.0)
WEIGHT_RANGE = (0.1, 10.0)
TRIAL_ID = "trial_id"
PROTECTED = "protected"
NUM_PARAMETERS = 4
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}


def placements(num_branches: int) -> list[str]:
    """Return every non-empty subset of taps as text ("1+3"), all of them first."""
    subsets = [[tap for tap in range(1, num_branches + 1) if mask >> (tap - 1) & 1] for mask in range(1, 2**num_branches)]
    return ["+".join(map(str, subset)) for subset in sorted(subsets, key=lambda subset: (-len(subset), subset))]


def make_pruner(name: str, num_epochs: int) -> optuna.pruners.BasePruner:
    """Return the pruner that an option names."""
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=num_epochs // 3)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, num_epochs // 9), max_resource=num_epochs)
    return optuna.pruners.NopPruner()


def repair_journal(path: Path) -> int:
    """Drop a last line that a crash cut; return how many bytes were dropped."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    kept = content[: content.rfind(b"\n") + 1]
    if len(kept) < len(content):
        path.write_bytes(kept)
    return len(content) - len(kept)


def open_storage(path: Path) -> JournalStorage:
    """Open the journal of all studies of a result folder."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(path)))


class PairSearch:
    """The study of one pair: which settings to try, and which were best."""

    def __init__(self, pair: Pair, storage: JournalStorage, *, num_trials: int, pruner: optuna.pruners.BasePruner, seed: int = 0) -> None:
        self.pair = pair
        self.num_trials = num_trials
        self.placements = placements(network_facts(pair.student).num_branches)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study = optuna.create_study(
                storage=storage, study_name=pair.name, direction="maximize", pruner=pruner, load_if_exists=True
            )
            self.study.sampler = optuna.samplers.TPESampler(
                seed=seed + len(self.study.get_trials(deepcopy=False)),  # a resumed study must not draw its first settings again
                multivariate=True,
                constant_liar=True,
                n_startup_trials=5,
            )
        if not self.study.get_trials(deepcopy=False):
            paper = {"temperature": PAPER_SETTING.temperature, "kl_q": 1.0, "kl_p": 1.0, "placement": self.placements[0]}
            self.study.enqueue_trial(paper, user_attrs={PROTECTED: True})
        self.trials: dict[int, optuna.Trial] = {}
        for number in self.running():
            if len(self.study.get_trials(deepcopy=False)[number].params) < NUM_PARAMETERS:  # the driver died while asking
                self.study.tell(number, state=TrialState.FAIL)

    def num_left(self) -> int:
        """Return how many trials are still to be asked for."""
        asked = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
        return max(0, self.num_trials - len(asked))

    def running(self) -> list[int]:
        """Return the numbers of trials that were asked and not told."""
        return [trial.number for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]

    def ask(self) -> int:
        """Return the number of a new trial."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = self.study.ask()
            trial.suggest_float("temperature", *TEMPERATURE_RANGE, log=True)
            trial.suggest_float("kl_q", *WEIGHT_RANGE, log=True)
            trial.suggest_float("kl_p", *WEIGHT_RANGE, log=True)
            trial.suggest_categorical("placement", self.placements)
        self.trials[trial.number] = trial
        return trial.number

    def setting(self, number: int) -> Setting:
        """Return the setting of a trial."""
        trial = self.study.get_trials(deepcopy=False)[number]
        params = trial.params
        placement = str(params["placement"])
        taps = None if placement == self.placements[0] else tuple(int(tap) for tap in placement.split("+"))
        return Setting(temperature=float(params["temperature"]), kl_q=float(params["kl_q"]), kl_p=float(params["kl_p"]), taps=taps)

    def number_of(self, setting: Setting) -> int:
        """Return the number of the first trial that had this setting."""
        return next(
            trial.number for trial in self.study.get_trials(deepcopy=False) if trial.params and self.setting(trial.number) == setting
        )

    def remember(self, number: int, trial_id: str) -> None:
        """Note the trial's id in the journal."""
        self._trial(number).set_user_attr(TRIAL_ID, trial_id)

    def should_prune(self, number: int, metrics: EpochMetrics) -> bool:
        """Report an epoch's validation accuracy; return whether the pruner would stop the trial."""
        trial = self._trial(number)
        if metrics.top1_val is None or metrics.epoch in self.study.get_trials(deepcopy=False)[number].intermediate_values:
            return False
        trial.report(metrics.top1_val, metrics.epoch)
        return not trial.user_attrs.get(PROTECTED, False) and trial.should_prune()

    def tell(self, number: int, record: TrialRecord) -> None:
        """Close a trial as its record says; anything but complete and pruned is a failure."""
        frozen = self.study.get_trials(deepcopy=False)[number]
        if frozen.state.is_finished():
            return
        state = STATES.get(record.status, TrialState.FAIL)
        value = record.top1_val if state == TrialState.COMPLETE else None
        if state == TrialState.COMPLETE and value is None:
            state = TrialState.FAIL
        self.study.tell(number, values=value, state=state)

    def best(self, count: int) -> list[Setting]:
        """Return the `count` best settings by validation accuracy, the paper's excluded; ties go to the earlier trial."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        ranked = sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))
        settings = [self.setting(trial.number) for trial in ranked]
        return [setting for setting in dict.fromkeys(settings) if setting != PAPER_SETTING][:count]

    def _trial(self, number: int) -> optuna.Trial:
        if number not in self.trials:
            frozen = self.study.get_trials(deepcopy=False)[number]
            self.trials[number] = optuna.Trial(self.study, frozen._trial_id)
        return self.trials[number]
