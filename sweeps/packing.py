"""How much of a GPU a trial gets: a share per network, smaller networks sharing one; out of memory makes it larger."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sweeps.networks import is_network

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU in each period, or "max"


@dataclass(kw_only=True, slots=True)
class Packing:
    """`1 / trials_per_gpu` of a GPU for every network but those of `fractions`; `alone` are trials that get a whole one.

    `host_alone` are trials beside which no other runs at all, since a machine's memory did not suffice.

    With `ranks_per_trial` above 1 every trial gets that many whole GPUs.
    """

    trials_per_gpu: int = 1
    ranks_per_trial: int = 1
    fractions: dict[str, float] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    host_alone: set[str] = field(default_factory=set)

    def share(self, network: str, trial_id: str = "") -> float:
        """Return the part of a GPU that a trial of `network` reserves."""
        if self.ranks_per_trial > 1:
            return float(self.ranks_per_trial)
        return 1.0 if trial_id in self.alone else self.fractions.get(network, 1 / self.trials_per_gpu)

    def loosen(self, network: str) -> float:
        """Let one trial of `network` less share a GPU from now on; return its new share."""
        if self.ranks_per_trial > 1:
            return self.share(network)
        together = max(1, int(1 / self.share(network) + 1e-9) - 1)
        self.fractions[network] = 1 / together
        return self.fractions[network]

    def most_per_gpu(self) -> int:
        """Return the most trials that may share a GPU."""
        return max(1, *(int(1 / share + 1e-9) for share in (1 / self.trials_per_gpu, *self.fractions.values())))

    def most_at_once(self, num_gpus: int) -> int:
        """Return the most trials that so many GPUs run at once, at least 1."""
        return max(1, num_gpus * self.most_per_gpu() // self.ranks_per_trial)


def parse_fractions(texts: Sequence[str]) -> dict[str, float]:
    """Return shares by network from NETWORK=FRACTION texts; raises ValueError naming the first that is not one."""
    shares = {}
    for text in texts:
        network, _, number = text.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not is_network(network) or not 0 < share <= 1:
            raise ValueError(f"--gpu-fraction is {text}; accepted: NETWORK=FRACTION, a known network and a number above 0, at most 1")
        shares[network] = share
    return shares


def num_cores() -> int:
    """Return the cores that this process may use: those it is bound to, or its container's share of CPU time if that is less."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores
