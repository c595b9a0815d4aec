"""What figures must not do: repeat a look, draw a spread that is not there, hide one point behind another, average unlike trials."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from analysis.aggregate import load
from analysis.artefact import Options
from analysis.drawing import COLOURS, line_of, marker_of
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
    (legend,) = drawing.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Teacher", "Teacher*", "KD", "HSAKD", "HSAKD*"]
    assert drawing.caption.endswith("Left out, as rows that may not be averaged: Student, wrn_40_2 → wrn_16_2.")
    assert drawing.figure.axes[0].get_ylim()[0] == pytest.approx(75.2 * (1 - np.exp(-3)) - 1)
    (forced,) = learning_curves.draw(results, Options(force=True))
    assert "Student" in [text.get_text() for text in forced.figure.legends[0].get_texts()]


def test_of_two_methods_at_one_point_the_second_is_a_ring_around_the_first(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair()
    for seed in range(3):
        terms = (("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))
        run.add(run.config(run.student, terms=terms, teacher=run.teachers()[2], seed=seed), "report", "HSAKD-tuned", 78.6 + 0.1 * seed)
    (drawing,) = pareto.draw(load([run.write()]), Options())
    drawn = [dots for dots in drawing.figure.axes[0].collections if len(dots.get_offsets())]
    places = [tuple(np.asarray(dots.get_offsets())[0]) for dots in drawn]
    (twice,) = {place for place in places if places.count(place) == 2}
    first, second = (dots for dots, place in zip(drawn, places, strict=True) if place == twice)
    assert second.get_sizes()[0] > first.get_sizes()[0]
    assert len(first.get_facecolor()) == 1
    assert len(second.get_facecolor()) == 0
