"""Columns have units, statuses are known ones."""

import pytest

from hsakd.records import EPOCH_SCHEMA, PLAN_SCHEMA, TRIAL_SCHEMA, TrialRecord


def test_every_column_states_its_unit() -> None:
    for schema in (TRIAL_SCHEMA, EPOCH_SCHEMA, PLAN_SCHEMA):
        assert all(column.metadata[b"unit"] for column in schema)


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match="status is 'done'; accepted: complete, pruned"):
        TrialRecord(trial_id="a", status="done", role="baseline", network="n", dataset="d", seed=0, num_epochs=1, config_json="{}")
