"""The cluster's nodes: who is there, who can run trials, and how many at once."""

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hsakd.config import DataConfig
from hsakd.files import replacing
from sweeps.engine.options import HEARTBEAT_SECONDS, EngineOptions, Unfit
from sweeps.fitness import TOKEN_FILE, Expected, data_problem, node_problem, present_versions
from sweeps.packing import num_cores
from sweeps.wording import counted

NODE_CHECK_SECONDS = 300.0
JOIN_SECONDS = 300.0  # workers start with the driver, on busy machines and from slow disks


def check_node(expected: Expected, data: DataConfig | None, data_dir: Path | None) -> str:
    """Return why the node that this runs on can't run trials, or ""."""
    return node_problem(expected) or (data_problem(data, data_dir) if data is not None else "")


def all_nodes() -> list[dict[str, Any]]:
    """Return Ray's list of nodes, dead ones included."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return nodes


class Nodes:
    """The cluster's nodes as they come and go: each is checked before it counts; one that is not fit is avoided, with a sentence."""

    def __init__(self, options: EngineOptions, say: Callable[[str], None]) -> None:
        self.options, self.say = options, say
        self.problems: dict[str, str] = {}  # node -> why it is avoided
        self.checks: dict[str, Any] = {}  # node -> the result of its check, to come
        self.fit: dict[str, dict[str, float]] = {}
        self.expected: Expected | None = None
        if options.address is not None:
            token = secrets.token_hex(16)
            with replacing(options.out / TOKEN_FILE) as temporary:
                temporary.write_text(token)
            dataset = "" if options.data is None else options.data.dataset
            self.expected = Expected(out=options.out, token=token, versions=tuple(present_versions().items()), dataset=dataset)

    def refresh(self) -> None:
        """Look who is there; start the check of newcomers, and take in what checks have found."""
        alive = {node["NodeID"]: node for node in all_nodes() if node["Alive"]}
        self.fit = {name: resources for name, resources in self.fit.items() if name in alive}
        self.checks = {name: check for name, check in self.checks.items() if name in alive}
        for name, node in alive.items():
            if name in self.fit or name in self.problems or name in self.checks or not node["Resources"].get(self.kind):
                continue
            if self.expected is None:
                self.fit[name] = node["Resources"]
                continue
            if (cpus := int(node["Resources"].get("CPU", 0))) < self.options.cpus_per_trial:
                self.avoid(name, f"it has {cpus} CPUs, a trial takes {self.options.cpus_per_trial} (--threads, --loader-workers)")
                continue
            where = NodeAffinitySchedulingStrategy(name, soft=False)
            task = ray.remote(check_node).options(num_cpus=0, max_retries=0, scheduling_strategy=where)
            self.checks[name] = task.remote(self.expected, self.options.data, self.options.context.get("data_dir"))
        if not self.checks:
            return
        ended, _ = ray.wait(list(self.checks.values()), num_returns=len(self.checks), timeout=0)
        for name in [name for name, check in self.checks.items() if check in ended]:
            try:
                problem = ray.get(self.checks.pop(name))
            except ray.exceptions.RayError as error:
                problem = f"its check failed: {str(error).strip().splitlines()[-1]}"
            if problem:
                self.avoid(name, problem)
            else:
                self.fit[name] = alive[name]["Resources"]

    def wait_for_checks(self, beat: Callable[[], None] = lambda: None) -> None:
        """Return once every node that is there has been checked, in a cluster at least one; raises Unfit where none can run trials.

        A cluster's nodes join one by one, some after the driver, so the first is waited for (with `requires_gpus` all of them), with a
        `beat` every two seconds.
        """
        started = time.monotonic()
        self.refresh()
        next_beat = started + HEARTBEAT_SECONDS
        is_said = False
        while (self.checks and time.monotonic() < started + JOIN_SECONDS + NODE_CHECK_SECONDS) or (  # the last to join is checked, too
            self._are_expected and time.monotonic() < started + JOIN_SECONDS
        ):
            if not self.checks and not is_said:
                is_said = True
                self.say(f"the cluster has {counted(self.num_present, self.kind)} yet; waiting for more, up to {JOIN_SECONDS:g} s")
            time.sleep(0.1)
            self.refresh()
            if time.monotonic() > next_beat:
                beat()
                next_beat = time.monotonic() + HEARTBEAT_SECONDS
        if not self.fit and self.problems:
            raise Unfit(f"no node of the cluster can run trials: {next(iter(self.problems.values()))}")
        if not (self.fit or self.checks) and not self.options.gpus and self.options.address is not None:
            raise Unfit(f"--address is {self.options.address}, whose nodes have no CPU for trials; accepted: a cluster with workers")

    @property
    def _are_expected(self) -> bool:
        """Whether nodes that a start needs are still to join."""
        wanted = float(self.options.gpus) if self.options.requires_gpus else 1.0
        return self.options.address is not None and not self.problems and self.num_present < wanted

    def avoid(self, name: str, problem: str) -> None:
        """Place no more trials on a node."""
        self.fit.pop(name, None)
        if name not in self.problems:
            address = next((node["NodeManagerAddress"] for node in all_nodes() if node["NodeID"] == name), "?")
            self.say(f"node {address} ({name[:8]}) is not used: {problem}")
        self.problems[name] = problem

    @property
    def kind(self) -> str:
        """The resource that trials share."""
        return "GPU" if self.options.gpus else "CPU"

    @property
    def avoided(self) -> tuple[str, ...]:
        """Nodes that a trial must not be placed on.

        Not those whose check is under way: what is asked for now may wait until they are all that is left. A trial that comes to one
        before its check has ended looks for itself (`run_unit`).
        """
        return tuple(sorted(self.problems))

    @property
    def num_present(self) -> float:
        """GPUs (CPUs where no GPU is asked for) of the nodes that can run trials."""
        return sum(resources.get(self.kind, 0.0) for resources in self.fit.values())

    @property
    def are_all_unfit(self) -> bool:
        """Whether there are nodes, and none that can run trials."""
        return bool(self.problems) and not self.fit and not self.checks


