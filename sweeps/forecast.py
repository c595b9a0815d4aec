"""What a sweep will take, before it runs: GPU-hours, the makespan on N GPUs, disk. A virtual clock over the work-list; starts nothing."""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from hsakd.bank_size import bank_bytes
from hsakd.config import DataConfig, TrialConfig
from hsakd.dataset_table import DATASET_TABLE, DatasetFacts
from hsakd.store import ResultStore
from hsakd.term_table import facts_of_terms
from sweeps.cli import SweepOptions
from sweeps.cost import CostModel
from sweeps.networks import network_facts
from sweeps.packing import Packing
from sweeps.presets import PRESETS, TUNED
from sweeps.schedule import WorkLines
from sweeps.worklist import TrialFactory, num_search_trials, num_train_images, pairs_of, seeds_of

WEIGHT_BYTES = 4
STATES_PER_RESUME_FILE = 2  # weights and their momentum
DETECTOR_PARAMETERS = 17_204_344  # of pyramid, proposals and box head on ResNet-18 and 34


@dataclass(slots=True)
class Job:
    """A trial, or a barrier (no seconds) of a search; `needs` are names of jobs that come before it."""

    name: str
    seconds: float
    share: float
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """`slot_hours` are GPU-hours, or hours of a CPU slot where no GPU is asked for; disk is in bytes, that of banks per node."""

    num_trials: int
    slot_hours: float
    makespan_hours: float
    weights_bytes: int
    resume_bytes: int
    bank_bytes: int
    largest_bank_bytes: int


def unique_trials(lines: WorkLines) -> dict[str, TrialConfig]:
    """Return every trial of the work-list with its requirements, by id, requirements first."""
    trials: dict[str, TrialConfig] = {}

    def add(trial_id: str, config: TrialConfig) -> None:
        if trial_id not in trials:
            for needed in config.requirements():
                add(needed.trial_id, needed)
            trials[trial_id] = config

    for entry, config in lines:
        add(entry.trial_id, config)
    return trials


def searched_trials(options: SweepOptions) -> int:
    """Return at most how many trainings a pair's search, its confirmations and its winner add to what is known."""
    top_k = options.top_k if options.top_k is not None else PRESETS[options.preset].top_k
    return num_search_trials(options) + (1 + top_k) * (len(seeds_of(options)) - 1) + len(seeds_of(options))


def packed_seconds(config: TrialConfig, options: SweepOptions, cost: CostModel, packing: Packing) -> float:
    """Return the seconds of a trial on its share of a GPU, or on several.

    Throughput that has been measured is of trials packed as they were; where none has, seconds are taken to be in proportion.
    """
    seconds = cost.seconds(config)
    return seconds if cost.num_measured or not options.gpus else seconds / packing.share(config.network)


def forecast(
    options: SweepOptions, trials: dict[str, TrialConfig], done: Iterable[str], cost: CostModel, packing: Packing, num_slots: int
) -> Forecast:
    """Return what the trials that are not `done` take, searches counted as if all of their trainings ran to the end.

    `done` are ids of trials, and names of searched trainings (`read_searched`). `num_slots` are GPUs, or trials at once on the CPU.
    """

    def job(name: str, config: TrialConfig, needs: tuple[str, ...]) -> Job:
        share = packing.share(config.network) if options.gpus else 1.0
        return Job(name, packed_seconds(config, options, cost, packing), share, needs)

    is_done = set(done)
    jobs = [
        job(trial_id, config, tuple(needed.trial_id for needed in config.requirements()))
        for trial_id, config in trials.items()
        if trial_id not in is_done
    ]
    searched = list(_searched(options, job)) if TUNED in options.methods else []
    everything = [*trials.values(), *(config for config, _ in searched)]
    jobs += [item for _, item in searched if item.name not in is_done]
    jobs = [Job(item.name, item.seconds, item.share, tuple(n for n in item.needs if n not in is_done)) for item in jobs]
    banks = bank_needs(everything).values()
    num_running = packing.most_at_once(num_slots) if options.gpus else max(1, num_slots)
    return Forecast(
        num_trials=sum(item.seconds > 0 for item in jobs),
        slot_hours=sum(item.seconds * item.share for item in jobs) / 3600,
        makespan_hours=makespan(jobs, max(1, num_slots)) / 3600,
        weights_bytes=_weights_bytes(options, everything),
        resume_bytes=_resume_bytes(options, everything, num_running),
        bank_bytes=sum(banks),
        largest_bank_bytes=max(banks, default=0),
    )


