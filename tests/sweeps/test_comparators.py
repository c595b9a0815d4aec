"""The comparators' rows: data in one table, trials like KD's, and the facts about terms that are kept apart from torch."""

from dataclasses import replace
from pathlib import Path

import pytest

from analysis.published import reference
from analysis.tables.table1 import rows_of
from hsakd.losses import LOSS_TERMS
from hsakd.losses.__main__ import registered_facts
from hsakd.term_table import term_table
from sweeps.cli import SweepOptions
from sweeps.cost import cost_of
from sweeps.forecast import bank_needs
from sweeps.presets import COMPARATORS, DEFAULT_METHODS, METHODS
from sweeps.worklist import known_work


def options(tmp_path: Path, *methods: str) -> SweepOptions:
    return SweepOptions(out=tmp_path / "out", preset="digits", pairs=("resnet14-resnet8_half",), seeds=2, methods=methods)


def test_every_comparator_is_trained_per_seed_from_the_teacher_of_kd(tmp_path: Path) -> None:
    lines = known_work(options(tmp_path, "KD", *COMPARATORS))
    backbone = next(config for entry, config in lines if entry.purpose == "backbone")
    found = {method: [config for entry, config in lines if entry.method == method] for method in ("KD", *COMPARATORS)}
    for method, configs in found.items():
        assert [config.seed for config in configs] == [0, 1]
        assert all(config.teacher == backbone and config.taps == () for config in configs)
        assert method == "KD" or configs[0].objective == COMPARATORS[method]
    assert len({config.trial_id for configs in found.values() for config in configs}) == 2 * len(found)
    assert cost_of(found["AB"][0]) == pytest.approx(cost_of(found["KD"][0]) * 1.125)


def test_a_comparator_alone_brings_its_teacher(tmp_path: Path) -> None:
    lines = known_work(options(tmp_path, "CRD"))
    assert [entry.purpose for entry, _ in lines] == ["backbone", "report", "report"]


def test_the_default_rows_stay_the_papers_own_and_kd(tmp_path: Path) -> None:
    assert SweepOptions(out=tmp_path / "out").methods == DEFAULT_METHODS == ("Student", "KD", "HSAKD", "HSAKD*", "HSAKD-tuned")


def test_what_is_said_of_terms_without_torch_is_what_their_registrations_declare() -> None:
    assert term_table() == registered_facts()
    assert all(name in LOSS_TERMS for config in COMPARATORS.values() for name, _ in config.terms)


def test_the_forecast_counts_no_bank_for_rows_that_read_maps(tmp_path: Path) -> None:
    banked = replace(options(tmp_path, "AT", "DKD"), predictions="bank")
    configs = {entry.method: config for entry, config in known_work(banked) if entry.purpose == "report"}
    assert cost_of(configs["AT"]) > cost_of(configs["DKD"])  # the teacher is asked at each step
    assert bank_needs([configs["AT"]]) == {}
    assert len(bank_needs([configs["DKD"]])) == 1


def test_a_missing_library_is_one_sentence_that_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.cli.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"^--methods is AT, which needs torchdistill: pip install '\.\[comparators\]'$"):
        options(tmp_path, "KD", "AT")
    options(tmp_path, "KD", "DKD", "CRD", "SSKD", "SP", "CC")


def test_table_1_has_a_row_for_every_method_and_every_published_one() -> None:
    published = set(reference().query("table in ('table1_cifar100', 'online_cifar100')")["method"])
    rows = rows_of(set(METHODS))
    assert published | set(METHODS) <= set(rows)
    assert len(rows) == len(set(rows))
    assert rows.index("KD") < rows.index("FitNet") < rows.index("SSKD") < rows.index("PKT") < rows.index("HSAKD")
