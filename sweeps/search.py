"""One Optuna study per pair, asked and told directly: the driver is the journal's only writer.

The paper's setting is trial 0 and never pruned. A study sees validation accuracy only, and remembers the space it was begun with.
"""

import json
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from hsakd.records import EpochMetrics, TrialRecord
from sweeps.networks import network_facts
from sweeps.space import PAPER_VALUES, SearchBudget, SearchSpace, placements
from sweeps.worklist import PAPER_SETTING, Pair, Setting

TRIAL_ID = "trial_id"
PROTECTED = "protected"
SPACE = "space"
STUDENT_RUNS = "student_runs"  # what an ended trial has cost
AGAIN = "again"  # the number of the failed trial that this one is a later, better attempt of
WEIGHTS = ("temperature", "kl_q", "kl_p")
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}


def make_pruner(name: str, num_epochs: int) -> optuna.pruners.BasePruner:
    """Return the pruner that an option names."""
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=num_epochs // 3)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, num_epochs // 9), max_resource=num_epochs)
    return optuna.pruners.NopPruner()


def repair_journal(path: Path) -> int:
    """Drop what a crash left: a last line that is cut or damaged, and the lock; return the bytes dropped. We are the only writer."""
    for stale in path.parent.glob(f"{path.name}.lock*"):
        stale.unlink()
    if not path.exists():
        return 0
    content = path.read_bytes()
    num_kept = content.rfind(b"\n") + 1
    last = content[content.rfind(b"\n", 0, max(0, num_kept - 1)) + 1 : num_kept]
    try:
        json.loads(last or b"0")
    except ValueError:
        num_kept -= len(last)
    if num_kept < len(content):
        os.truncate(path, num_kept)
    return len(content) - num_kept


class Journal(JournalFileBackend):
    """The journal's file; a line that can't be written whole (a full disk) is taken back, or it would spoil the next one."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        size = self.path.stat().st_size
        try:
            super().append_logs(logs)
        except OSError:
            os.truncate(self.path, size)
            raise


def open_storage(path: Path) -> JournalStorage:
    """Open the journal of all studies of a result folder; raises ValueError where it isn't one."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return JournalStorage(Journal(path))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} can't be read ({error}); accepted: Optuna's journal. With the file moved away searches begin anew"
        ) from error


