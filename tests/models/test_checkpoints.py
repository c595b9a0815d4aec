"""Weight files: what is read, what is written, what is refused."""

import argparse
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hsakd.models import create_network, network_names
from hsakd.models.authors import authors_keys
from hsakd.models.checkpoints import load_weights, save_weights, weights_sha256

FAMILIES = ["wrn_16_1", "resnet8x4", "resnet18", "vgg8_bn", "mobilenetv2_half", "shufflenet_v1", "shufflenet_v2", "resnet18_imagenet"]

WIDE = ["resnet18", "vgg8_bn", "resnet18_imagenet"]


def authors_state(network: Any) -> dict[str, torch.Tensor]:
    state = network.state_dict()
    return {theirs: state[ours] for ours, theirs in authors_keys(network).items()}


def plain_state(network: Any) -> dict[str, torch.Tensor]:
    keys = authors_state(network).items()
    return {key.removeprefix("backbone."): value for key, value in keys if key.startswith("backbone.")}


@pytest.mark.parametrize("layout", ["ours", "hsakd"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in WIDE else name for name in FAMILIES])
def test_what_is_written_is_read_back(name: str, layout: Any, tmp_path: Path) -> None:
    network = create_network(name, num_classes=5, seed=1)
    save_weights(network, tmp_path / "weights", layout=layout)
    other = create_network(name, num_classes=5, seed=2)
    report = load_weights(other, tmp_path / "weights")
    assert (report.format, report.is_backbone_only, report.missing) == (layout, False, ())
    assert weights_sha256(other) == weights_sha256(network)
    assert [file.name for file in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize("key", ["net", "model", "state_dict", None])
def test_a_foreign_backbone_is_recognized_and_says_that_it_is_one(key: str | None, tmp_path: Path) -> None:
    source = create_network("wrn_16_1", num_classes=5, seed=1)
    state = {f"module.{name}": value for name, value in plain_state(source).items()}
    torch.save(state if key is None else {key: state, "epoch": 3, "accuracy": torch.tensor(0.5)}, tmp_path / "file.pth")
    network = create_network("wrn_16_1", num_classes=5, seed=2)
    report = load_weights(network, tmp_path / "file.pth")
    assert report.format == {"net": "hsakd", "model": "crd", "state_dict": "sskd", None: "plain"}[key]
    assert report.is_backbone_only
    assert all(missing.startswith("auxiliary_classifiers.") for missing in report.missing)
    assert weights_sha256(network.backbone.state_dict()) == weights_sha256(source.backbone.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_torchvisions_files_load_and_give_torchvisions_logits(name: str, tmp_path: Path) -> None:
    import torchvision

    theirs = getattr(torchvision.models, name)(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    network = create_network(f"{name}_imagenet", num_classes=1000, taps=()).eval()
    assert load_weights(network, tmp_path / "tv.pth").format == "torchvision"
    rows = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(rows).logits, theirs(rows))


def test_a_file_of_a_student_loads_into_a_network_with_fewer_branches(tmp_path: Path) -> None:
    source = create_network("resnet8", num_classes=5, seed=1)
    save_weights(source, tmp_path / "w.safetensors", layout="ours")
    report = load_weights(create_network("resnet8", num_classes=5, taps=(2,)), tmp_path / "w.safetensors")
    assert not report.is_backbone_only
    assert {key.split(".")[1] for key in report.ignored} == {"1", "3"}


def test_absent_batch_counters_are_tolerated() -> None:
    source = create_network("resnet8", num_classes=5, seed=1)
    state = {key: value for key, value in authors_state(source).items() if not key.endswith("num_batches_tracked")}
    network = create_network("resnet8", num_classes=5)
    assert all(key.endswith("num_batches_tracked") for key in load_weights(network, state).missing)
    assert torch.equal(network.backbone.head.weight, source.backbone.head.weight)


@pytest.mark.parametrize(
    ("key", "accepted_by"), [("net", "mobilenetv2_half"), ("model", "mobilenetv2_half_s2"), ("state_dict", "mobilenetv2_half_s2")]
)
def test_the_origin_of_a_mobilenet_file_decides_its_stride(key: str, accepted_by: str, tmp_path: Path) -> None:
    state = plain_state(create_network("mobilenetv2_half", num_classes=5, taps=()))
    if key == "model":
        state = {name.replace("classifier.", "classifier.0."): value for name, value in state.items()}
    torch.save({key: state}, tmp_path / "file.pth")
    for name in ("mobilenetv2_half", "mobilenetv2_half_s2"):
        network = create_network(name, num_classes=5)
        if name == accepted_by:
            assert load_weights(network, tmp_path / "file.pth").is_backbone_only
        else:
            with pytest.raises(ValueError, match="stem's stride differs"):
                load_weights(network, tmp_path / "file.pth")


def test_a_bare_mobilenet_state_dict_must_state_its_origin() -> None:
    source = create_network("mobilenetv2_half", num_classes=5, taps=())
    network = create_network("mobilenetv2_half", num_classes=5)
    with pytest.raises(ValueError, match="origin='hsakd'"):
        load_weights(network, plain_state(source))
    assert load_weights(network, plain_state(source), origin="hsakd").is_backbone_only
    with pytest.raises(ValueError, match="stem's stride differs"):
        load_weights(network, plain_state(source), origin="sskd")


def test_wrong_networks_and_class_counts_name_the_first_key_and_both_shapes(tmp_path: Path) -> None:
    source = create_network("wrn_16_2", num_classes=5)
    first = r"'backbone.block1.layer.0.conv1.weight' \('backbone.stages.0.0.conv1.weight' here\): the file has \(32, 16, 3, 3\), "
    with pytest.raises(ValueError, match=first + r"wrn_16_1 with 5 classes and 4 rotations has \(16, 16, 3, 3\)"):
        load_weights(create_network("wrn_16_1", num_classes=5), authors_state(source))
    with pytest.raises(ValueError, match=r"'backbone.fc.weight'.*backbone.head.weight.*\(5, 128\).*\(6, 128\)"):
        load_weights(create_network("wrn_16_2", num_classes=6), authors_state(source))
    with pytest.raises(ValueError, match=r"'fc.weight' .*\(5, 128\).*\(6, 128\)"):
        load_weights(create_network("wrn_16_2", num_classes=6), plain_state(source))
    with pytest.raises(ValueError, match=r"first difference at 'backbone.bn1.weight' .*the file has \(128,\), resnet8 .*has \(16,\)"):
        load_weights(create_network("resnet8", num_classes=5), authors_state(source))
    with pytest.raises(ValueError, match=r"'auxiliary_classifier.fc1.weight'.*\(20, 128\).*\(10, 128\)"):
        load_weights(create_network("wrn_16_2", num_classes=5, num_rotations=2), authors_state(source))
    save_weights(source, tmp_path / "w", layout="ours")
    with pytest.raises(ValueError, match=r"holds wrn_16_2, not wrn_16_1; first difference at 'backbone.stages.0.0.*\(32, 16.*\(16, 16"):
        load_weights(create_network("wrn_16_1", num_classes=5), tmp_path / "w")


def test_a_refused_file_changes_nothing() -> None:
    network = create_network("resnet8", num_classes=5, seed=1)
    state = authors_state(create_network("resnet8", num_classes=5, seed=2))
    before = weights_sha256(network)
    with pytest.raises(ValueError, match=r"fc3.bias.*the file has \(4,\).*has \(20,\)"):
        load_weights(network, {**state, "auxiliary_classifier.fc3.bias": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"as torch\.int64 instead of torch\.float32"):
        load_weights(network, {**state, "backbone.fc.bias": torch.zeros(5, dtype=torch.int64)})
    assert weights_sha256(network) == before


def test_a_pairs_file_needs_to_be_told_which_network_is_meant(tmp_path: Path) -> None:
    members = [create_network("mobilenetv2_half", num_classes=5, seed=seed) for seed in (1, 2)]
    state = {f"net{number}.{key}": value for number, one in enumerate(members, 1) for key, value in authors_state(one).items()}
    torch.save({"net": state, "acc": 0.5, "epoch": 1}, tmp_path / "mbv2_mbv2.pth.tar")
    network = create_network("mobilenetv2_half", num_classes=5)
    with pytest.raises(ValueError, match="state which one: member=1 or member=2"):
        load_weights(network, tmp_path / "mbv2_mbv2.pth.tar")
    for number, one in enumerate(members, 1):
        report = load_weights(network, tmp_path / "mbv2_mbv2.pth.tar", member=number)  # type: ignore[arg-type]
        assert (report.format, report.is_backbone_only, report.missing) == ("hsakd", False, ())
        assert weights_sha256(network) == weights_sha256(one)
    with pytest.raises(ValueError, match="holds one network, but member is 1"):
        load_weights(network, authors_state(members[0]), member=1)


def test_missing_and_extra_keys_are_refused() -> None:
    network = create_network("resnet8", num_classes=5)
    state = authors_state(network)
    missing = {key: value for key, value in state.items() if key != "auxiliary_classifier.fc2.bias"}
    with pytest.raises(ValueError, match=r"auxiliary_classifiers.2.head.bias.*the file has nothing"):
        load_weights(network, missing)
    with pytest.raises(ValueError, match=r"backbone.bonus.*has nothing"):
        load_weights(network, {**state, "backbone.bonus": torch.zeros(3)})


def test_the_stride_trap_is_closed_for_our_own_state_dicts_and_for_crds_keys(tmp_path: Path) -> None:
    strided = create_network("mobilenetv2_half_s2", num_classes=5, taps=())
    network = create_network("mobilenetv2_half", num_classes=5)
    torch.save(strided.state_dict(), tmp_path / "own.pt")
    save_weights(strided, tmp_path / "own.safetensors", layout="ours")
    crd = {name.replace("classifier.", "classifier.0."): value for name, value in plain_state(strided).items()}
    for source in (strided.state_dict(), tmp_path / "own.pt", tmp_path / "own.safetensors"):
        with pytest.raises(ValueError, match="holds mobilenetv2_half_s2, not mobilenetv2_half; every key and shape is the same"):
            load_weights(network, source)
    with pytest.raises(ValueError, match="crd weights of MobileNetV2 are mobilenetv2_half_s2, not mobilenetv2_half"):
        load_weights(network, crd)
    same = create_network("mobilenetv2_half_s2", num_classes=5)
    for source in (strided.state_dict(), tmp_path / "own.pt", crd):
        assert load_weights(same, source).is_backbone_only
    assert load_weights(network, authors_state(network)).format == "plain"  # only the authors have branches under these names


def test_our_tensors_without_the_networks_name_must_state_that_they_are_ours(tmp_path: Path) -> None:
    strided = create_network("mobilenetv2_half_s2", num_classes=5, taps=())
    save_weights(strided, tmp_path / "own.safetensors", layout="ours")
    torch.save({"net": dict(strided.state_dict())}, tmp_path / "own.pt")
    for source in (load_file(tmp_path / "own.safetensors"), dict(strided.state_dict()), tmp_path / "own.pt"):
        for name in ("mobilenetv2_half", "mobilenetv2_half_s2"):
            network = create_network(name, num_classes=5)
            with pytest.raises(ValueError, match="the stem's stride can't be told from these weights"):
                load_weights(network, source)
            assert load_weights(network, source, origin="ours").is_backbone_only


def test_an_unknown_origin_lists_the_known_ones() -> None:
    network = create_network("resnet8", num_classes=5)
    with pytest.raises(ValueError, match="origin is 'torchhub'; accepted: ours, hsakd, crd, sskd, torchvision, plain"):
        load_weights(network, network.state_dict(), origin="torchhub")  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"a text, no weights", b"{}", bytes(100)])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(ValueError, match="not a weights file"):
        load_weights(create_network("resnet8", num_classes=5), tmp_path / "file.pth")
    with pytest.raises(ValueError, match="can't be read"):
        load_weights(create_network("resnet8", num_classes=5), tmp_path)


@pytest.mark.parametrize("layout", ["ours", "hsakd"])
@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.999])
def test_truncated_files_are_refused(layout: Any, fraction: float, tmp_path: Path) -> None:
    network = create_network("resnet8", num_classes=5)
    save_weights(network, tmp_path / "w", layout=layout)
    content = (tmp_path / "w").read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ValueError, match=r"truncated|not a weights file"):
        load_weights(network, tmp_path / "cut")


