"""A finished teacher whose weights are damaged on disk: found by the next student, trained again, the same table in the end."""

import subprocess
import sys
from pathlib import Path

import pytest

from hsakd.store import ResultStore

ROOT = Path(__file__).parents[2]
ARGUMENTS = ["--preset", "digits", "--pairs", "resnet14-resnet8_half", "--methods", "HSAKD*", "--seeds", "1", "--epochs", "1"]


@pytest.mark.slow
def test_a_teacher_with_damaged_weights_is_trained_again(tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "sweeps" / "run_pairs.py"), *ARGUMENTS, "--out", str(tmp_path)]
    store = ResultStore(tmp_path)

    def sweep() -> tuple[int, dict[str, float | None], str]:
        process = subprocess.run(line, capture_output=True, text=True, timeout=900, check=False)
        records = {trial_id: store.read_trial(trial_id) for trial_id in store.trial_ids()}
        return process.returncode, {key: row.top1_last for key, row in records.items() if row is not None}, process.stdout + process.stderr

    status, undisturbed, text = sweep()
    assert status == 0, text
    entries = {entry.purpose: entry.trial_id for entry in store.read_plan()}
    weights = store.weights_path(entries["teacher"])
    weights.write_bytes(weights.read_bytes()[:-7])
    store.trial_path(entries["report"]).unlink()
    status, again, text = sweep()
    assert status == 0, text
    assert again == undisturbed
    assert "set aside" in text
