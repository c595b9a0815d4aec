"""`--teacher-weights`: files take the place of training, are checked against the published accuracy, and wrong ones are refused."""

import csv
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchvision.datasets import CIFAR100

from hsakd.config import DataConfig, ObjectiveConfig, OptimConfig, TrialConfig
from hsakd.models import HierarchicalNet, create_network
from hsakd.models.checkpoints import load_weights, save_weights
from hsakd.records import TrialRecord
from hsakd.store import ResultStore
from hsakd.training.trial import RunContext, run_trial
from sweeps.cli import SweepOptions
from sweeps.teacher_files import PUBLISHED_TOP1, describe_files, doubt, import_files, teacher_files
from sweeps.worklist import TEACHER_TERMS, TrialFactory, known_work

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # tests are no packages; the command's workers import it by this name, too
synthetic_cifar = importlib.import_module("synthetic_cifar")
PAIR = "resnet14-resnet8_half"


def options(tmp_path: Path, **changes: object) -> SweepOptions:
    folder = tmp_path / "weights"
    folder.mkdir(exist_ok=True)
    return SweepOptions(**{"out": tmp_path / "out", "preset": "digits", "pairs": (PAIR,), "teacher_weights": folder, **changes})  # type: ignore[arg-type]


def network_of(name: str, *, seed: int = 0, taps: tuple[int, ...] | None = None, num_classes: int = 10) -> HierarchicalNet:
    return create_network(name, num_classes=num_classes, seed=seed, taps=taps)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def command(*arguments: str, environment: dict[str, str] | None = None, script: str | None = None) -> "subprocess.CompletedProcess[str]":
    start = [str(ROOT / "sweeps" / "run_pairs.py")] if script is None else ["-c", script]
    paths = f"{ROOT}:{Path(__file__).parent}"
    return subprocess.run(
        [sys.executable, *start, *arguments],
        env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.slow
def test_files_in_any_layout_take_the_place_of_training_and_their_hash_is_in_the_configuration(tmp_path: Path) -> None:
    """A whole teacher in the authors' layout and a backbone in ours, both really trained, become two pairs' teachers."""
    data, optim = DataConfig(dataset="digits"), OptimConfig(epochs=2, milestones=())
    joint_terms = ObjectiveConfig(terms=TEACHER_TERMS)
    sources = {
        "resnet14": TrialConfig(network="resnet14", data=data, optim=optim, objective=joint_terms, seed=3),
        "wrn_16_1": TrialConfig(network="wrn_16_1", data=data, optim=optim, taps=(), seed=3),
    }
    own_store, folder = ResultStore(tmp_path / "own"), tmp_path / "weights"
    folder.mkdir()
    trained = {name: run_trial(config, RunContext(store=own_store)) for name, config in sources.items()}
    whole = network_of("resnet14")
    load_weights(whole, own_store.weights_path(trained["resnet14"].trial_id))
    files = {"resnet14": folder / "resnet14_aux_best.pth.tar", "wrn_16_1": folder / "wrn_16_1.safetensors"}
    save_weights(whole, files["resnet14"], layout="hsakd")
    shutil.copy(own_store.weights_path(trained["wrn_16_1"].trial_id), files["wrn_16_1"])

    arguments = ["--preset", "digits", "--pairs", PAIR, "wrn_16_1-resnet8_half", "--methods", "KD", "HSAKD", "--epochs", "1"]
    arguments += ["--seeds", "1", "--teacher-weights", str(folder), "--out", str(tmp_path / "out")]
    result = command(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    store = ResultStore(tmp_path / "out")
    records = {trial_id: record for trial_id in store.trial_ids() if (record := store.read_trial(trial_id)) is not None}
    teachers = [record for record in records.values() if record.role != "student"]
    imported = [record for record in teachers if record.config.imported_sha256 is not None]
    assert sorted((record.network, record.role, record.teacher_regime) for record in imported) == [
        ("resnet14", "baseline", ""),
        ("resnet14", "teacher", "frozen"),
        ("wrn_16_1", "baseline", ""),
    ]
    for record in imported:
        assert record.config.imported_sha256 == sha256_of(files[record.network])
        assert (record.epochs_done, record.num_epochs, record.train_seconds) == (0, 0, 0)
        assert record.top1_last == trained[record.network].top1_last  # the same network, evaluated here
    branches_only = [record for record in teachers if record.config.imported_sha256 is None]
    assert [(record.network, record.teacher_regime) for record in branches_only] == [("wrn_16_1", "frozen")]
    given, kept = load_file(files["wrn_16_1"]), load_file(store.weights_path(branches_only[0].trial_id))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in given.items())
    students = [record for record in records.values() if record.role == "student"]
    assert len(students) == 4
    assert all(record.status == "complete" for record in records.values())

    before = {trial_id: store.trial_path(trial_id).stat().st_mtime_ns for trial_id in records}
    assert command(*arguments).returncode == 0
    assert {trial_id: store.trial_path(trial_id).stat().st_mtime_ns for trial_id in store.trial_ids()} == before


def test_what_each_file_replaces(tmp_path: Path) -> None:
    sweep = options(tmp_path)
    assert sweep.teacher_weights is not None
    without = TrialFactory(replace(sweep, teacher_weights=None))
    save_weights(network_of("resnet14", taps=()), sweep.teacher_weights / "resnet14.pth")
    save_weights(network_of("resnet14", seed=1), sweep.teacher_weights / "resnet14_aux_joint.pt", layout="ours")
    backbone_sha, joint_sha = (sha256_of(sweep.teacher_weights / name) for name in ("resnet14.pth", "resnet14_aux_joint.pt"))
    factory = TrialFactory(sweep)
    backbone, frozen = factory.teacher_backbone("resnet14", 0), factory.frozen_teacher("resnet14", 0)
    assert (backbone.imported_sha256, backbone.optim.epochs, backbone.taps, backbone.role) == (backbone_sha, 0, (), "baseline")
    assert frozen == replace(without.frozen_teacher("resnet14", 0), backbone=backbone)
    joint = factory.joint_teacher("resnet14", 0)
    assert (joint.imported_sha256, joint.role, joint.teacher_regime) == (joint_sha, "teacher", "joint")
    assert factory.joint_teacher("resnet14", 0, for_search=True) == without.joint_teacher("resnet14", 0, for_search=True)
    assert factory.baseline("resnet14", 0) == without.baseline("resnet14", 0)  # as a student it is trained
    teachers = {config.teacher for _, config in known_work(sweep) if config.teacher is not None}
    assert teachers == {backbone, frozen, joint}
    lines = describe_files(sweep)
    assert len(lines) == 1
    assert "frozen teacher's auxiliary classifiers trained" in lines[0]
    assert not (tmp_path / "out").exists()


def test_crds_folders_and_the_literatures_names_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    for name, inner in (("vgg8", "vgg8_vanilla"), ("ResNet50", "ResNet50_vanilla")):
        (folder / inner).mkdir(parents=True)
        network = network_of({"vgg8": "vgg8_bn", "ResNet50": "resnet50"}[name], taps=())
        save_weights(network, folder / inner / "ckpt_epoch_240.pth")
    found = teacher_files(options(tmp_path, pairs=("vgg8_bn-mobilenetv2_half", "resnet50-mobilenetv2_half", PAIR)))
    assert list(found) == ["vgg8_bn", "resnet50"]
    assert all(files.backbone is not None and files.frozen is None for files in found.values())


def test_an_imported_file_is_converted_once(tmp_path: Path) -> None:
    sweep = options(tmp_path)
    assert sweep.teacher_weights is not None
    source = network_of("resnet14", seed=4)
    save_weights(source, sweep.teacher_weights / "resnet14_aux.pth.tar")
    store = ResultStore(tmp_path / "out")
    for _ in range(2):
        import_files(teacher_files(sweep).values(), store)
    path = store.imported_path(sha256_of(sweep.teacher_weights / "resnet14_aux.pth.tar"))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    written = path.stat().st_mtime_ns
    import_files(teacher_files(sweep).values(), store)
    assert path.stat().st_mtime_ns == written
    state = source.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_file(path).items())


