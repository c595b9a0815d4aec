"""What figures must not do: repeat a look, draw a spread that is not there, hide one point behind another, average unlike trials."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from analysis.aggregate import load
from analysis.artefact import Options
from analysis.bars import broken_labels
from analysis.drawing import COLOURS, line_of, marker_of, spread
from analysis.figures import aux_placement, learning_curves, loss_terms, pareto, temperature

Make = Callable[..., Any]


def test_no_two_of_thirty_two_lines_look_alike() -> None:
    looks = [(COLOURS[i % len(COLOURS)], line_of(i)) for i in range(32)]
    assert len(set(looks)) == 32
    assert all(marker_of(i) != marker_of(i + 8) for i in range(24))


@pytest.mark.parametrize("seeds", [1, 2])
def test_an_error_bar_is_drawn_where_there_is_a_std(folder: Make, seeds: int) -> None:
    run = folder(dataset="digits")
    run.studies(seeds=seeds)
    results = load([run.write()])
    for figure in (loss_terms, temperature):
        (drawing,) = figure.draw(results, Options())
        bars = itertools.chain.from_iterable(c.get_children() for c in drawing.figure.axes[0].containers if hasattr(c, "has_yerr"))
        segments = [segment for bar in bars if hasattr(bar, "get_segments") for segment in bar.get_segments() if len(segment)]
        assert len(segments) == (0 if seeds == 1 else 5), figure.__name__


def test_each_panel_has_its_own_pairs_placements(folder: Make) -> None:
    run = folder(dataset="digits")
    arms = {"resnet20": ("none", "c1"), "wrn_16_2": ("none", "c2", "c1+c2")}
    for run.student, labels in arms.items():
        for label in labels:
            taps = tuple(int(tap[1:]) for tap in label.split("+") if tap != "none")
            config = run.config(run.student, terms=(("task", 1.0), ("kl_q", 1.0)), taps=taps, teacher=run.teachers()[2])
            run.add(config, "report", label, 70.0, study="aux-placement")
    (drawing,) = aux_placement.draw(load([run.write()]), Options())
    found = {panel.get_title().split()[-1]: tuple(text.get_text() for text in panel.get_xticklabels()) for panel in drawing.figure.axes}
    assert found == arms


def test_learning_curves_leave_out_what_table_1_refuses_and_show_the_late_epochs(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair()
    run.epochs = 5
    run.add(run.config(run.student, seed=7, taps=()), "report", "Student", 90.0)
    results = load([run.write()])
    (drawing,) = learning_curves.draw(results, Options())
    (panel,) = drawing.figure.axes
    assert [text.get_text() for text in panel.texts] == ["Teacher", "Teacher*", "KD", "HSAKD", "HSAKD*"]
    assert drawing.caption.endswith("Left out, as rows that may not be averaged: Student, wrn_40_2 → wrn_16_2.")
    assert panel.get_ylim()[0] == pytest.approx((75.2 - (80.5 - 75.2) / 2) * (1 - np.exp(-4)))
    (forced,) = learning_curves.draw(results, Options(force=True))
    assert "Student" in [text.get_text() for text in forced.figure.axes[0].texts]


def test_learning_curves_name_each_line_at_its_end_and_have_bands_of_the_main_methods_only(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair()
    backbone, _, joint = run.teachers()
    for seed in range(3):
        terms = (("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))
        run.add(run.config(run.student, terms=terms, teacher=joint, seed=seed), "report", "HSAKD-tuned", 78.6 + 0.1 * seed)
        for number, method in enumerate(("AT", "CC", "SP")):
            kd = (("task", 0.1), ("kd", 0.9 + number))
            run.add(run.config(run.student, terms=kd, teacher=backbone, seed=seed), "report", method, 75.0 + 0.01 * number)
    (drawing,) = learning_curves.draw(load([run.write()]), Options())
    (panel,) = drawing.figure.axes
    names = ["Teacher", "Teacher*", "Student", "KD", "HSAKD", "HSAKD* = HSAKD-tuned", "AT", "CC", "SP"]
    assert [line.get_label() for line in panel.lines] == [text.get_text() for text in panel.texts] == names
    assert len(panel.collections) == 4
    drawing.figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in panel.texts]  # without the lines that lead to them
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_labels_keep_the_order_and_the_middle_of_their_values() -> None:
    assert spread([2.0, 1.0, 1.2, 9.0], 1.0) == pytest.approx([2.4, 0.4, 1.4, 9.0])
    assert spread([], 1.0) == []


def test_no_point_hides_another_and_pairs_of_one_student_stand_side_by_side(folder: Make) -> None:
    run = folder(dataset="digits")
    for run.teacher in ("wrn_40_2", "resnet56"):
        run.pair()
        for seed in range(3):
            terms = (("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))
            run.add(run.config(run.student, terms=terms, teacher=run.teachers()[2], seed=seed), "report", "HSAKD-tuned", 78.6 + 0.1 * seed)
    run.write()
    (drawing,) = pareto.draw(load([run.root]), Options())
    (panel,) = drawing.figure.axes
    drawing.figure.draw_without_rendering()
    drawn = [dots for dots in panel.collections if len(dots.get_offsets())]
    places = [tuple(dots.get_offset_transform().transform(dots.get_offsets())[0] * 72 / drawing.figure.dpi) for dots in drawn]
    assert len(places) == 2 * (2 + 5)
    for (x, y), (other_x, other_y) in itertools.combinations(places, 2):
        assert max(abs(x - other_x), abs(y - other_y)) > 6  # points, of which a marker takes 6
    assert [text.get_text() for text in panel.texts] == ["1", "2"]
    assert [label.get_text() for label in panel.get_xticklabels(minor=True)] == ["resnet56, wrn_16_2, wrn_40_2: 10.0"]


def test_labels_of_bars_do_not_touch(folder: Make) -> None:
    run = folder(dataset="digits")
    joint = run.teachers()[2]
    arms = ("task", "task+kl_q", "task+kl_q+kd", "task+kl_q+kl_p", "task+kl_q+kl_p+ce_q", "task+kl_q+kl_p+kd+ce_q")
    for arm in arms:
        terms = tuple((name, 1.0) for name in arm.split("+"))
        run.add(run.config(run.student, terms=terms, teacher=None if arm == "task" else joint), "report", arm, 70.0, study="loss-terms")
    (drawing,) = loss_terms.draw(load([run.write()]), Options())
    drawing.figure.draw_without_rendering()
    labels = drawing.figure.axes[0].get_xticklabels()
    assert [label.get_text().replace("\n", "") for label in labels] == [arm.replace("task+", "+") for arm in arms]
    assert {label.get_rotation() for label in labels} == {0.0}
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_labels_that_do_not_fit_even_when_broken_are_turned() -> None:
    assert broken_labels(["none", "c1"]) == ["none", "c1"]
    assert broken_labels(["a_long_method+kl_q", *"bcdefg"]) is None
    assert broken_labels(["c1+c2+c3", *"abcdefghij"]) == ["c1+c2\n+c3", *"abcdefghij"]