def check_gpus(options: EngineOptions, nodes: Nodes, say: Callable[[str], None]) -> None:
    """Refuse a cluster without GPUs where some are wanted; with fewer than wanted say so (or refuse, with `requires_gpus`)."""
    if not options.gpus:
        if options.address is None and options.cpus_per_trial > num_cores():
            say(f"a trial's {options.cpus_per_trial} CPUs share {num_cores()} CPU cores; fewer --threads may be faster")
        return
    present = int(nodes.num_present)
    if present == 0:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus = num_cores() if options.address is None else int(resources.get("CPU", 0))  # a local Ray is told of more, for threads
        raise Unfit(f"--gpus is {options.gpus}, but the cluster has no GPU ({cpus} CPUs); use --gpus 0")
    if present < options.gpus:
        if options.requires_gpus:
            raise Unfit(f"--gpus is {options.gpus}, but the cluster has {present}; drop --require-gpus to start with them")
        say(f"the cluster has {present} of {options.gpus} GPUs; more are used as nodes join")
    num_trials, cores = options.packing.most_at_once(min(present, options.gpus)), num_cores()
    if options.address is None and num_trials * options.cpus_per_trial > cores:  # a cluster's Ray starts no more than its CPUs allow
        fewer = "--loader-workers" if options.context.get("loader_workers") else "--trials-per-gpu"
        say(f"{num_trials} trials of {options.cpus_per_trial} CPUs each share {cores} CPU cores; fewer {fewer} may be faster")
    if (enough := slots_by_cpus(options, nodes)) < num_trials:
        say(
            f"the nodes' CPUs are enough for {enough} of {num_trials} trials at once, {options.cpus_per_trial} CPUs each; "
            "fewer --threads or --loader-workers use more GPUs"
        )
    ranks = options.packing.ranks_per_trial
    if ranks > 1 and ranks > (largest := int(max(resources.get("GPU", 0) for resources in nodes.fit.values()))):
        raise Unfit(f"--ranks-per-trial is {ranks}, but no node has more than {largest} GPUs; a trial's ranks are on one node")


def num_slots(options: EngineOptions, nodes: Nodes) -> int:
    """Return how many trials may run at once, at least 1: GPUs x trials per GPU if the CPUs suffice, or CPUs / CPUs per trial.

    Where a cluster lacks GPUs, trials that wait in Ray have an autoscaler add some: those of one more place are asked for. (Not with a
    time limit: what waits in Ray may start too late for it.)
    """
    if options.gpus:
        is_growing = nodes.num_present < options.gpus and options.time_limit_seconds is None
        more = options.packing.most_at_once(options.packing.ranks_per_trial) if is_growing else 0
        return max(1, min(options.packing.most_at_once(options.gpus), slots_by_cpus(options, nodes) + more))
    return max(1, int(nodes.num_present) // options.cpus_per_trial)


def slots_by_cpus(options: EngineOptions, nodes: Nodes) -> int:
    """Return for how many trials on GPUs the CPUs of a cluster's nodes suffice, node by node; a local Ray is told of enough."""
    most = options.packing.most_at_once(options.gpus)
    if options.address is None or not nodes.fit:
        return most
    with_gpus = [(int(each["GPU"]), int(each.get("CPU", 0))) for each in nodes.fit.values() if each.get("GPU")]
    return sum(min(options.packing.most_at_once(gpus), cpus // options.cpus_per_trial) for gpus, cpus in with_gpus)


def planned_slots(options: EngineOptions) -> int:
    """Return how many trials may run at once if all GPUs are there; of a cluster's CPUs, which only Ray knows, 1."""
    if options.gpus:
        return options.packing.most_at_once(options.gpus)
    return max(1, num_cores() // options.cpus_per_trial) if options.address is None else 1