@pytest.mark.parametrize("accuracy", [np.float64(0.74), np.float32(0.74), np.int64(74)])
@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_an_accuracy_that_is_a_numpy_number_is_no_reason_to_refuse(accuracy: Any, module: bytes, tmp_path: Path) -> None:
    """Of NumPy 2 and of NumPy 1, which wrote the literature's files."""
    source = create_network("resnet8", num_classes=5, seed=1)
    torch.save({"net": authors_state(source), "acc": accuracy, "epoch": 239}, tmp_path / "file.pth.tar")
    with zipfile.ZipFile(tmp_path / "file.pth.tar") as there, zipfile.ZipFile(tmp_path / "other.pth.tar", "w") as here:
        for name in there.namelist():
            here.writestr(name, there.read(name).replace(b"numpy._core.multiarray", module))
    network = create_network("resnet8", num_classes=5)
    assert load_weights(network, tmp_path / "other.pth.tar").format == "hsakd"
    assert weights_sha256(network) == weights_sha256(source)


def test_a_whole_file_says_what_a_network_with_fewer_branches_leaves() -> None:
    report = load_weights(create_network("resnet8", num_classes=5, taps=()), authors_state(create_network("resnet8", num_classes=5)))
    assert str(report).endswith(f"tensors; {len(report.ignored)} of auxiliary classifiers that this network was built without")


class Trap:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.witness),))


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_is_not_weights_is_refused_unexecuted(is_zip: bool, tmp_path: Path) -> None:
    torch.save({"net": Trap(tmp_path / "witness")}, tmp_path / "evil.pth", _use_new_zipfile_serialization=is_zip)
    network = create_network("resnet8", num_classes=5)
    with pytest.raises(ValueError, match="refused"):
        load_weights(network, tmp_path / "evil.pth")
    assert not (tmp_path / "witness").exists()
    torch.save({"model": authors_state(network), "opt": argparse.Namespace(lr=1)}, tmp_path / "crd_last.pth")
    with pytest.raises(ValueError, match="refused"):
        load_weights(network, tmp_path / "crd_last.pth")


def test_the_authors_layout_is_refused_where_their_code_has_no_such_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no mobilenetv2_half_s2"):
        save_weights(create_network("mobilenetv2_half_s2", num_classes=5), tmp_path / "w", layout="hsakd")
    with pytest.raises(ValueError, match="all 3 branches or none"):
        save_weights(create_network("resnet8", num_classes=5, taps=(1,)), tmp_path / "w", layout="hsakd")
    assert len(network_names()) > 40
