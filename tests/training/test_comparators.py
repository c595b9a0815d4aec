"""Whole trials with every comparator: recorded, resumed to the bit, honest about the bank."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hsakd.config import DataConfig, NumericsConfig, OptimConfig, TrialConfig
from hsakd.data import load_dataset
from hsakd.losses import Objective
from hsakd.models import create_network
from hsakd.store import ResultStore
from hsakd.training.checkpoint import RESUME_FILE
from hsakd.training.stages import term_context
from hsakd.training.trial import RunContext, TrialInterrupted, run_trial
from sweeps.presets import COMPARATORS

DATA = DataConfig(dataset="digits", train_subset=96)
OPTIM = OptimConfig(epochs=3, batch_size=32, milestones=(2,))
TEACHER = TrialConfig(network="resnet14", data=DATA, optim=replace(OPTIM, epochs=1, milestones=()), taps=())
QUICK = ("AT", "VID")  # the others' one epoch is in `make test-all`


def student(method: str, **changes: object) -> TrialConfig:
    config = TrialConfig(network="resnet8_half", data=DATA, optim=OPTIM, taps=(), teacher=TEACHER, objective=COMPARATORS[method], seed=1)
    return replace(config, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    run_trial(TEACHER, RunContext(store=ResultStore(folder)))
    return folder


def copied_teacher(root: Path, folder: Path) -> RunContext:
    """Return a context in a folder of its own that has the teacher's results."""
    for path in (*root.glob(f"*/{TEACHER.trial_id}.parquet"), *root.glob(f"checkpoints/{TEACHER.trial_id}/*")):
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return RunContext(store=ResultStore(folder))


@pytest.mark.parametrize("method", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in COMPARATORS])
def test_every_comparator_is_trained_and_recorded(root: Path, method: str) -> None:
    config = student(method, optim=replace(OPTIM, epochs=1, milestones=()))
    record = run_trial(config, RunContext(store=ResultStore(root)))
    assert (record.status, record.epochs_done, record.predictions_source) == ("complete", 1, "live")
    epoch = ResultStore(root).read_epochs(config.trial_id)[0]
    assert list(epoch.loss_terms) == [name for name, _ in config.objective.terms if name != "ab"]  # which is for the pre-training only
    weights = load_file(ResultStore(root).weights_path(config.trial_id))
    assert all(name.startswith("backbone.") for name in weights)  # a term's module is no part of the student


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("AB", "SSKD")]


@pytest.mark.parametrize("method", ["VID", "CRD", *SLOW])
def test_a_stopped_comparator_goes_on_bit_identically_with_its_module_and_memory(root: Path, tmp_path: Path, method: str) -> None:
    config = student(method)
    undisturbed = run_trial(config, RunContext(store=ResultStore(root)))
    context = copied_teacher(root, tmp_path)
    for stop in (1, 2, 3):  # with a pre-training of one epoch of 3 steps: within it, at its end, and after it
        calls = iter(range(1000))
        with pytest.raises(TrialInterrupted):
            run_trial(config, context, should_stop=lambda calls=calls, stop=stop: next(calls) >= stop)
        state = torch.load(context.store.checkpoint_dir(config.trial_id) / RESUME_FILE, weights_only=True)
        assert state["modules"]
    resumed = run_trial(config, context)
    assert resumed.weights_sha256 == undisturbed.weights_sha256
    losses = [[(row.loss, row.loss_terms) for row in store.read_epochs(config.trial_id)] for store in (ResultStore(root), context.store)]
    assert losses[0] == losses[1]


def test_a_pretraining_changes_the_student_where_it_says_so_and_leaves_no_epoch(root: Path) -> None:
    ab, plain = student("AB"), student("AB", objective=replace(COMPARATORS["AB"], terms=COMPARATORS["AB"].terms[:2]))
    store = ResultStore(root)
    records = [run_trial(config, RunContext(store=store)) for config in (ab, plain)]
    assert [record.epochs_done for record in records] == [3, 3]
    assert [row.epoch for row in store.read_epochs(ab.trial_id)] == [0, 1, 2]
    assert store.read_epochs(ab.trial_id)[0].loss != store.read_epochs(plain.trial_id)[0].loss
    assert records[0].weights_sha256 != records[1].weights_sha256


def test_a_term_that_reads_maps_makes_predictions_live_and_the_record_says_so(root: Path, tmp_path: Path) -> None:
    numerics = NumericsConfig(teacher_predictions="bank")
    context = replace(RunContext(store=ResultStore(root)), bank_dir=tmp_path)
    short = replace(OPTIM, epochs=1, milestones=())
    record = run_trial(student("AT", numerics=numerics, optim=short), context)
    assert record.predictions_source == "live"
    assert record.predictions_fallback == "a bank keeps logits only, and at reads the teacher's feature maps"
    logits_only = run_trial(student("DKD", numerics=numerics, optim=short), context)
    assert (logits_only.predictions_source, logits_only.predictions_fallback) == ("bank", "")


@pytest.mark.parametrize("method", ["AT", "VID"])
def test_a_teacher_with_other_stages_is_refused_in_a_sentence(method: str) -> None:
    config = student(method, teacher=replace(TEACHER, network="resnet18"))
    network = create_network(config.network, num_classes=10, taps=())
    with pytest.raises(ValueError, match="teacher is resnet18 with 4 stages; accepted: 3 stages"):
        Objective.from_config(config.objective).with_modules(lambda: term_context(config, network, load_dataset(DATA)))