def refusal(tmp_path: Path, **changes: object) -> str:
    with pytest.raises(ValueError) as caught:
        teacher_files(options(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_and_ambiguous_files_are_refused_with_one_sentence(tmp_path: Path) -> None:
    folder = options(tmp_path).teacher_weights
    assert folder is not None
    (folder / "notes.txt").write_text("none of these")
    assert "no file is named after a teacher of this sweep; accepted: resnet14.pth" in refusal(tmp_path)
    file = folder / "resnet14.pth"
    save_weights(network_of("resnet14", num_classes=100), file)
    sentence = refusal(tmp_path, seeds=1)
    assert "--teacher-weights for resnet14" in sentence
    assert "'backbone.fc.weight'" in sentence
    assert "(100, 64)" in sentence
    assert "(10, 64)" in sentence


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"resnet14.pth": ("resnet20", ())}, "first difference at"),
        ({"resnet14.pth": ("resnet14", ()), "resnet14_best.pth": ("resnet14", ())}, "both hold a backbone of resnet14; accepted: one"),
        ({"resnet14.pth": ("resnet14", ()), "resnet14_aux.pth": ("resnet14", None)}, "hold different backbones of resnet14"),
        ({"resnet14_joint.pth": ("resnet14", ())}, "accepted under a name with _joint: a whole teacher"),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    tmp_path: Path, files: dict[str, tuple[str, tuple[int, ...] | None]], expected: str
) -> None:
    folder = options(tmp_path).teacher_weights
    assert folder is not None
    for seed, (name, (network, taps)) in enumerate(files.items()):
        save_weights(network_of(network, taps=taps, seed=seed), folder / name)
    assert expected in refusal(tmp_path)


