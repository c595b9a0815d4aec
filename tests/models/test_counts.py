"""Parameters and multi-adds of networks that the golden files don't have, against counts written as loops."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from hsakd.models import HierarchicalNet, count_multi_adds, count_parameters, network_names

NUM_CLASSES, NUM_ROTATIONS, SIZE = 100, 4, 32


@dataclass
class Tally:
    """What has been counted so far, and the maps that come next."""

    channels: int
    size: int
    parameters: int = 0
    multi_adds: int = 0

    def conv(self, out: int, kernel: int, *, stride: int = 1, depthwise: bool = False, has_bias: bool = False) -> None:
        size = -(-self.size // stride)
        weights = out * (1 if depthwise else self.channels) * kernel * kernel
        self.parameters += weights + (out if has_bias else 0)
        self.multi_adds += weights * size * size
        self.channels, self.size = out, size

    def bn(self) -> None:
        self.parameters += 2 * self.channels

    def head(self, outputs: int) -> None:
        self.parameters += self.channels * outputs + outputs
        self.multi_adds += self.channels * outputs


Block = Callable[[Tally, int, int], None]  # (tally, out channels, stride)


def pre_activation(tally: Tally, out: int, stride: int) -> None:
    given, size = tally.channels, tally.size
    tally.bn()
    tally.conv(out, 3, stride=stride)
    tally.bn()
    tally.conv(out, 3)
    if given != out:
        side = Tally(given, size)
        side.conv(out, 1, stride=stride)
        add(tally, side)


def shortcut(tally: Tally, given: int, size: int, stride: int) -> None:
    if stride != 1 or given != tally.channels:
        side = Tally(given, size)
        side.conv(tally.channels, 1, stride=stride)
        side.bn()
        add(tally, side)


def basic(tally: Tally, out: int, stride: int) -> None:
    given, size = tally.channels, tally.size
    tally.conv(out, 3, stride=stride)
    tally.bn()
    tally.conv(out, 3)
    tally.bn()
    shortcut(tally, given, size, stride)


def bottleneck(tally: Tally, out: int, stride: int) -> None:
    given, size = tally.channels, tally.size
    for width, kernel, step in ((out // 4, 1, 1), (out // 4, 3, stride), (out, 1, 1)):
        tally.conv(width, kernel, stride=step)
        tally.bn()
    shortcut(tally, given, size, stride)


def add(tally: Tally, side: Tally) -> None:
    tally.parameters += side.parameters
    tally.multi_adds += side.multi_adds


def nothing(tally: Tally) -> None:
    """A stem or a neck that isn't there."""


@dataclass
class Plan:
    """A network in words: its stem, its stages (with or without downsampling), its neck."""

    stem: Callable[[Tally], None]
    stages: list[Callable[[Tally, bool], None]]
    neck: Callable[[Tally], None] = nothing


def residual_plan(block: Block, stem_width: int, widths: list[int], counts: list[int], *, is_pre_activated: bool = False) -> Plan:
    def stem(tally: Tally) -> None:
        tally.conv(stem_width, 3)
        if not is_pre_activated:
            tally.bn()

    def stage(index: int) -> Callable[[Tally, bool], None]:
        def count(tally: Tally, downsamples: bool) -> None:
            for number in range(counts[index]):
                block(tally, widths[index], 2 if downsamples and index > 0 and number == 0 else 1)

        return count

    return Plan(stem, [stage(index) for index in range(len(widths))], Tally.bn if is_pre_activated else nothing)


def vgg_plan(convolutions: list[int], *, has_bn: bool) -> Plan:
    widths = [64, 128, 256, 512, 512]

    def stage(groups: list[int]) -> Callable[[Tally, bool], None]:
        def count(tally: Tally, downsamples: bool) -> None:
            if downsamples and groups[0] > 0:
                tally.size //= 2
            for group in groups:
                for _ in range(convolutions[group]):
                    tally.conv(widths[group], 3, has_bias=True)
                    if has_bn:
                        tally.bn()

        return count

    return Plan(nothing, [stage([0]), stage([1]), stage([2]), stage([3, 4])])


