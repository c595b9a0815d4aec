"""torchvision's Faster R-CNN on a finished student: the weights it starts from, its record, interruption, divergence."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_voc import DETECTOR, STUDENT

from hsakd.config import DETECTOR_BACKBONES, DataConfig, NumericsConfig, TrialConfig
from hsakd.data.voc import read_voc
from hsakd.models import create_network
from hsakd.models.checkpoints import read_metadata, weights_sha256
from hsakd.models.detector import build_detector
from hsakd.records import EpochMetrics, TrialRecord
from hsakd.store import ResultStore
from hsakd.training.average_precision import mean_average_precision
from hsakd.training.deployed import deployed_network
from hsakd.training.detection import LOSSES, find_objects
from hsakd.training.trial import MissingTeacher, RunContext, TrialInterrupted, run_trial

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(scope="module")
def whole(trained: Path, voc: Path) -> TrialRecord:
    """The detector, trained without interruption, in the student's folder."""
    return run_trial(DETECTOR, RunContext(store=ResultStore(trained), data_dir=voc))


@pytest.fixture
def other_store(trained: Path, tmp_path: Path) -> ResultStore:
    """A folder that has the student, too."""
    store = ResultStore(tmp_path / "other")
    source = ResultStore(trained)
    for path in (source.trial_path(STUDENT.trial_id), source.epochs_path(STUDENT.trial_id), source.weights_path(STUDENT.trial_id)):
        target = store.root / path.relative_to(trained)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return store


@pytest.mark.parametrize("name", [DETECTOR_BACKBONES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in DETECTOR_BACKBONES[1:])])
def test_the_body_computes_what_the_students_stages_compute_and_the_seed_decides_the_rest(name: str) -> None:
    assert DETECTOR.detection is not None
    network = create_network(name, num_classes=10, taps=(), seed=3)
    generator = torch.Generator().manual_seed(0)
    for key, values in network.state_dict().items():
        if key.endswith(("running_mean", "running_var", "bias")):
            values.copy_(0.5 + torch.rand(values.shape, generator=generator))
    network.eval()
    build = {"config": DETECTOR.detection, "num_classes": 20, **IMAGENET}
    detector = build_detector(network, seed=0, **build)
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 96, generator=generator)
        expected, maps = network.backbone.stage_maps(images), detector.backbone.body(images)
    for mine, theirs in zip(expected, maps.values(), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-3)
    again, other = (build_detector(network, seed=seed, **build) for seed in (0, 1))
    assert weights_sha256(again.state_dict()) == weights_sha256(detector.state_dict()) != weights_sha256(other.state_dict())
    trained = {key.split(".")[2] for key, value in detector.named_parameters() if value.requires_grad and key.startswith("backbone.body")}
    assert trained == {"layer2", "layer3", "layer4"}


def test_a_detector_is_a_trial_whose_record_says_what_it_started_from_and_what_it_gave(
    trained: Path, voc: Path, whole: TrialRecord
) -> None:
    store = ResultStore(trained)
    student = store.read_trial(STUDENT.trial_id)
    assert student is not None
    assert (whole.status, whole.role, whole.dataset, whole.seed) == ("complete", "detector", "voc0712", 0)
    assert whole.backbone_weights_sha256 == student.weights_sha256 != ""
    assert whole.top1_last is None
    assert (whole.num_train_images, whole.epochs_done, whole.config) == (6, 2, DETECTOR)
    assert "torchvision" in whole.versions
    epochs = store.read_epochs(DETECTOR.trial_id)
    assert [row.learning_rate for row in epochs] == pytest.approx([0.002, 0.001])
    assert all(set(row.loss_terms) == set(LOSSES) for row in epochs)
    assert all(row.loss == pytest.approx(sum(row.loss_terms.values()), rel=1e-5) for row in epochs)
    assert whole.map50_last == epochs[-1].map50_test
    assert whole.map50_last is not None
    assert whole.map50_last > 15  # rectangles of two colours, seen six times
    assert whole.map50_best_test == max(row.map50_test or 0 for row in epochs)
    assert not (store.checkpoint_dir(DETECTOR.trial_id) / "resume.pt").exists()

    weights = load_file(store.weights_path(DETECTOR.trial_id))
    assert weights_sha256(weights) == whole.weights_sha256
    assert TrialConfig.from_json(read_metadata(store.weights_path(DETECTOR.trial_id))["config"]) == DETECTOR
    network, card = deployed_network(store, student)
    assert DETECTOR.detection is not None
    detector = build_detector(network, DETECTOR.detection, num_classes=20, mean=card.mean, std=card.std, seed=1)
    start = {key: value.clone() for key, value in detector.state_dict().items()}
    detector.load_state_dict(weights)
    changed = {key for key in start if key.startswith("backbone.body") and not torch.equal(start[key], weights[key])}
    assert {key.split(".")[2] for key in changed} == {"layer2", "layer3", "layer4"}
    assert not any(".bn" in key for key in changed)
    _, test = read_voc(voc)
    found = list(find_objects(detector, test, device=torch.device("cpu")))
    assert mean_average_precision(test.objects, found) == whole.map50_last