def test_the_command_refuses_with_status_2_and_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "resnet14.pth").write_bytes(b"no weights at all")
    arguments = ("--preset", "digits", "--pairs", PAIR, "--out", str(tmp_path / "out"))
    for extra in ((), ("--dry-run",)):
        result = command(*arguments, "--teacher-weights", str(folder), *extra)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
        assert "not a weights file" in result.stderr
    result = command(*arguments, "--teacher-weights", str(tmp_path / "nowhere"))
    assert result.returncode == 2
    assert "--teacher-weights is" in result.stderr
    result = command(*arguments, "--teacher-weights", str(folder), "--teacher-seeds", "2")
    assert result.returncode == 2
    assert "--teacher-seeds is 2; accepted: 1 with --teacher-weights" in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_the_published_accuracies_are_those_of_the_reference_table() -> None:
    names = {"vgg13": "vgg13_bn", "mobilenetv2": "mobilenetv2_half", "shufflenetv1": "shufflenet_v1", "shufflenetv2": "shufflenet_v2"}
    published: dict[str, dict[str, float]] = {"backbone": {}, "joint": {}}
    with (ROOT / "analysis" / "reference.csv").open() as file:
        for row in csv.DictReader(file):
            if row["table"] == "table1_cifar100" and row["method"] in ("Teacher", "Teacher*", "Student"):
                network = row["student"] if row["method"] == "Student" else row["teacher"]
                published["joint" if row["method"] == "Teacher*" else "backbone"][names.get(network, network)] = float(row["mean"])
    assert published == PUBLISHED_TOP1


@pytest.fixture
def cifar(tmp_path: Path) -> Iterator[Path]:
    """A folder with 200 training and 100 test images in CIFAR-100's format."""
    before = (CIFAR100.train_list, CIFAR100.test_list, CIFAR100.meta)
    synthetic_cifar.write(tmp_path, train_per_class=2, test_per_class=1)
    synthetic_cifar.accept(tmp_path)
    yield tmp_path
    CIFAR100.train_list, CIFAR100.test_list, CIFAR100.meta = before


def test_an_imported_cifar_100_network_is_compared_with_its_published_accuracy(cifar: Path, tmp_path: Path) -> None:
    sweep = options(tmp_path, preset="paper", pairs=("resnet8x4-resnet20",))
    assert sweep.teacher_weights is not None
    save_weights(network_of("resnet8x4", num_classes=100, taps=()), sweep.teacher_weights / "resnet8x4.pth")
    store = ResultStore(tmp_path / "out")
    import_files(teacher_files(sweep).values(), store)
    backbone = TrialFactory(sweep).teacher_backbone("resnet8x4", 0)
    record = run_trial(backbone, RunContext(store=store, data_dir=cifar))
    assert record.top1_last is not None
    assert record.top1_last < 10  # random weights on random images
    sentence = doubt(record)
    assert sentence is not None
    assert f"has {record.top1_last:.2f} % top-1 on CIFAR-100, but 72.95 % are published" in sentence

    def doubted(**changes: object) -> bool:
        return doubt(replace(record, **changes)) is not None  # type: ignore[arg-type]

    assert not doubted(top1_last=72.0)
    assert doubted(top1_last=71.9)
    assert not doubted(config_json=replace(backbone, data=DataConfig(dataset="digits")).to_json())
    joint = replace(backbone, network="wrn_40_2", taps=None, objective=ObjectiveConfig(terms=TEACHER_TERMS))
    assert doubted(top1_last=76.4, config_json=joint.to_json())
    assert not doubted(top1_last=80.6, config_json=joint.to_json())
    frozen = replace(joint, backbone=replace(backbone, network="wrn_40_2"))
    assert not doubted(top1_last=76.4, config_json=frozen.to_json())


@pytest.mark.slow
def test_the_command_says_that_an_accuracy_is_far_from_the_published_one(cifar: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_weights(network_of("resnet8x4", num_classes=100, taps=()), folder / "resnet8x4.pth")
    driver = (
        f"import pathlib, sys, synthetic_cifar; synthetic_cifar.accept(pathlib.Path({str(cifar)!r}));"
        "from sweeps.run_pairs import main; sys.exit(main())"
    )
    arguments = ["--pairs", "resnet8x4-resnet20", "--methods", "KD", "--seeds", "1", "--epochs", "1", "--data-dir", str(cifar)]
    arguments += ["--teacher-weights", str(folder), "--out", str(tmp_path / "out")]
    result = command(*arguments, script=driver, environment={"HSAKD_RUN": "synthetic_cifar:run_trial"})
    assert result.returncode == 0, result.stdout + result.stderr
    assert "% top-1 on CIFAR-100, but 72.95 % are published" in result.stdout
    assert "note: resnet8x4 from the file" in result.stderr
    store = ResultStore(tmp_path / "out")
    records: list[TrialRecord] = [record for trial_id in store.trial_ids() if (record := store.read_trial(trial_id)) is not None]
    assert sorted((record.network, record.epochs_done) for record in records) == [("resnet20", 1), ("resnet8x4", 0)]