class PairSearch:
    """The study of one pair: which settings to try, and which were best.

    `learning_rate` is the student's in the paper's setting; `cost_of` a setting is its training in full student runs (the paper's
    setting: 1).

    Raises:
        ValueError: the study was begun with another space.
    """

    def __init__(
        self,
        pair: Pair,
        storage: JournalStorage,
        *,
        budget: SearchBudget,
        pruner: optuna.pruners.BasePruner,
        space: SearchSpace | None = None,
        learning_rate: float = math.nan,
        cost_of: Callable[[Setting], float] = lambda _: 1.0,
    ) -> None:
        self.pair, self.budget, self.learning_rate, self.cost_of = pair, budget, learning_rate, cost_of
        self.space = SearchSpace() if space is None else space
        num_branches = network_facts(pair.student).num_branches
        self.placements = self.space.placements(num_branches)
        self.subsets = {name: tuple(int(tap) for tap in name.split("+")) for name in placements(num_branches)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study = optuna.create_study(
                storage=storage, study_name=pair.name, direction="maximize", pruner=pruner, load_if_exists=True
            )
            self.study.sampler = optuna.samplers.TPESampler(
                seed=len(self.study.get_trials(deepcopy=False)),  # a resumed study must not draw its first settings again
                multivariate=True,
                group=self.space.branch_weight is not None,  # the weights of branches that a placement leaves out do not exist
                constant_liar=True,
                n_startup_trials=5,
            )
        self._check_space()
        self.trials: dict[int, optuna.Trial] = {}
        self.late: dict[int, dict[int, float]] = defaultdict(dict)  # epochs of trials that had failed and are tried again

    def _begin(self) -> None:
        """Note the space, and have the paper's setting asked for first: with the first trial, so that a refused command binds nothing."""
        if SPACE not in self.study.user_attrs:
            self.study.set_user_attr(SPACE, self.space.to_json())
        if not self.study.get_trials(deepcopy=False):
            paper: dict[str, float | str] = {name: PAPER_VALUES[name] for name in WEIGHTS}
            paper |= {f"branch_weight_{tap}": 1.0 for tap in self.subsets[self.placements[0]]} if self.space.branch_weight else {}
            paper |= {"learning_rate": self.learning_rate} if self.space.learning_rate else {}
            self.study.enqueue_trial(paper | {"placement": self.placements[0]}, user_attrs={PROTECTED: True})

    def _check_space(self) -> None:
        """Refuse to go on with another space than the study's."""
        text, attributes = self.space.to_json(), self.study.user_attrs
        begun = attributes.get(SPACE, SearchSpace().to_json() if self.study.get_trials(deepcopy=False) else text)
        if begun != text:
            raise ValueError(
                f"--space: the study {self.pair.name} was begun with the space {begun}, not with {text}; "
                "accepted: the space it was begun with, or another --out"
            )

    @property
    def paper_trial_id(self) -> str:
        """The trial that the paper's setting was when this study was begun; "" before it was asked for."""
        return next((str(trial.user_attrs.get(TRIAL_ID, "")) for trial in self.study.get_trials(deepcopy=False)), "")

    def _is_whole(self, params: dict[str, float | str]) -> bool:
        """Return whether a trial has all its parameters."""
        if "placement" not in params:
            return False
        number = len(WEIGHTS) + 1 + (self.space.learning_rate is not None)
        return len(params) == number + (len(self.subsets[str(params["placement"])]) if self.space.branch_weight else 0)

    def asked(self) -> list[FrozenTrial]:
        """Return the trials that were asked for, each once; one that a driver died in asking for is not among them."""
        trials = self.study.get_trials(deepcopy=False)
        return [t for t in trials if t.state != TrialState.WAITING and AGAIN not in t.user_attrs and self._is_whole(t.params)]

    def _half_asked(self) -> list[int]:
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial.number for trial in trials if not self._is_whole(trial.params)]

    def num_left(self) -> int:
        """Return how many trials are still to be asked for (with a budget in student runs: at least)."""
        if self.budget.trials is not None:
            left = self.budget.trials - len(self.asked())
        else:
            left = math.floor((self.budget.student_runs or 0.0) - self.spent() + 1e-9)
        return max(len(self._half_asked()), left)

    def spent(self) -> float:
        """Return what the study's trials have cost or, where they haven't ended, may cost, in full student runs."""
        return sum(float(trial.user_attrs.get(STUDENT_RUNS) or self.cost_of(self.setting(trial.number))) for trial in self.asked())

    def running(self) -> list[int]:
        """Return the numbers of trials that were asked and not told."""
        return [trial.number for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]

    def ask(self) -> int:
        """Return the number of a new trial, or of one that a driver died in asking for, its parameters completed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._begin()
            half_asked = self._half_asked()
            trial = self._trial(half_asked[0]) if half_asked else self.study.ask()
            trial.suggest_float("temperature", *self.space.temperature, log=True)
            trial.suggest_float("kl_q", *self.space.kl_q, log=True)
            trial.suggest_float("kl_p", *self.space.kl_p, log=True)
            placement = trial.suggest_categorical("placement", self.placements)
            if self.space.branch_weight is not None:
                for tap in self.subsets[placement]:
                    trial.suggest_float(f"branch_weight_{tap}", *self.space.branch_weight, log=True)
            if self.space.learning_rate is not None:
                trial.suggest_float("learning_rate", *self.space.learning_rate, log=True)
        self.trials[trial.number] = trial
        return trial.number

    def setting(self, number: int) -> Setting:
        """Return the setting of a trial; what equals the paper's is None, so that equal trainings are one trial."""
        params = self.study.get_trials(deepcopy=False)[number].params
        placement = str(params["placement"])
        weights = tuple(float(params.get(f"branch_weight_{tap}", 1.0)) for tap in self.subsets[placement])
        learning_rate = float(params.get("learning_rate", self.learning_rate))
        return Setting(
            temperature=float(params["temperature"]),
            kl_q=float(params["kl_q"]),
            kl_p=float(params["kl_p"]),
            taps=None if placement == self.placements[0] else self.subsets[placement],
            branch_weights=None if set(weights) == {1.0} else weights,
            learning_rate=None if "learning_rate" not in params or learning_rate == self.learning_rate else learning_rate,
        )

    def describe(self, number: int) -> str:
        """Return a trial's setting as text."""
        params = self.study.get_trials(deepcopy=False)[number].params
        return ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items())

    def number_of(self, setting: Setting) -> int:
        """Return the number of the first trial that had this setting."""
        return next(trial.number for trial in self.asked() if self.setting(trial.number) == setting)

    def remember(self, number: int, trial_id: str) -> None:
        """Note the trial's id in the journal."""
        self._trial(number).set_user_attr(TRIAL_ID, trial_id)

    def should_prune(self, number: int, metrics: EpochMetrics) -> bool:
        """Report an epoch's validation accuracy; return whether the pruner would stop the trial."""
        frozen = self.study.get_trials(deepcopy=False)[number]
        if metrics.top1_val is None:
            return False
        if frozen.state.is_finished():
            self.late[number][metrics.epoch] = metrics.top1_val
        if frozen.state.is_finished() or metrics.epoch in frozen.intermediate_values:
            return False
        trial = self._trial(number)
        trial.report(metrics.top1_val, metrics.epoch)
        return not self.is_protected(number) and trial.should_prune()

    def is_protected(self, number: int) -> bool:
        """Return whether a trial is never pruned."""
        return bool(self.study.get_trials(deepcopy=False)[number].user_attrs.get(PROTECTED, False))

    def tell(self, number: int, record: TrialRecord) -> None:
        """Close a trial as its record says; anything but complete and pruned is a failure.

        A failed trial that a later command has completed becomes a trial of its own, since Optuna never changes one that has ended.
        """
        frozen = self.study.get_trials(deepcopy=False)[number]
        state = STATES.get(record.status, TrialState.FAIL)
        value = record.top1_val if state == TrialState.COMPLETE else None
        if state == TrialState.COMPLETE and value is None:
            state = TrialState.FAIL
        if frozen.state.is_finished():
            if frozen.state == TrialState.FAIL != state and not self._has_later_attempt(number):
                self.study.add_trial(
                    create_trial(
                        state=state,
                        value=value,
                        params=frozen.params,
                        distributions=frozen.distributions,
                        user_attrs={**frozen.user_attrs, AGAIN: number},
                        intermediate_values=self.late.pop(number, {}),
                    )
                )
            return
        if state == TrialState.PRUNED:
            share = record.epochs_done / max(1, record.num_epochs)
            self._trial(number).set_user_attr(STUDENT_RUNS, self.cost_of(self.setting(number)) * share)
        self.study.tell(number, values=value, state=state)

    def _has_later_attempt(self, number: int) -> bool:
        return any(trial.user_attrs.get(AGAIN) == number for trial in self.study.get_trials(deepcopy=False))

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
