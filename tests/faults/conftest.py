"""Several logical nodes of a real Ray cluster on this machine, and the main command joined to them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from analysis.aggregate import load
from analysis.artefact import Options
from analysis.tables import table1

ROOT = Path(__file__).parents[2]
STORE_BYTES = 80 * 2**20


class Nodes:
    """A head without trials and nodes with `gpus` logical GPUs; their workers run the stand-in trials."""

    def __init__(self, seconds: float = 0.2) -> None:
        paths = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
        os.environ.update(PYTHONPATH=paths, STAND_IN_SECONDS=str(seconds), RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
        os.environ.pop("RAY_ADDRESS", None)
        os.environ.update(RAY_worker_register_timeout_seconds="300")  # Ray kills a process that is slower to start: a busy machine's are
        os.environ.update(RAY_raylet_start_wait_time_s="300", RAY_gcs_server_port_wait_time_s="300")
        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self.drivers: list[subprocess.Popen[str]] = []
        self.cluster = Cluster(initialize_head=True, head_node_args=head)

    def add(self, *, gpus: int = 1, cpus: int = 4) -> object:
        return self.cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=STORE_BYTES)

    def kill(self, node: object) -> None:
        self.cluster.remove_node(node, allow_graceful=False)

    def names(self) -> list[str]:
        """The nodes that are alive, as the cluster's own store lists them."""
        import ray

        self.join()
        return [node["NodeID"] for node in ray.nodes() if node["Alive"]]

    def join(self) -> None:
        """Connect this process, to look only."""
        import ray

        if not ray.is_initialized():
            ray.init(address=self.cluster.address, log_to_driver=False)

    def forget(self) -> None:
        """Disconnect this process."""
        import ray

        ray.shutdown()

    def start(self, out: Path, *arguments: str, run: str = "stand_in_trials:run", **environment: str) -> "subprocess.Popen[str]":
        line = [sys.executable, str(ROOT / "sweeps" / "run_pairs.py"), "--out", str(out), "--preset", "digits"]
        driver = subprocess.Popen(
            [*line, "--address", self.cluster.address, *arguments],
            env={**os.environ, "HSAKD_RUN": run, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.drivers.append(driver)
        return driver

    def close(self) -> None:
        for driver in self.drivers:  # of a test that failed
            if driver.poll() is None:
                driver.kill()
                driver.communicate()
        self.cluster.shutdown()


def rows_of_table_one(out: Path) -> bytes:
    """Table 1 as the analysis writes it, without HSAKD-tuned, whose settings depend on the order of events, and the notes on its cost."""
    table = next(table for table in table1.build(load([out]), Options()) if table.name == "table1")
    rows = [line for line in table.to_markdown().splitlines() if line.startswith("|") and "HSAKD-tuned" not in line]
    assert len(rows) > 2
    return "\n".join(rows).encode()


@pytest.fixture(scope="session")
def table_one() -> Callable[[Path], bytes]:
    """What a fault may not change."""
    return rows_of_table_one


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A cluster with a head and no node yet."""
    before = dict(os.environ)
    cluster = Nodes()
    yield cluster
    cluster.close()
    os.environ.clear()
    os.environ.update(before)
