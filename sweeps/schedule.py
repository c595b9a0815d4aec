"""What to run next: the work-list, the searches and the truth on disk; knows nothing of Ray, so that a virtual clock can drive it."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

from hsakd.config import TrialConfig
from hsakd.records import EpochMetrics, PlanEntry, TrialRecord
from hsakd.store import ResultStore
from sweeps.cli import SweepOptions
from sweeps.cost import CostModel, cost_of
from sweeps.presets import PRESETS, TUNED
from sweeps.search import PairSearch, make_pruner, open_storage, repair_journal
from sweeps.worklist import (
    PAPER_SETTING,
    Pair,
    Setting,
    TrialFactory,
    known_work,
    pairs_of,
    search_budget,
    seeds_of,
)

IsFinished = Callable[[TrialConfig], TrialRecord | None]
IsWelcome = Callable[[TrialConfig], bool]
WorkLines = list[tuple[PlanEntry, TrialConfig]]
SHOWN_CHANGES = 3
SEARCH_STAGES = 3  # a search trial, a confirmation and a report follow one another


class Schedule:
    """Emits trials whose requirements are done: the longest remaining path first, then searches, confirmations and winners.

    `finished` looks a trial up in the result folder. Every trial is emitted at most once; `entries` is the plan as far as it is known.
    `lines` are the work known beforehand (None: that of `options`), `kept` are other commands' lines of the same folder, which stay in
    its plan; `cost` says how long trials take and learns from those that end. `watchers` hear of every epoch, and None at a trial's end.

    Raises:
        ValueError: the journal can't be read, or a study was begun with another space or with options that made its trials others.
    """

    def __init__(
        self,
        options: SweepOptions,
        store: ResultStore,
        finished: IsFinished,
        *,
        lines: WorkLines | None = None,
        kept: Sequence[PlanEntry] = (),
        cost: CostModel | None = None,
    ) -> None:
        self.options, self.store, self.finished = options, store, finished
        self.cost = cost if cost is not None else CostModel("cuda" if options.gpus else "cpu")
        self.factory = TrialFactory(options)
        self.entries: list[PlanEntry] = []
        self.configs: dict[str, TrialConfig] = {}
        self.needs: dict[str, tuple[str, ...]] = {}
        self.dependants: dict[str, list[str]] = {}
        self.costs: dict[str, float] = {}  # seconds
        self.paths: dict[str, float] = {}  # seconds of the longest chain from a trial on, where known
        self.queue: list[tuple[float, int, str]] = []  # what can start, longest path first; entries that can't any more are skipped
        self.newly_ready: list[str] = []
        self.positions: dict[str, int] = {}
        self.are_paths_stale = True
        self.priced_revision = self.cost.revision
        self.done: dict[str, TrialRecord] = {}
        self.running: set[str] = set()
        self.failed: set[str] = set()
        self.redone: set[str] = set()  # requirements that were done, lost their weights and were trained again
        self.numbers: dict[str, list[tuple[PairSearch, int]]] = {}
        self.is_stopping = False
        self.is_blocked = False  # it stops for what only a person can mend: no room in the result folder, no node that can run trials
        self.num_slots = 1.0  # trials at once, as the engine sees it
        self.epochs_done: dict[str, int] = {}  # of running trials
        self.forecast_seconds: float | None = None  # what was left at the engine's last look, once something was measured
        self.lines: set[tuple[str, str, str, str, int, str]] = set()
        self.first_lines: dict[str, PlanEntry] = {}
        self.kept = list(kept)
        self.watchers: list[Callable[[TrialConfig, EpochMetrics | None], None]] = []
        self.searches: dict[str, PairSearch] = {}
        self.search_teachers: dict[str, TrialConfig] = {}
        self.student_costs: dict[str, float] = {}  # seconds
        self.stages_after: dict[str, tuple[str, int]] = {}  # trial -> its pair, and the searched students that follow one another after it
        for entry, config in known_work(options) if lines is None else lines:
            self._add(entry, config)
        self.phases: dict[str, str] = {}
        if TUNED in options.methods:
            store.root.mkdir(parents=True, exist_ok=True)
            repair_journal(store.journal_path)
            storage = open_storage(store.journal_path)
            for pair in pairs_of(options):
                pruner = make_pruner(options.pruner, self.factory.optim.epochs)
                teacher = self.factory.joint_teacher(pair.teacher, 0, for_search=True)
                self.search_teachers[pair.name] = teacher
                self.student_costs[pair.name] = self.cost.seconds(self.factory.hsakd(pair, 0, teacher))
                search = PairSearch(
                    pair,
                    storage,
                    budget=search_budget(options),
                    pruner=pruner,
                    space=options.search_space(),
                    learning_rate=self.factory.student_learning_rate(pair.student),
                    cost_of=partial(self._student_runs, pair),
                )
                self._check_options(search)
                self.searches[pair.name] = search
                self.phases[pair.name] = "search"
                for trial in search.asked():
                    self._plan_search(search, trial.number)
        for name in sorted(self.searches, key=lambda name: self.student_costs[name]):
            self.stages_after[self.search_teachers[name].trial_id] = (name, SEARCH_STAGES)
        self._advance()

    def _check_options(self, search: PairSearch) -> None:
        """Refuse a study whose trials were other trainings: its values can't be compared with those to come, nor told anew.

        What counts is what was asked for: a study that a refused command has only created is bound to nothing.
        """
        paper = self.factory.hsakd(search.pair, 0, self.search_teachers[search.pair.name])
        if search.paper_trial_id in ("", paper.trial_id):
            return
        record = self.store.peek_trial(search.paper_trial_id)
        changes = "" if record is None else f" ({'; '.join(changed(record.config.to_dict(), paper.to_dict())[:SHOWN_CHANGES])})"
        raise ValueError(
            f"--out is {self.options.out}, whose study {search.pair.name} was begun with other options{changes}; "
            "accepted: the options it was begun with, or another --out"
        )

    def _student_runs(self, pair: Pair, setting: Setting) -> float:
        """Return a search trial's cost over that of the paper's setting."""
        teacher = self.search_teachers[pair.name]
        return cost_of(self.factory.hsakd(pair, 0, teacher, setting)) / cost_of(self.factory.hsakd(pair, 0, teacher))

    def _add(self, entry: PlanEntry, config: TrialConfig) -> None:
        for requirement in config.requirements():
            self._require(requirement)
        self._require(config)
        line = (entry.purpose, entry.method, f"{entry.teacher}-{entry.student}", entry.trial_id, entry.seed, entry.study)
        if line not in self.lines:
            self.lines.add(line)
            self.entries.append(entry)
            self.first_lines.setdefault(entry.trial_id, entry)

    def _require(self, config: TrialConfig) -> None:
        for requirement in config.requirements():
            self._require(requirement)
        trial_id = config.trial_id
        if trial_id in self.configs:
            return
        self.configs[trial_id] = config
        self.positions[trial_id] = len(self.positions)
        self.needs[trial_id] = tuple(requirement.trial_id for requirement in config.requirements())
        self.costs[trial_id] = self.cost.seconds(config)
        for needed in self.needs[trial_id]:
            self.dependants.setdefault(needed, []).append(trial_id)
            self.are_paths_stale |= needed not in self.done
        record = self.finished(config)
        if record is not None:
            self.done[trial_id] = record
            self.cost.observe_record(record)
        self._forget_without_weights(self.needs[trial_id])
        self._note_if_ready(trial_id)

    def _forget_without_weights(self, needed_ids: tuple[str, ...]) -> None:
        """Put finished trials that are needed, but whose weights were given up, back on the work-list."""
        for needed in needed_ids:
            record = self.done.get(needed)
            if record is not None and record.status == "complete" and not record.has_weights:
                del self.done[needed]
                self._note_if_ready(needed)

    def line_of(self, trial_id: str) -> PlanEntry:
        """Return the first line that names a trial; of one that only others need, a line as their backbone."""
        if trial_id in self.first_lines:
            return self.first_lines[trial_id]
        return PlanEntry(trial_id=trial_id, purpose="backbone", method="", teacher=self.configs[trial_id].network, student="")

    def is_needed(self, trial_id: str) -> bool:
        """Whether other trials read, or may come to read, this one's weights."""
        return bool(self.dependants.get(trial_id)) or self.configs[trial_id].role == "teacher"

    def next_trial(self, is_welcome: IsWelcome | None = None) -> TrialConfig | None:
        """Return a trial to start, or None if nothing can start now; `is_welcome` may refuse trials that don't fit the time left."""
        if self.is_stopping:
            return None
        refused: list[tuple[float, int, str]] = []
        try:
            while True:
                self._refresh_paths()
                askable = [name for name in self.searches if self._can_ask(name)]
                name = max(askable, key=lambda name: SEARCH_STAGES * self.student_costs[name], default=None)
                if name is not None and is_welcome is not None and not is_welcome(self._typical_student(name)):
                    name = None
                while self.queue and not self._can_start(self.queue[0][2]):
                    heapq.heappop(self.queue)
                if not self.queue and name is None:
                    return None
                if name is None or (self.queue and -self.queue[0][0] >= SEARCH_STAGES * self.student_costs[name]):
                    item = heapq.heappop(self.queue)
                    chosen = item[2]
                    if is_welcome is not None and not is_welcome(self.configs[chosen]):
                        refused.append(item)
                        continue
                else:
                    chosen = self._ask(name)
                    if not self._can_start(chosen):  # the same setting is running or has been run: told, and ask again
                        continue
                self.running.add(chosen)
                return self.configs[chosen]
        finally:
            for item in refused:
                heapq.heappush(self.queue, item)

    def put_back(self, trial_id: str) -> None:
        """Take back a trial that was not started after all, or that was stopped and is to go on."""
        self.running.discard(trial_id)
        self._tell_watchers(trial_id, None)
        self._note_if_ready(trial_id)

    def _typical_student(self, name: str) -> TrialConfig:
        return self.factory.hsakd(self.searches[name].pair, 0, self.search_teachers[name])

    def _can_ask(self, name: str) -> bool:
        return self._is_usable(self.search_teachers[name]) and self.searches[name].num_left() > 0

    def _note_if_ready(self, trial_id: str) -> None:
        if self._can_start(trial_id):
            self.newly_ready.append(trial_id)

    def _can_start(self, trial_id: str) -> bool:
        if trial_id in self.done or trial_id in self.running or trial_id in self.failed:
            return False
        return all(needed in self.done and self.done[needed].status == "complete" for needed in self.needs[trial_id])

    def _is_usable(self, config: TrialConfig) -> bool:
        return config.trial_id in self.done and self.done[config.trial_id].status == "complete"

    def _refresh_paths(self) -> None:
        """Bring the queue up to date: anew where prices or chains have changed, else with what has become ready."""
        if self.priced_revision != self.cost.revision:
            self.priced_revision = self.cost.revision
            self.costs = {trial_id: self.cost.seconds(config) for trial_id, config in self.configs.items()}
            self.student_costs = {name: self.cost.seconds(self._typical_student(name)) for name in self.searches}
            self.are_paths_stale = True
        if self.are_paths_stale:
            ready = {trial_id for _, _, trial_id in self.queue} | set(self.newly_ready)
            self.paths.clear()
            self.queue, self.are_paths_stale = [], False
        else:
            ready = set(self.newly_ready)
        self.newly_ready = []
        for trial_id in ready:
            heapq.heappush(self.queue, (-self._path(trial_id), self.positions[trial_id], trial_id))

    def _path(self, trial_id: str) -> float:
        """Return a trial's own seconds plus those of the longest chain of what waits for it, the stages of a search included."""
        if trial_id not in self.paths:
            name, stages = self.stages_after.get(trial_id, ("", 0))
            tail = max((self._path(dependant) for dependant in self.dependants.get(trial_id, [])), default=0.0)
            own = 0.0 if trial_id in self.done else self.costs[trial_id]
            self.paths[trial_id] = own + max(tail, stages * self.student_costs.get(name, 0.0))
        return self.paths[trial_id]

    def _ask(self, name: str) -> str:
        search = self.searches[name]
        trial_id = self._plan_search(search, search.ask()).trial_id
        if trial_id in self.done:  # the same setting was already run
            self.complete(trial_id, self.done[trial_id])
        return trial_id

    def _plan_search(self, search: PairSearch, number: int) -> TrialConfig:
        """Put a study's trial into the plan; tell it at once where the result folder knows its end."""
        config = self.factory.hsakd(search.pair, 0, self.search_teachers[search.pair.name], search.setting(number))
        self._add(search.pair.line(config, purpose="search", method="search", study=search.pair.name, study_number=number), config)
        self.numbers.setdefault(config.trial_id, []).append((search, number))
        self.stages_after[config.trial_id] = (search.pair.name, SEARCH_STAGES - 1)
        if search.study.get_trials(deepcopy=False)[number].user_attrs.get("trial_id") != config.trial_id and number in search.running():
            search.remember(number, config.trial_id)
        if config.trial_id in self.done:
            search.tell(number, self.done[config.trial_id])
        return config

    def on_epoch(self, trial_id: str, metrics: EpochMetrics) -> bool:
        """Pass an epoch on to the study; return whether the trial should be pruned."""
        self._tell_watchers(trial_id, metrics)
        users = self.numbers.get(trial_id, [])
        verdicts = [search.should_prune(number, metrics) for search, number in users]  # each study hears of it
        return any(verdicts) and not any(search.is_protected(number) for search, number in users)

    def _tell_watchers(self, trial_id: str, metrics: EpochMetrics | None) -> None:
        for watch in self.watchers:
            watch(self.configs[trial_id], metrics)

    def complete(self, trial_id: str, record: TrialRecord) -> None:
        """Take note of a trial's end, as its record in the result folder says; one that failed for a lost requirement waits for it."""
        self.running.discard(trial_id)
        self._tell_watchers(trial_id, None)
        if record.status == "failed" and self._redo_lost_requirements(trial_id):
            return
        self.done[trial_id] = record
        self.cost.observe_record(record)
        if record.status in ("failed", "out_of_memory"):
            self.failed.add(trial_id)
        for dependant in self.dependants.get(trial_id, []):
            self._note_if_ready(dependant)
        for search, number in self.numbers.get(trial_id, []):
            search.tell(number, record)
        self._advance()

    def _redo_lost_requirements(self, trial_id: str) -> bool:
        """Put requirements whose weights were set aside back on the work-list, each once; return whether there was one."""
        lost = [needed for needed in self.needs[trial_id] if needed in self.done and self.finished(self.configs[needed]) is None]
        fresh = [needed for needed in lost if needed not in self.redone]
        for needed in fresh:
            del self.done[needed]
            self._note_if_ready(needed)
        self.are_paths_stale |= bool(fresh)
        self.redone.update(fresh)
        return bool(fresh) or any(needed not in self.done for needed in self.needs[trial_id])

    def _advance(self) -> None:
        """Move each pair from search to confirmation to its reported winner, as soon as the results are there."""
        for name, search in self.searches.items():
            if self.phases[name] == "search" and not search.num_left() and not search.running() and self._are_all_done(search):
                for setting in [PAPER_SETTING, *search.best(self._top_k())]:
                    for seed in seeds_of(self.options):
                        config = self.factory.hsakd(search.pair, seed, self.search_teachers[name], setting)
                        more = {"seed": seed, "study": name, "study_number": search.number_of(setting)}
                        self._add(search.pair.line(config, purpose="confirm", method="confirm", **more), config)
                        self.stages_after.setdefault(config.trial_id, (name, 1))
                self.phases[name] = "confirm"
            if self.phases[name] == "confirm":
                winner = self._winner(search)
                if winner is not None:
                    for seed in seeds_of(self.options):
                        config = self.factory.hsakd(search.pair, seed, self.factory.joint_teacher(search.pair.teacher, 0), winner)
                        self._add(search.pair.line(config, purpose="report", method=TUNED, seed=seed), config)
                    self.phases[name] = "report"

    def _are_all_done(self, search: PairSearch) -> bool:
        """Whether no trial of a study is tried again after an earlier command's failure."""
        return all(trial_id in self.done for trial_id, users in self.numbers.items() if any(user is search for user, _ in users))

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
        known = len(self.configs) - len(self.done) - sum(trial_id not in self.done for trial_id in self.running)
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
        ready = (*self.newly_ready, *(trial_id for _, _, trial_id in self.queue))
        return not any(map(self._can_ask, self.searches)) and not any(map(self._can_start, ready))

    def seconds_left(self) -> float:
        """Return about how long the rest takes: the work left over the slots, or the longest chain if that is longer."""
        self._refresh_paths()
        work = chain = 0.0
        for trial_id in self.configs:
            if trial_id in self.done or trial_id in self.failed:
                continue
            epochs = max(1, self.configs[trial_id].optim.epochs)
            begun = self.costs[trial_id] * min(1.0, self.epochs_done.get(trial_id, 0) / epochs) if trial_id in self.running else 0.0
            work += self.costs[trial_id] - begun
            chain = max(chain, self._path(trial_id) - begun)
        for name, search in self.searches.items():
            stages = {"search": SEARCH_STAGES, "confirm": 1}.get(self.phases[name], 0)
            if stages:
                num_left = search.num_left() + (len(seeds_of(self.options)) * (self._top_k() + 1) if stages == SEARCH_STAGES else 0)
                work += (num_left + len(seeds_of(self.options))) * self.student_costs[name]
                chain = max(chain, stages * self.student_costs[name])
        return max(work / self.num_slots, chain)

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


def changed(old: Any, new: Any, name: str = "") -> list[str]:
    """Return what differs between two nested tables, as "optim.epochs was 1, is 240"; keys are those of `new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [text for key in new for text in changed(old.get(key), new[key], f"{name}.{key}".lstrip("."))]
    return [] if old == new else [f"{name} was {old}, is {new}"]
