"""Records round trip through Parquet with units; broken files are set aside, never lost, never half-written."""

import os
import resource
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hsakd.config import DataConfig, TrialConfig
from hsakd.records import EPOCH_SCHEMA, PLAN_SCHEMA, TRIAL_SCHEMA, EpochMetrics, PlanEntry, ResultStore, TrialRecord, read_rows, replacing

CONFIG = TrialConfig(network="resnet8", data=DataConfig(dataset="digits"), taps=())
RECORD = TrialRecord(
    trial_id=CONFIG.trial_id,
    status="complete",
    role="baseline",
    network="resnet8",
    dataset="digits",
    seed=0,
    num_epochs=2,
    top1_last=91.5,
    branch_top1_joint=[50.0, 60.0],
    versions={"torch": "2"},
    config_json=CONFIG.to_json(),
)
EPOCHS = [
    EpochMetrics(trial_id=CONFIG.trial_id, epoch=epoch, learning_rate=0.1, loss=1.0, loss_terms={"task": 1.0}, top1_test=90.0)
    for epoch in range(2)
]


def test_a_trial_reads_back_equal(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.write_trial(RECORD, EPOCHS)
    assert store.read_trial(CONFIG.trial_id) == RECORD
    assert store.read_epochs(CONFIG.trial_id) == EPOCHS
    assert store.trial_ids() == [CONFIG.trial_id]
    assert RECORD.config == CONFIG
    assert store.read_trial("absent") is None


def test_a_plan_reads_back_equal(tmp_path: Path) -> None:
    entries = [PlanEntry(trial_id="a", purpose="report", method="KD", teacher="resnet20", student="resnet8")]
    ResultStore(tmp_path).write_plan(entries)
    assert ResultStore(tmp_path).read_plan() == entries


def test_every_column_states_its_unit() -> None:
    for schema in (TRIAL_SCHEMA, EPOCH_SCHEMA, PLAN_SCHEMA):
        assert all(column.metadata[b"unit"] for column in schema)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all"])
def test_a_broken_file_is_set_aside_and_counts_as_absent(tmp_path: Path, content: bytes) -> None:
    store = ResultStore(tmp_path)
    store.write_trial(RECORD, EPOCHS)
    store.trial_path(CONFIG.trial_id).write_bytes(content)
    assert store.read_trial(CONFIG.trial_id) is None
    kept = list((tmp_path / "set_aside").iterdir())
    assert [path.read_bytes() for path in kept] == [content]


def test_a_file_that_cannot_be_opened_at_the_moment_stays_where_it_is(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.write_trial(RECORD, EPOCHS)
    assert store.read_trial(CONFIG.trial_id) == RECORD
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(highest)]  # no free descriptor is left below the limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 1, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            store.read_trial(CONFIG.trial_id)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in spare:
            os.close(descriptor)
    assert store.read_trial(CONFIG.trial_id) == RECORD


def test_another_schema_version_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"trial_id": ["a"], "schema_version": [99]}), path)
    with pytest.raises(ValueError, match=r"x.parquet has schema_version 99; accepted: 1"):
        read_rows(path, TrialRecord)


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(IsADirectoryError), replacing(path) as temporary:
        temporary.write_text(tmp_path.read_text())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match="status is 'done'; accepted: complete, pruned"):
        TrialRecord(trial_id="a", status="done", role="baseline", network="n", dataset="d", seed=0, num_epochs=1, config_json="{}")