def _searched(options: SweepOptions, job: Callable[[str, TrialConfig, tuple[str, ...]], Job]) -> Iterable[tuple[TrialConfig, Job]]:
    """Yield each pair's searched trainings: all trials, then all confirmations, then the winner's seeds, barriers between them."""
    factory = TrialFactory(options)
    num_seeds = len(seeds_of(options))
    for pair in pairs_of(options):
        teacher = factory.joint_teacher(pair.teacher, 0, for_search=True)
        full_teacher = factory.joint_teacher(pair.teacher, 0)
        searched, reported = factory.hsakd(pair, 0, teacher), factory.hsakd(pair, 0, full_teacher)
        num_confirmations = searched_trials(options) - num_search_trials(options) - num_seeds
        before: tuple[str, ...] = (teacher.trial_id,)
        stages = (
            ("search", num_search_trials(options), searched),
            ("confirm", num_confirmations, searched),
            ("report", num_seeds, reported),
        )
        for stage, count, config in stages:
            names = [f"{pair.name}/{stage}/{number}" for number in range(count)]
            for name in names:
                needs = (*before, full_teacher.trial_id) if stage == "report" else before
                yield config, job(name, config, needs)
            before = (f"{pair.name}/{stage}",)
            yield config, Job(before[0], 0.0, 0.0, tuple(names))


def makespan(jobs: list[Job], num_slots: int) -> float:
    """Return when the last job ends, in seconds: the longest remaining path first, on `num_slots` GPUs that jobs share by their shares."""
    by_name = {item.name: item for item in jobs}
    missing = {item.name: sum(needed in by_name for needed in item.needs) for item in jobs}
    dependants: dict[str, list[str]] = {}
    for item in jobs:
        for needed in item.needs:
            dependants.setdefault(needed, []).append(item.name)
    paths: dict[str, float] = {}

    def path(name: str) -> float:
        if name not in paths:
            paths[name] = by_name[name].seconds + max((path(after) for after in dependants.get(name, [])), default=0.0)
        return paths[name]

    ready = [(-path(name), name) for name, count in missing.items() if count == 0]
    heapq.heapify(ready)
    ends: list[tuple[float, str]] = []
    clock, free = 0.0, float(num_slots)
    while ready or ends:
        while ready and by_name[ready[0][1]].share <= free + 1e-9:
            item = by_name[heapq.heappop(ready)[1]]
            free -= item.share
            heapq.heappush(ends, (clock + item.seconds, item.name))
        clock, name = heapq.heappop(ends)
        free += by_name[name].share
        for after in dependants.get(name, []):
            missing[after] -= 1
            if missing[after] == 0:
                heapq.heappush(ready, (-path(after), after))
    return clock


def weights_bytes_of(config: TrialConfig) -> int:
    """Return the size of a trial's final weights, those of its peer included."""
    peer = 0 if config.peer is None else weights_bytes_of(replace(config, network=config.peer, peer=None))
    facts = network_facts(config.network)
    taps = config.taps if config.taps is not None else range(1, facts.num_branches + 1)
    added = DETECTOR_PARAMETERS if config.detection is not None else sum(facts.branch_parameters[tap - 1] for tap in taps)
    return WEIGHT_BYTES * (facts.parameters + added) + peer


def _weights_bytes(options: SweepOptions, trials: list[TrialConfig]) -> int:
    needed = {requirement.trial_id for config in trials for requirement in config.requirements()}
    kept = [config for config in trials if options.keep_checkpoints != "teachers" or config.trial_id in needed or config.role == "teacher"]
    return sum(weights_bytes_of(config) for config in kept)


def _resume_bytes(options: SweepOptions, trials: list[TrialConfig], num_running: int) -> int:
    sizes = sorted((STATES_PER_RESUME_FILE * weights_bytes_of(config) for config in trials), reverse=True)
    return sum(sizes if options.keep_checkpoints == "all" else sizes[:num_running])


