"""What the detection tests share: a small VOC, and a result folder with a finished ResNet-18 student."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hsakd.records import PlanEntry
from hsakd.store import ResultStore
from hsakd.training.trial import RunContext, run_trial

sys.path.insert(0, str(Path(__file__).parent))  # for `small_voc`

from small_voc import STUDENT, write_voc


@pytest.fixture(scope="session")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small VOC; tests leave it as it is."""
    return write_voc(tmp_path_factory.mktemp("voc"))


@pytest.fixture
def make_voc(tmp_path: Path) -> Callable[..., Path]:
    """A maker of small VOCs that tests may damage."""
    return lambda **counts: write_voc(tmp_path / "voc", **counts)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder with a finished student and the plan that names it."""
    store = ResultStore(tmp_path_factory.mktemp("runs"))
    run_trial(STUDENT, RunContext(store=store, keep_checkpoints="all"))
    entry = PlanEntry(
        trial_id=STUDENT.trial_id,
        purpose="report",
        method="Student",
        teacher="resnet34_imagenet",
        student=STUDENT.network,
        config_json=STUDENT.to_json(),
    )
    store.write_plan([entry])
    return store.root