def mobilenet_plan(stem_stride: int) -> Plan:
    groups = [(1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1)]

    def conv_bn(tally: Tally, out: int, kernel: int, stride: int = 1, *, depthwise: bool = False) -> None:
        tally.conv(out, kernel, stride=stride, depthwise=depthwise)
        tally.bn()

    def stage(numbers: list[int]) -> Callable[[Tally, bool], None]:
        def count(tally: Tally, downsamples: bool) -> None:
            for number in numbers:
                expansion, out, repeats, stride = groups[number]
                for index in range(repeats):
                    hidden = tally.channels * expansion
                    conv_bn(tally, hidden, 1)
                    conv_bn(tally, hidden, 3, stride if index == 0 and downsamples else 1, depthwise=True)
                    conv_bn(tally, out, 1)

        return count

    return Plan(
        lambda tally: conv_bn(tally, 16, 3, stem_stride),
        [stage([0, 1]), stage([2]), stage([3, 4]), stage([5, 6])],
        lambda tally: conv_bn(tally, 1280, 1),
    )


def plan_of(name: str) -> Plan | None:
    """Return the plan of a network by its name; None for families that the golden files have completely, and for unknown widths."""
    if name.startswith("wrn_"):
        depth, widening = (int(text) for text in name.split("_")[1:])
        widths = [16 * widening, 32 * widening, 64 * widening]
        return residual_plan(pre_activation, 16, widths, [(depth - 4) // 6] * 3, is_pre_activated=True)
    if name.startswith("mobilenetv2_half"):
        return mobilenet_plan(2 if name.endswith("_s2") else 1)
    if name.startswith("vgg"):
        counts = {8: [1] * 5, 11: [1, 1, 2, 2, 2], 13: [2] * 5, 16: [2, 2, 3, 3, 3], 19: [2, 2, 4, 4, 4]}
        return vgg_plan(counts[int(name.removesuffix("_bn").removeprefix("vgg"))], has_bn=name.endswith("_bn"))
    if name.startswith("resnet") and not name.endswith("_imagenet"):
        wide = {"18": [2, 2, 2, 2], "34": [3, 4, 6, 3], "50": [3, 4, 6, 3], "101": [3, 4, 23, 3], "152": [3, 8, 36, 3]}
        text = name.removeprefix("resnet")
        if text in wide:
            expansion = 1 if text in ("18", "34") else 4
            widths = [expansion * width for width in (64, 128, 256, 512)]
            return residual_plan(basic if expansion == 1 else bottleneck, 64, widths, wide[text])
        depth_text, widths = text, [16, 16, 32, 64]
        for suffix, scaled in {"x4": [32, 64, 128, 256], "x05": [8, 8, 16, 32], "x0375": [6, 6, 12, 24], "_half": [8, 8, 16, 32]}.items():
            if text.endswith(suffix):
                depth_text, widths = text.removesuffix(suffix), scaled
        return residual_plan(basic, widths[0], widths[1:], [(int(depth_text) - 2) // 6] * 3) if depth_text.isdigit() else None
    return None


COUNTED = [name for name in network_names() if plan_of(name) is not None]


DEEP = ("101", "152", "110", "56", "wrn_40", "mobilenetv2_half_s2")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if any(word in name for word in DEEP) else name for name in COUNTED]
)
def test_parameters_and_multi_adds_equal_a_count_written_as_loops(name: str) -> None:
    plan = plan_of(name)
    assert plan is not None
    backbone, taps = Tally(3, SIZE), []
    plan.stem(backbone)
    for stage in plan.stages:
        stage(backbone, True)
        taps.append((backbone.channels, backbone.size))
    plan.neck(backbone)
    backbone.head(NUM_CLASSES)
    branches = []
    for index, (channels, size) in enumerate(taps):
        branch = Tally(channels, size)
        is_last = index == len(taps) - 1
        for stage in plan.stages[-1:] if is_last else plan.stages[index + 1 :]:
            stage(branch, not is_last)
        plan.neck(branch)
        branch.head(NUM_CLASSES * NUM_ROTATIONS)
        branches.append(branch)
    network = HierarchicalNet.on_meta(name, num_classes=NUM_CLASSES, num_rotations=NUM_ROTATIONS)
    parameters, multi_adds = count_parameters(network), count_multi_adds(network, SIZE)
    assert (parameters.backbone, multi_adds.backbone) == (backbone.parameters, backbone.multi_adds)
    assert list(parameters.branches) == [branch.parameters for branch in branches]
    assert list(multi_adds.branches) == [branch.multi_adds for branch in branches]


def test_only_families_that_the_golden_files_have_completely_are_left_out() -> None:
    assert sorted(set(network_names()) - set(COUNTED)) == [
        "resnet18_imagenet",
        "resnet34_imagenet",
        "resnet50_imagenet",
        "shufflenet_v1",
        "shufflenet_v2",
    ]
