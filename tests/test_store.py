"""Records round trip through Parquet with units; broken files are set aside, never lost, never half-written."""

import json
import os
import random
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hsakd.config import DataConfig, TrialConfig
from hsakd.records import EpochMetrics, PlanEntry, TrialRecord
from hsakd.store import DamagedFile, OtherVersion, ResultStore, read_rows, write_rows

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


def test_no_thread_of_arrows_pool_reads_a_file(tmp_path: Path) -> None:
    """A thread that holds Python's bytes when the interpreter ends aborts the process, whatever its exit status was to be."""
    store = ResultStore(tmp_path)
    store.write_trial(RECORD, EPOCHS)
    code = (
        "import os, sys, pathlib, hsakd.store as store; before = len(os.listdir('/proc/self/task'));"
        f"assert store.ResultStore(pathlib.Path(sys.argv[1])).read_trial({CONFIG.trial_id!r}) is not None;"
        "assert len(os.listdir('/proc/self/task')) == before"
    )
    line = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(line, check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})


def test_a_plan_reads_back_equal(tmp_path: Path) -> None:
    entries = [PlanEntry(trial_id="a", purpose="report", method="KD", teacher="resnet20", student="resnet8")]
    ResultStore(tmp_path).write_plan(entries)
    assert ResultStore(tmp_path).read_plan() == entries


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all"])
def test_a_broken_file_is_set_aside_and_counts_as_absent(tmp_path: Path, content: bytes) -> None:
    store = ResultStore(tmp_path)
    store.write_trial(RECORD, EPOCHS)
    store.trial_path(CONFIG.trial_id).write_bytes(content)
    assert store.read_trial(CONFIG.trial_id) is None
    kept = list((tmp_path / "set_aside").iterdir())
    assert [path.read_bytes() for path in kept] == [content]


def test_a_flipped_bit_never_reads_back_as_another_result(tmp_path: Path) -> None:
    store, path = ResultStore(tmp_path), ResultStore(tmp_path).trial_path(CONFIG.trial_id)
    store.write_trial(RECORD, EPOCHS)
    content, numbers, num_damaged = path.read_bytes(), random.Random(0), 0
    for _ in range(600):
        place, bit = numbers.randrange(len(content)), 1 << numbers.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        record = store.read_trial(CONFIG.trial_id)
        num_damaged += record is None
        assert record in (None, RECORD), (place, bit)  # statistics are not read
    assert num_damaged > 200
    assert len(list((tmp_path / "set_aside").iterdir())) == num_damaged


@pytest.mark.parametrize("column", ["loss_terms", "versions"])
def test_a_file_of_older_code_whose_map_is_lost_counts_as_damaged(tmp_path: Path, column: str) -> None:
    store = ResultStore(tmp_path)
    store.write_trial(RECORD, EPOCHS)
    path = store.epochs_path(CONFIG.trial_id) if column == "loss_terms" else store.trial_path(CONFIG.trial_id)
    table = pq.read_table(path)
    lost = table.set_column(table.column_names.index(column), column, pa.nulls(len(table), pa.string()))
    pq.write_table(lost.replace_schema_metadata(None), path)
    with pytest.raises(DamagedFile):
        read_rows(path, EpochMetrics if column == "loss_terms" else TrialRecord)


@pytest.mark.parametrize(
    "foreign",
    [
        replace(RECORD, trial_id="0" * 16),
        replace(RECORD, config_json=replace(CONFIG, seed=1).to_json()),
        replace(RECORD, config_json=CONFIG.to_json().replace('"epochs":240', '"epochs":2.5')),
        replace(RECORD, config_json="{"),
    ],
)
def test_what_is_not_the_trials_own_record_is_set_aside(tmp_path: Path, foreign: TrialRecord) -> None:
    store = ResultStore(tmp_path)
    write_rows(store.trial_path(CONFIG.trial_id), [foreign], TrialRecord)
    assert store.peek_trial(CONFIG.trial_id) is None
    assert store.trial_path(CONFIG.trial_id).exists()
    assert store.read_trial(CONFIG.trial_id) is None
    assert not store.trial_path(CONFIG.trial_id).exists()


@pytest.mark.parametrize(
    "newer",
    [
        replace(RECORD, schema_version=2),
        replace(RECORD, config_json=json.dumps(json.loads(CONFIG.to_json()) | {"colour": "red"})),
    ],
)
def test_a_record_of_newer_code_is_refused_and_stays_where_it_is(tmp_path: Path, newer: TrialRecord) -> None:
    store = ResultStore(tmp_path)
    write_rows(store.trial_path(CONFIG.trial_id), [newer], TrialRecord)
    for read in (store.read_trial, store.peek_trial):
        with pytest.raises(OtherVersion, match=rf"^{CONFIG.trial_id}.parquet has .*version"):
            read(CONFIG.trial_id)
    assert store.trial_path(CONFIG.trial_id).exists()


def test_what_the_system_refuses_to_read_stays_where_it_is(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.trial_path(CONFIG.trial_id).mkdir(parents=True)  # permissions don't bind root
    with pytest.raises(IsADirectoryError):
        store.read_trial(CONFIG.trial_id)
    assert store.peek_trial(CONFIG.trial_id) is None
    assert store.trial_path(CONFIG.trial_id).is_dir()


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