def bank_needs(trials: Iterable[TrialConfig]) -> dict[tuple[str, DataConfig, int], int]:
    """Return the size in bytes of each full teacher bank by teacher, data and rotations, if a node has students of all of them."""
    taps: dict[tuple[str, DataConfig, int], set[int]] = {}
    dtypes = {}
    for config in trials:
        reads = facts_of_terms(name for name, _ in config.objective.terms)
        if config.teacher is None or config.numerics.teacher_predictions != "bank" or reads.reads_features:
            continue
        if view_facts(config.data) is None:
            continue
        key = (config.teacher.trial_id, config.data, config.num_rotations if reads.is_rotated else 1)
        own = range(1, network_facts(config.network).num_branches + 1) if config.taps is None else config.taps
        taps.setdefault(key, set()).update(own if reads.reads_teacher_branches else ())  # students that read other branches share a bank
        dtypes[key] = (num_train_images(config), config.numerics.bank_dtype)
    sizes = {}
    for key, branches in taps.items():
        facts, (num_images, dtype) = view_facts(key[1]), dtypes[key]
        assert facts is not None
        assert facts.num_classes is not None
        sizes[key] = bank_bytes(num_images, facts.num_views, key[2], facts.num_classes, len(branches), dtype)
    return sizes


def view_facts(data: DataConfig) -> DatasetFacts | None:
    """Return what a bank of this data depends on; None where there is none, as of resized crops."""
    if data.augmentation != "shift":
        return None
    if data.folder is not None:
        return DatasetFacts(num_classes=data.folder.num_classes, padding=data.folder.padding, has_flip=data.folder.has_flip)
    facts = DATASET_TABLE.get(data.dataset)
    return facts if facts is not None and facts.num_views else None


def read_done(store: ResultStore, trials: dict[str, TrialConfig], cost: CostModel) -> set[str]:
    """Return the ids of trials that need no more work, and let the cost model learn from them."""
    found = [store.peek_trial(trial_id) for trial_id in store.trial_ids() if trial_id in trials]
    records = [record for record in found if record is not None and store.is_finished(record)]
    for record in records:
        cost.observe_record(record)
    return {record.trial_id for record in records}


def read_shared(options: SweepOptions, trials: dict[str, TrialConfig], done: set[str]) -> set[str]:
    """Return the ids of what is to be taken over from `--teachers-from`; whether its weights are intact is looked at when it is."""
    if options.teachers_from is None:
        return set()
    source = ResultStore(options.teachers_from)
    wanted = [trial_id for trial_id, config in trials.items() if config.role != "student" and trial_id not in done]
    return {trial_id for trial_id in wanted if source.offered(trial_id) is not None}


def read_searched(options: SweepOptions, store: ResultStore) -> set[str]:
    """Return the names of the searched trainings (as `_searched` numbers them) that are done, by the folder's plan and its records."""
    done: dict[tuple[str, str], set[str]] = {}
    factory = TrialFactory(options)
    teachers = {pair.name: factory.joint_teacher(pair.teacher, 0, for_search=True).trial_id for pair in pairs_of(options)}
    reported = {pair.name: factory.joint_teacher(pair.teacher, 0).trial_id for pair in pairs_of(options)}
    try:
        plan = store.read_plan()
    except ValueError:  # the sweep sets it aside
        plan = []
    for entry in plan:
        is_winner = (entry.purpose, entry.method) == ("report", TUNED)
        is_again = entry.purpose == "confirm" and entry.seed == 0  # the search's own trial
        name = f"{entry.teacher}-{entry.student}"
        if not entry.trial_id or is_again or not (is_winner or entry.purpose in ("search", "confirm")) or name not in teachers:
            continue
        record = store.peek_trial(entry.trial_id)
        teacher = (reported if is_winner else teachers)[name]
        if record is not None and store.is_finished(record) and record.teacher_trial_id == teacher:
            done.setdefault((name, entry.purpose), set()).add(entry.trial_id)
    return {f"{name}/{stage}/{number}" for (name, stage), ids in done.items() for number in range(len(ids))}
