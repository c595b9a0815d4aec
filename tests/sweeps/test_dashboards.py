"""Live dashboards: optuna-dashboard in a real browser while a real sweep runs, and TensorBoard's logs."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from hsakd.config import DataConfig, TrialConfig
from hsakd.store import ResultStore
from sweeps.search import open_storage

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "analysis"))  # the browser is shared with the report's test

from browser import CHROMIUM, browser  # noqa: E402

has_dashboard = importlib.util.find_spec("optuna_dashboard") is not None
has_tensorboard = importlib.util.find_spec("tensorboard") is not None
PAIR = "resnet14-resnet8_half"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.skipif(not has_dashboard, reason="the extra [ui] is not installed (optuna-dashboard)")
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (Debian package: chromium)")
def test_optuna_dashboard_shows_parameters_values_states_and_importances_while_a_sweep_runs(command, tmp_path: Path) -> None:
    more = ("--pairs", PAIR, "--trials", "1000", "--methods", "HSAKD-tuned", "--seeds", "1")
    sweep = command.start(*more, epoch_seconds=0.2)
    journal, port = command.out / "studies.journal", free_port()
    dashboard = None
    try:
        deadline = time.monotonic() + 900
        while not journal.exists() or journal.read_text().count('"trial_id"') < 60:
            assert time.monotonic() < deadline
            assert sweep.poll() is None, sweep.communicate()
            time.sleep(0.2)
        program = str(Path(sys.executable).with_name("optuna-dashboard"))
        arguments = [program, str(journal), "--host", "127.0.0.1", "--port", str(port)]
        dashboard = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        address = f"http://127.0.0.1:{port}"
        while not answers(port):
            assert dashboard.poll() is None
            time.sleep(0.2)
        with browser(tmp_path / "profile") as page:
            page.resize(1300, 1600)
            page.open(f"{address}/dashboard")
            page.wait_for(f"document.body.innerText.includes('{PAIR}')")
            page.open(f"{address}/dashboard/studies/0")
            page.wait_for("document.body.innerText.includes('History')")
            page.wait_for("document.body.innerText.includes('Hyperparameter Importance')")
            page.wait_for("document.querySelectorAll('.js-plotly-plot').length >= 2")
            assert sweep.poll() is None, "the sweep ended before the dashboard was read"
            page.open(f"{address}/dashboard/studies/0/trials")
            for text in ("Trial 0", "Complete", "temperature", "placement", "kl_q"):
                page.wait_for(f"document.body.innerText.includes('{text}')")
            values = page.evaluate(f"fetch('{address}/api/studies/0?after=0').then(r => r.json())")
            complete = [trial for trial in values["trials"] if trial["state"] == "Complete"]
            assert complete
            assert max(len(trial["intermediate_values"]) for trial in complete) == 3, complete
            importances = page.evaluate(f"fetch('{address}/api/studies/0/param_importances?evaluator=ped_anova').then(r => r.json())")
            assert importances["param_importances"]
            assert not page.errors, page.errors
    finally:
        if dashboard is not None:
            dashboard.terminate()
            dashboard.wait(timeout=900)
        sweep.send_signal(signal.SIGTERM)
        sweep.communicate(timeout=900)


@pytest.mark.skipif(not has_tensorboard, reason="the extra [ui] is not installed (tensorboard)")
def test_tensorboard_reads_the_epochs_of_a_trial(tmp_path: Path) -> None:
    code = SCRIPT.format(config=CONFIG.to_json(), folder=str(tmp_path))  # another process: tensorboard's own warnings are not ours
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip().splitlines()[-1] == f"resnet8_half/task/seed0-{CONFIG.trial_id} [50.0, 51.0] 1.5"


SCRIPT = """
from pathlib import Path
from hsakd.config import TrialConfig
from hsakd.records import EpochMetrics
from sweeps.tensorboard_logs import TensorBoardLogs
config, folder = TrialConfig.from_json({config!r}), Path({folder!r})
with TensorBoardLogs(folder) as logs:
    for epoch in range(2):
        values = dict(learning_rate=0.1, loss=2.0, loss_terms=dict(task=1.5), top1_test=50.0 + epoch)
        logs.add(config, EpochMetrics(trial_id=config.trial_id, epoch=epoch, **values))
    logs.add(config, None)
    assert not logs.writers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
(run,) = set(path.parent for path in folder.rglob("events*"))
read = EventAccumulator(str(run)).Reload()
print(run.relative_to(folder), [event.value for event in read.Scalars("accuracy/top1_test")], read.Scalars("loss/task")[1].value)
"""
CONFIG = TrialConfig(network="resnet8_half", data=DataConfig(dataset="digits"), taps=())


def test_without_the_extra_tensorboard_is_refused_by_a_sentence_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps import cli

    monkeypatch.setattr(cli, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"--tensorboard needs the package tensorboard; accepted after: pip install 'hsakd-sweeper\[ui\]'"):
        cli.SweepOptions(out=tmp_path / "out", tensorboard=True)


@pytest.mark.skipif(not has_tensorboard, reason="the extra [ui] is not installed (tensorboard)")
@pytest.mark.slow
def test_a_sweep_writes_tensorboard_logs_on_request(command) -> None:
    status, output, errors = command.run("--pairs", PAIR, "--methods", "Student", "--seeds", "1", "--tensorboard")
    assert status == 0, output + errors
    assert len(list((command.out / "tensorboard").rglob("events*"))) == 1


@pytest.mark.slow
def test_epochs_reach_the_study_and_its_pruner_through_ray_and_pruned_trials_have_a_cost(command) -> None:
    more = ("--pairs", PAIR, "--methods", "HSAKD-tuned", "--seeds", "1", "--trials", "9", "--pruner", "median", "--epochs", "3")
    status, output, errors = command.run(*more, run="trainables:quick")
    assert status == 0, output + errors
    storage = open_storage(command.out / "studies.journal")
    trials = optuna.load_study(study_name=PAIR, storage=storage).get_trials()
    full = [trial for trial in trials if trial.state.name == "COMPLETE" and trial.intermediate_values]
    assert full
    assert all(sorted(trial.intermediate_values) == [0, 1, 2] for trial in full)
    store = ResultStore(command.out)
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert pruned, [trial.state.name for trial in trials]
    for trial in pruned:
        record = store.read_trial(trial.user_attrs["trial_id"])
        assert record is not None
        assert record.status == "pruned"
        assert 1 <= record.epochs_done < 3
        assert record.total_seconds > 0
        assert trial.user_attrs["student_runs"] < 1
