"""What to run next: the work-list, the searches and the truth on disk; knows nothing of Ray, so that a virtual clock can drive it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean

from hsakd.config import TrialConfig
from hsakd.records import EpochMetrics, PlanEntry, ResultStore, TrialRecord
from sweeps.cli import SweepOptions
from sweeps.presets import PRESETS
from sweeps.search import PairSearch, make_pruner, open_storage, repair_journal
from sweeps.worklist import (
    PAPER_SETTING,
    Pair,
    Setting,
    TrialFactory,
    known_work,
    num_train_images,
    pairs_of,
    search_budget,
    seeds_of,
    training_multi_adds,
)

IsFinished = Callable[[TrialConfig], TrialRecord | None]
TUNED = "HSAKD-tuned"
SEARCH_STAGES = 3  # a search trial, a confirmation and a report follow one another


def cost_of(config: TrialConfig) -> float:
    """Return a trial's cost in multiply-adds."""
    return training_multi_adds(config, num_train_images(config))


class Schedule:
    """Emits trials whose requirements are done: the longest remaining path first, then searches, confirmations and winners.

    `finished` looks a trial up in the result folder. Every trial is emitted at most once; `entries` is the plan as far as it is known.
    `lines` are the work (None: what `options` ask for), `kept` are other commands' lines of the same folder, which stay in its plan.
    `watchers` hear of every epoch.
    """

    def __init__(
        self,
        options: SweepOptions,
        store: ResultStore,
        finished: IsFinished,
        *,
        lines: Sequence[tuple[PlanEntry, TrialConfig]] | None = None,
        kept: Sequence[PlanEntry] = (),
    ) -> None:
        self.options, self.store, self.finished = options, store, finished
        self.factory = TrialFactory(options)
        self.entries: list[PlanEntry] = []
        self.configs: dict[str, TrialConfig] = {}
        self.needs: dict[str, tuple[str, ...]] = {}
        self.costs: dict[str, float] = {}
        self.done: dict[str, TrialRecord] = {}
        self.running: set[str] = set()
        self.failed: set[str] = set()
        self.redone: set[str] = set()  # requirements that were done, lost their weights and were trained again
        self.numbers: dict[str, list[tuple[PairSearch, int]]] = {}
        self.is_stopping = False
        self.lines: set[tuple[str, str, str, str, int]] = set()
        self.kept = list(kept)
        self.watchers: list[Callable[[TrialConfig, EpochMetrics], None]] = []
        for entry, config in known_work(options) if lines is None else lines:
            self._add(entry, config)
        self.searches: dict[str, PairSearch] = {}
        self.search_teachers: dict[str, TrialConfig] = {}
        self.student_costs: dict[str, float] = {}
        self.stages_after: dict[str, tuple[str, int]] = {}  # trial -> its pair, and the searched students that follow one another after it
        self.phases: dict[str, str] = {}
        if TUNED in options.methods:
            store.root.mkdir(parents=True, exist_ok=True)
            repair_journal(store.journal_path)
            storage = open_storage(store.journal_path)
            for pair in pairs_of(options):
                pruner = make_pruner(options.pruner, self.factory.optim.epochs)
                teacher = self.factory.joint_teacher(pair.teacher, 0, for_search=True)
                self.search_teachers[pair.name] = teacher
                self.student_costs[pair.name] = cost_of(self.factory.hsakd(pair, 0, teacher))
                search = PairSearch(
                    pair,
                    storage,
                    budget=search_budget(options),
                    pruner=pruner,
                    space=options.search_space(),
                    learning_rate=self.factory.student_learning_rate(pair.student),
                    cost_of=partial(self._student_runs, pair),
                )
                self.searches[pair.name] = search
                self.phases[pair.name] = "search"
                for trial in search.study.get_trials(deepcopy=False):
                    if trial.state.name != "WAITING" and trial.params:
                        self._plan_search(search, trial.number)
        for name in sorted(self.searches, key=lambda name: self.student_costs[name]):
            self.stages_after[self.search_teachers[name].trial_id] = (name, SEARCH_STAGES)
        self._advance()

    def _student_runs(self, pair: Pair, setting: Setting) -> float:
        """Return a search trial's cost over that of the paper's setting."""
        return cost_of(self.factory.hsakd(pair, 0, self.search_teachers[pair.name], setting)) / self.student_costs[pair.name]

    def _add(self, entry: PlanEntry, config: TrialConfig) -> None:
        for requirement in config.requirements():
            self._require(requirement)
        self._require(config)
        line = (entry.purpose, entry.method, f"{entry.teacher}-{entry.student}", entry.trial_id, entry.seed)
        if line not in self.lines:
            self.lines.add(line)
            self.entries.append(entry)

    def _require(self, config: TrialConfig) -> None:
        for requirement in config.requirements():
            self._require(requirement)
        if config.trial_id in self.configs:
            return
        trial_id = config.trial_id
        self.configs[trial_id] = config
        self.needs[trial_id] = tuple(requirement.trial_id for requirement in config.requirements())
        self.costs[trial_id] = cost_of(config)
        record = self.finished(config)
        if record is not None:
            self.done[trial_id] = record

    def next_trial(self) -> TrialConfig | None:
        """Return a trial to start, or None if nothing can start now."""
        if self.is_stopping:
            return None
        while True:
            startable = [trial_id for trial_id in self.configs if self._can_start(trial_id)]
            askable = [name for name, search in self.searches.items() if search.num_left() and self._is_usable(self.search_teachers[name])]
            if not startable and not askable:
                return None
            paths = self._longest_paths() if startable else {}
            best = max((paths[trial_id] for trial_id in startable), default=0.0)
            name = max(askable, key=lambda name: SEARCH_STAGES * self.student_costs[name], default=None)
            if name is None or best >= SEARCH_STAGES * self.student_costs[name]:
                chosen = next(trial_id for trial_id in startable if paths[trial_id] == best)
            else:
                chosen = self._ask(name)
                if not self._can_start(chosen):  # the same setting is running or has been run: told, and ask again
                    continue
            self.running.add(chosen)
            return self.configs[chosen]

    def _can_start(self, trial_id: str) -> bool:
        if trial_id in self.done or trial_id in self.running or trial_id in self.failed:
            return False
        return all(needed in self.done and self.done[needed].status == "complete" for needed in self.needs[trial_id])

    def _is_usable(self, config: TrialConfig) -> bool:
        return config.trial_id in self.done and self.done[config.trial_id].status == "complete"

    def _longest_paths(self) -> dict[str, float]:
        """Return each trial's own cost plus the longest chain of what waits for it, the stages of a search included."""
        dependants: dict[str, list[str]] = {}
        for trial_id, needs in self.needs.items():
            for needed in needs:
                dependants.setdefault(needed, []).append(trial_id)
        paths: dict[str, float] = {}

        def path(trial_id: str) -> float:
            if trial_id not in paths:
                name, stages = self.stages_after.get(trial_id, ("", 0))
                tail = max((path(dependant) for dependant in dependants.get(trial_id, [])), default=0.0)
                paths[trial_id] = self.costs[trial_id] + max(tail, stages * self.student_costs.get(name, 0.0))
            return paths[trial_id]

        for trial_id in self.configs:
            path(trial_id)
        return paths

    def _ask(self, name: str) -> str:
        search = self.searches[name]
        trial_id = self._plan_search(search, search.ask()).trial_id
        if trial_id in self.done:  # the same setting was already run
            self.complete(trial_id, self.done[trial_id])
        return trial_id

    def _plan_search(self, search: PairSearch, number: int) -> TrialConfig:
        """Put a study's trial into the plan; tell it at once where the result folder knows its end."""
        config = self.factory.hsakd(search.pair, 0, self.search_teachers[search.pair.name], search.setting(number))
        self._add(self._entry(search.pair, "search", "search", config, study=search.pair.name, study_number=number), config)
        self.numbers.setdefault(config.trial_id, []).append((search, number))
        self.stages_after[config.trial_id] = (search.pair.name, SEARCH_STAGES - 1)
        if search.study.get_trials(deepcopy=False)[number].user_attrs.get("trial_id") != config.trial_id and number in search.running():
            search.remember(number, config.trial_id)
        if config.trial_id in self.done:
            search.tell(number, self.done[config.trial_id])
        return config

    def _entry(
        self, pair: Pair, purpose: str, method: str, config: TrialConfig, *, seed: int = 0, study: str = "", study_number: int | None = None
    ) -> PlanEntry:
        return PlanEntry(
            trial_id=config.trial_id,
            purpose=purpose,
            method=method,
            teacher=pair.teacher,
            student=pair.student,
            seed=seed,
            study=study,
            study_number=study_number,
            config_json=config.to_json(),
        )

    def on_epoch(self, trial_id: str, metrics: EpochMetrics) -> bool:
        """Pass an epoch on to the study; return whether the trial should be pruned."""
        for watch in self.watchers:
            watch(self.configs[trial_id], metrics)
        verdicts = [search.should_prune(number, metrics) for search, number in self.numbers.get(trial_id, [])]  # each study hears of it
        return any(verdicts)

    def complete(self, trial_id: str, record: TrialRecord) -> None:
        """Take note of a trial's end, as its record in the result folder says; one that failed for a lost requirement waits for it."""
        self.running.discard(trial_id)
        if record.status == "failed" and self._redo_lost_requirements(trial_id):
            return
        self.done[trial_id] = record
        if record.status in ("failed", "out_of_memory"):
            self.failed.add(trial_id)
        for search, number in self.numbers.get(trial_id, []):
            search.tell(number, record)
        self._advance()

    def _redo_lost_requirements(self, trial_id: str) -> bool:
        """Put requirements whose weights were set aside back on the work-list, each once; return whether there was one."""
        lost = [needed for needed in self.needs[trial_id] if needed in self.done and self.finished(self.configs[needed]) is None]
        fresh = [needed for needed in lost if needed not in self.redone]
        for needed in fresh:
            del self.done[needed]
        self.redone.update(fresh)
        return bool(fresh) or any(needed not in self.done for needed in self.needs[trial_id])

    def interrupt(self, trial_id: str) -> None:
        """Take note that a trial was stopped and is to go on later."""
        self.running.discard(trial_id)

    def _advance(self) -> None:
        """Move each pair from search to confirmation to its reported winner, as soon as the results are there."""
        for name, search in self.searches.items():
            if self.phases[name] == "search" and not search.num_left() and not search.running():
                for setting in [PAPER_SETTING, *search.best(self._top_k())]:
                    for seed in seeds_of(self.options):
                        config = self.factory.hsakd(search.pair, seed, self.search_teachers[name], setting)
                        self._add(
                            self._entry(
                                search.pair, "confirm", "confirm", config, seed=seed, study=name, study_number=search.number_of(setting)
                            ),
                            config,
                        )
                        self.stages_after.setdefault(config.trial_id, (name, 1))
                self.phases[name] = "confirm"
            if self.phases[name] == "confirm":
                winner = self._winner(search)
                if winner is not None:
                    for seed in seeds_of(self.options):
                        config = self.factory.hsakd(search.pair, seed, self.factory.joint_teacher(search.pair.teacher, 0), winner)
                        self._add(self._entry(search.pair, "report", TUNED, config, seed=seed), config)
                    self.phases[name] = "report"

    def _top_k(self) -> int:
        return self.options.top_k if self.options.top_k is not None else PRESETS[self.options.preset].top_k

    def _winner(self, search: PairSearch) -> Setting | None:
        """Return the setting of the best mean validation accuracy over all seeds, once every confirmation has ended."""
        means: list[tuple[float, Setting]] = []
        for setting in [PAPER_SETTING, *search.best(self._top_k())]:
            values = []
            for seed in seeds_of(self.options):
                record = self.done.get(self.factory.hsakd(search.pair, seed, self.search_teachers[search.pair.name], setting).trial_id)
                if record is None:
                    return None
                values.append(record.top1_val if record.status == "complete" and record.top1_val is not None else float("-inf"))
            means.append((fmean(values), setting))
        return max(means, key=lambda pair: pair[0])[1]

    @property
    def num_waiting(self) -> int:
        """Trials known so far that are neither done, running nor failed, plus searches not yet asked for."""
        known = sum(trial_id not in self.done and trial_id not in self.running for trial_id in self.configs)
        return known + sum(search.num_left() for search in self.searches.values())

    @property
    def is_complete(self) -> bool:
        """Whether every trial of the sweep, searches and winners included, has ended without failure."""
        return not self.failed and not self.running and self.num_waiting == 0 and all(p == "report" for p in self.phases.values())

    @property
    def is_stuck(self) -> bool:
        """Whether nothing runs and nothing can start any more."""
        if self.running:
            return False
        can_ask = any(s.num_left() and self._is_usable(self.search_teachers[n]) for n, s in self.searches.items())
        return not can_ask and not any(self._can_start(trial_id) for trial_id in self.configs)

    def plan(self) -> list[PlanEntry]:
        """Return the plan, with searches not yet asked for as lines without a trial id."""
        waiting = []
        for name, search in self.searches.items():
            entry = PlanEntry(
                trial_id="", purpose="search", method="search", teacher=search.pair.teacher, student=search.pair.student, study=name
            )
            waiting += [entry] * search.num_left()
            if self.phases[name] != "report":
                waiting += [replace(entry, purpose="report", method=TUNED, study="", seed=seed) for seed in seeds_of(self.options)]
        return self.kept + self.entries + waiting