def test_a_finished_detector_is_not_trained_again(trained: Path, whole: TrialRecord) -> None:
    store = ResultStore(trained)
    assert run_trial(DETECTOR, RunContext(store=store)) == whole  # without data
    with pytest.raises(ValueError, match="is a detector"):
        deployed_network(store, whole)


def test_stopped_in_a_step_and_in_a_test_and_killed_it_ends_with_the_same_weights(
    other_store: ResultStore, voc: Path, whole: TrialRecord
) -> None:
    context = RunContext(store=other_store, data_dir=voc, checkpoint_minutes=0)
    resume = other_store.checkpoint_dir(DETECTOR.trial_id) / "resume.pt"

    def at_call(number: int, end: Callable[[], bool]) -> Callable[[], bool]:
        calls = iter(range(1, 100))
        return lambda: next(calls) == number and end()

    def die() -> bool:
        raise OSError("killed")

    with pytest.raises(TrialInterrupted, match="stopped at epoch 0, step 1"):
        run_trial(DETECTOR, context, should_stop=at_call(2, lambda: True))
    with pytest.raises(TrialInterrupted, match="stopped at epoch 0, step 3"):  # two steps, then the second test image
        run_trial(DETECTOR, context, should_stop=at_call(4, lambda: True))
    with pytest.raises(OSError, match="killed"):  # three test images, then epoch 1, step 2, its checkpoint of step 1 just written
        run_trial(DETECTOR, context, should_stop=at_call(6, die))
    state = torch.load(resume, weights_only=True)
    assert state["step"] == 1
    torch.save(state | {"total_seconds": 1000.0}, resume)
    reported: list[EpochMetrics] = []
    record = run_trial(DETECTOR, replace(context, attempt=2), report=reported.append)
    assert [row.epoch for row in reported] == [0, 1]  # a new driver hears of all of them
    assert (record.weights_sha256, record.map50_last, record.map50_best_test) == (
        whole.weights_sha256,
        whole.map50_last,
        whole.map50_best_test,
    )
    assert record.attempts == 2
    assert record.total_seconds > 1000


def test_a_broken_checkpoint_is_set_aside_and_a_diverged_training_is_a_record(other_store: ResultStore, voc: Path) -> None:
    config = replace(DETECTOR, optim=replace(DETECTOR.optim, learning_rate=1e9, epochs=1, milestones=()))
    folder = other_store.checkpoint_dir(config.trial_id)
    folder.mkdir(parents=True)
    (folder / "resume.pt").write_bytes(b"PK cut")
    (folder / ".resume.pt.killed.tmp").write_bytes(b"PK")
    record = run_trial(config, RunContext(store=other_store, data_dir=voc))
    assert [path.name for path in (other_store.root / "set_aside").iterdir()] == [f"{config.trial_id}-resume.pt.0"]
    assert not list(folder.glob(".*.tmp"))
    assert (record.status, record.map50_last, record.has_weights, record.weights_sha256) == ("diverged", None, False, "")
    assert record.diverged_step in (1, 2)
    assert other_store.finished(config.trial_id) == record
    assert not other_store.weights_path(config.trial_id).exists()


def test_what_a_detector_cant_be_is_refused_in_a_sentence(tmp_path: Path, voc: Path) -> None:
    with pytest.raises(MissingTeacher, match="has no finished weights"):
        run_trial(DETECTOR, RunContext(store=ResultStore(tmp_path), data_dir=voc))
    digits = TrialConfig(network="resnet8_half", data=DataConfig(dataset="digits"), taps=())
    with pytest.raises(ValueError, match="network is 'resnet8_half'; accepted: resnet18_imagenet, resnet34_imagenet, resnet50_imagenet"):
        replace(DETECTOR, network="resnet8_half", backbone=digits)
    with pytest.raises(ValueError, match="accepted: with a backbone's trial"):
        replace(DETECTOR, backbone=None)
    with pytest.raises(ValueError, match="default numerics"):
        replace(DETECTOR, numerics=NumericsConfig(precision="bfloat16"))
    assert json.loads(DETECTOR.to_json())["detection"]["shorter_side"] == 64
    assert replace(DETECTOR, detection=None).trial_id != DETECTOR.trial_id
