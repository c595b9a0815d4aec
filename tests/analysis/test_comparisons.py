"""What stands beside what: published numbers beside measured ones, paired gains, tests and their corrections."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from analysis.aggregate import Results, load
from analysis.artefact import NotAsked, NothingToShow, Options
from analysis.figures import loss_terms as loss_terms_figure
from analysis.inference import holm, summarize, welch
from analysis.published import DATA_FIELDS, OPTIM_FIELDS, PROTOCOLS, SLOW_LEARNERS, SLOW_LEARNING_RATE, departures, published
from analysis.table import Table
from analysis.tables import aux_placement, equal_teacher, imagenet, loss_terms, over_student, table1, transfer
from hsakd.config import DataConfig, OptimConfig, TrialConfig
from sweeps import presets
from sweeps.transfer import PROBE_OPTIM

Make = Callable[..., Any]
ALL_TERMS = (("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))
KD = (("task", 0.1), ("kd", 0.9))


def texts(table: Table) -> dict[tuple[str, ...], str]:
    """Return the cells of the columns after the names: by the first cells that are no numbers, and the column."""
    named = 2 if table.name.startswith(("equal", "table1_c")) else 1
    return {
        (*(cell.text for cell in row[:named]), column): cell.text
        for row in table.rows
        for column, cell in zip(table.columns[named:], row[named:], strict=True)
    }


def results_of(run: Any) -> Results:
    return load([run.write()])


def probe(run: Any, method: str, seed: int, top1: float, source: TrialConfig) -> None:
    data = DataConfig(dataset="stl10", image_size=32, augmentation="resized_crop")
    probed = TrialConfig(network=run.student, data=data, optim=PROBE_OPTIM, taps=(), seed=seed, backbone=source)
    run.add(probed, "report", method, top1, study="transfer")


@pytest.mark.parametrize("dataset", ["cifar100", "cifar10"])
def test_probes_stand_beside_table_3_where_their_students_were_trained_on_cifar100(folder: Make, dataset: str) -> None:
    run = folder(dataset=dataset, teacher="vgg13_bn", student="mobilenetv2_half", is_papers=True)
    for seed in range(2):
        probe(run, "Student", seed, 60.0, run.config(run.student, taps=(), seed=seed))
    (table,) = transfer.build(results_of(run), Options())
    is_beside = ("Student", "vgg13_bn → mobilenetv2_half [stl10]: published (best-test)") in texts(table)
    assert is_beside is (dataset == "cifar100")
    sentence = "vgg13_bn → mobilenetv2_half: no published numbers beside students trained on cifar10 (the paper's: cifar100)."
    assert (sentence in table.notes) is (dataset == "cifar10")


def test_probes_of_students_of_another_teacher_or_other_data_are_refused(folder: Make) -> None:
    run = folder(dataset="cifar10")
    _, _, joint = run.teachers()
    other = replace(joint, optim=replace(joint.optim, epochs=2, milestones=()))
    for seed in range(2):
        student = run.config(run.student, taps=(), seed=seed)
        probe(run, "Student", seed, 60.0, student)
        probe(run, "Half", seed, 61.0, replace(student, data=replace(student.data, train_subset=500)))
        for method, teacher, top1 in (("HSAKD*", joint, 70.0), ("HSAKD-tuned", joint, 71.0), ("Odd", other, 80.0)):
            temperature = 4.0 if method == "HSAKD-tuned" else 3.0
            probe(run, method, seed, top1, run.config(run.student, terms=ALL_TERMS, teacher=teacher, seed=seed, temperature=temperature))
    (table,) = transfer.build(results_of(run), Options())
    found = {row: text for (row, column), text in texts(table).items() if "gain" not in column}
    assert found == {
        "HSAKD*": "70.00 ± 0.00 (2)",
        "HSAKD-tuned": "71.00 ± 0.00 (2)",
        "Half": "refused",
        "Odd": "refused",
        "Student": "60.00 ± 0.00 (2)",
    }
    assert {note.partition(" (--force")[0] for note in table.notes if "refused" in note} == {
        "Half, wrn_40_2 → wrn_16_2: refused, the training data differs from the other rows of the column",
        "Odd, wrn_40_2 → wrn_16_2: refused, the joint teacher differs from the other rows of the column",
    }


@pytest.mark.parametrize("regime", ["joint", "frozen"])
def test_the_papers_ablations_stand_beside_arms_of_a_joint_teacher_only(folder: Make, regime: str) -> None:
    run = folder(is_papers=True)
    _, frozen, joint = run.teachers()
    teacher = joint if regime == "joint" else frozen
    for label in ("task", "task+kl_q", "task+kl_q+kl_p"):
        config = run.config(run.student, terms=ALL_TERMS[: label.count("+") + 1], teacher=None if label == "task" else teacher)
        run.add(config, "report", label, 70.0, study="loss-terms")
    for label, taps in (("none", ()), ("c1", (1,))):
        config = run.config(run.student, terms=ALL_TERMS[: 1 + len(taps)], teacher=teacher if taps else None, taps=taps)
        run.add(config, "report", label, 70.0, study="aux-placement")
    results = results_of(run)
    sentence = "wrn_40_2 → wrn_16_2: no published numbers beside arms of a frozen teacher (the paper's: trained jointly)."
    for build, arm in ((loss_terms.build, "task+kl_q"), (aux_placement.build, "c1")):
        (table,) = build(results, Options())
        assert ((arm, "wrn_40_2 → wrn_16_2: published (best-test)") in texts(table)) is (regime == "joint")
        assert (sentence in table.notes) is (regime == "frozen")
    (drawing,) = loss_terms_figure.draw(results, Options())
    labels = drawing.figure.axes[0].get_legend_handles_labels()[1]
    assert (labels == ["measured (last)"]) is (regime == "frozen")
    assert (sentence in drawing.caption) is (regime == "frozen")


def test_a_gain_says_its_pairs_and_over_a_row_without_teacher_each_seed_counts_once(folder: Make) -> None:
    run = folder(dataset="digits")
    for teacher_seed in range(2):
        for seed in range(3):
            config = run.config(run.student, seed=seed, taps=())
            run.add(config, "report", "task", 70.0 + seed, study="loss-terms", teacher_seed=teacher_seed)
        teacher = replace(run.teachers()[2], seed=teacher_seed)
        for seed in range(3):
            for label, top1 in (("task+kl_q", 72.0), ("task+kl_q+kl_p", 73.0)):
                config = run.config(run.student, terms=ALL_TERMS[: label.count("+") + 1], teacher=teacher, seed=seed)
                value = None if (label, teacher_seed, seed) == ("task+kl_q+kl_p", 1, 2) else top1 + 2 * seed + teacher_seed
                run.add(config, "report", label, value, study="loss-terms", teacher_seed=teacher_seed)
    (table,) = loss_terms.build(results_of(run), Options())
    assert {row[0].text: row[1].n for row in table.rows if row[1].n} == {"task": 3, "task+kl_q": 6, "task+kl_q+kl_p": 5}
    gains = {row[0].text: row[2] for row in table.rows}
    # over the teachers' mean, kl_q's gains by seed are 2.5, 3.5 and 4.5; one of kl_p's six trials waits, so they are 3.5, 4.5 and 5
    assert gains["task+kl_q"].text == "+3.50 [+1.02, +5.98] (3)"
    assert (gains["task+kl_q+kl_p"].mean, gains["task+kl_q+kl_p"].n) == (pytest.approx(13 / 3), 3)
    assert (gains["task+kl_q"].low, gains["task+kl_q"].high) == pytest.approx((1.0158, 5.9842), abs=1e-4)
    assert gains["task+kl_q"].p == pytest.approx(0.0263, abs=1e-3)
    assert len(gains["task+kl_q+kl_p"].trial_ids) == 5 + 3
    assert table.rows[0][1].text == "71.00 ± 1.00 (3)"  # of a row without a teacher, three trials that stand under both teachers' seeds
    assert [note for note in table.notes if "not finished" in note] == [
        "task+kl_q+kl_p, wrn_40_2 → wrn_16_2: 1 of 6 trials not finished yet."
    ]
    assert any("beside a row without a teacher, the mean over teachers counts once per seed" in note for note in table.notes)


def equal(run: Any, **pairs: tuple[float, ...]) -> Table:
    """Return the table of a pair's rows HSAKD and KD, and of comparators by name, with one trial per value."""
    backbone, frozen, joint = run.teachers()
    rows = [("HSAKD", frozen, ALL_TERMS, pairs["HSAKD"]), ("HSAKD*", joint, ALL_TERMS, (80.0, 81.0, 82.0))]
    rows += [("HSAKD-tuned", joint, ALL_TERMS, (80.0, 81.0, 82.0))]
    rows += [(name, backbone, (*KD, ("sp", i + 1.0)), values) for i, (name, values) in enumerate(pairs.items()) if name != "HSAKD"]
    for method, teacher, terms, values in rows:
        for seed, value in enumerate(values):
            run.add(run.config(run.student, terms=terms, teacher=teacher, seed=seed), "report", method, value)
    (table,) = equal_teacher.build(results_of(run), Options())
    return table


def test_gains_at_equal_teacher_are_corrected_and_each_two_rows_stand_once(folder: Make) -> None:
    table = equal(folder(dataset="digits"), HSAKD=(75.0, 76.5, 77.0), SP=(73.0, 74.1, 74.2), KD=(74.0, 73.0, 75.0), CC=(1.0,))
    found = texts(table)
    pair = "wrn_40_2 → wrn_16_2"
    assert [row[1].text for row in table.rows] == ["HSAKD - KD", "HSAKD - CC", "HSAKD - SP"]
    by_hand = [summarize([1.0, 3.5, 2.0]), summarize([2.0, 2.4, 2.8])]
    assert found[pair, "HSAKD - KD", "Gain"].startswith(f"{by_hand[0].mean:+.2f} [")
    assert found[pair, "HSAKD - SP", "Gain"].startswith(f"{by_hand[1].mean:+.2f} [")
    assert (found[pair, "HSAKD - CC", "Gain"], found[pair, "HSAKD - CC", "p (Holm)"]) == ("+74.00 (1)", "-")
    p = {row[1].text: (row[3].p, row[4].p) for row in table.rows}
    assert p["HSAKD - SP"][1] == pytest.approx(2 * p["HSAKD - SP"][0])
    assert p["HSAKD - KD"][1] == p["HSAKD - KD"][0] > p["HSAKD - SP"][1]
    assert all(cell.trial_ids for row in table.rows for cell in row[2:5])
    same = "both rows are the same trials (of HSAKD-tuned: the paper's setting won): HSAKD-tuned - HSAKD*, wrn_40_2 → wrn_16_2."
    assert f"No line where {same}" in table.notes
    assert not any("Published" in note for note in table.notes)


def test_means_over_pairs_are_tested_from_six_pairs_and_rows_without_a_common_seed_are_named(folder: Make) -> None:
    students = ["wrn_16_2", "wrn_40_1", "resnet20", "resnet8x4", "shufflenet_v1", "shufflenet_v2"]
    tables = []
    for num_pairs in (2, 6):
        run = folder(f"{num_pairs}", dataset="cifar100", is_papers=True)
        for i, run.student in enumerate(students[:num_pairs]):
            table = equal(run, HSAKD=(75.0 + i, 76.0), KD=(74.0, 73.0), CC=(70.0, 70.0 - i))
        tables.append({row[1].text: row for row in table.rows if row[0].text == f"mean of {num_pairs} pairs"})
        untested = "Means are not tested: of fewer than 6 pairs of networks, Wilcoxon's test can't have a p below 0.05."
        assert (untested in table.notes) is (num_pairs == 2)
        assert any(note.startswith("Published (Table 1") for note in table.notes)
    assert tables[0]["HSAKD - KD"][3].p is None
    assert tables[1]["HSAKD - KD"][3].p == pytest.approx(2 / 64)
    assert tables[1]["HSAKD - KD"][4].p == pytest.approx(4 / 64)  # two rows of means are tested
    assert len(tables[1]["HSAKD - KD"][2].trial_ids) == 6 * 4
    run = folder("waiting", dataset="digits")
    backbone, frozen, _ = run.teachers()
    run.add(run.config(run.student, terms=ALL_TERMS, teacher=frozen), "report", "HSAKD", 75.0)
    run.add(run.config(run.student, terms=ALL_TERMS, teacher=frozen, seed=1), "report", "HSAKD", None)
    run.add(run.config(run.student, terms=KD, teacher=backbone, seed=1), "report", "KD", 74.0)
    with pytest.raises(NothingToShow, match="no two methods to compare, since no seed and teacher have a number in both rows"):
        equal_teacher.build(results_of(run), Options())
    run.add(run.config(run.student, terms=(*KD, ("cc", 1.0)), teacher=backbone), "report", "CC", 74.0)
    (table,) = equal_teacher.build(results_of(run), Options())
    sentence = (
        "No line where no seed and teacher have a number in both rows, or a row has different settings: HSAKD - KD, wrn_40_2 → wrn_16_2."
    )
    assert sentence in table.notes


def test_gains_over_the_student_are_paired_by_seed_corrected_and_of_the_same_trials_once(folder: Make) -> None:
    run = folder(dataset="digits")
    for seed, top1 in enumerate((70.0, 71.0, 73.0)):
        run.add(run.config(run.student, taps=(), seed=seed), "report", "Student", top1)
    equal(run, HSAKD=(75.0, 76.5, 77.0), KD=(74.0, 73.0, 75.0), CC=(1.0,))
    (table,) = over_student.build(load([run.root]), Options())
    assert [row[1].text for row in table.rows] == ["KD - Student", "CC - Student", "HSAKD - Student", "HSAKD* - Student"]
    gains = [(4.0, 2.0, 2.0), (-69.0,), (5.0, 5.5, 4.0), (10.0, 10.0, 9.0)]
    assert [row[2].mean for row in table.rows] == [pytest.approx(summarize(list(values)).mean) for values in gains]
    expected = holm([None if len(values) == 1 else float(stats.ttest_1samp(values, 0).pvalue) for values in gains])
    assert [row[4].p for row in table.rows] == [None if p is None else pytest.approx(p) for p in expected]
    assert "No line of HSAKD-tuned, wrn_40_2 → wrn_16_2: the same trials as in HSAKD* - Student." in table.notes


def test_without_a_student_there_are_no_gains_over_it(folder: Make) -> None:
    run = folder(dataset="digits")
    equal(run, HSAKD=(75.0, 76.0), KD=(74.0, 73.0))
    with pytest.raises(NotAsked):
        over_student.build(load([run.root]), Options())
    run.add(run.config(run.student, taps=(), seed=7), "report", "Student", 70.0)
    with pytest.raises(NothingToShow, match="No line of KD, wrn_40_2 → wrn_16_2: no seed has a number in both rows"):
        over_student.build(results_of(run), Options())


def test_gains_at_equal_teacher_refuse_what_table_1_refuses(folder: Make) -> None:
    run = folder(dataset="digits")
    backbone, _, _ = run.teachers()
    half = replace(run.config(run.student, terms=KD, teacher=backbone), data=DataConfig(dataset="digits", train_subset=500))
    run.add(half, "report", "AT", 90.0)
    table = equal(run, HSAKD=(75.0, 76.0), KD=(74.0, 73.0))
    assert [row[1].text for row in table.rows] == ["HSAKD - KD"]
    assert any(note.startswith("AT, wrn_40_2 → wrn_16_2: refused, the training data differs") for note in table.notes)


def test_rows_of_several_teachers_are_compared_over_those_that_both_have(folder: Make) -> None:
    run = folder(dataset="digits")
    for teacher_seed in range(2):
        backbone, frozen, _ = (replace(teacher, seed=teacher_seed) for teacher in run.teachers())
        frozen = replace(frozen, backbone=backbone)
        for seed in range(2):
            config = run.config(run.student, terms=ALL_TERMS, teacher=frozen, seed=seed)
            run.add(config, "report", "HSAKD", 75.0 + seed + 5 * teacher_seed, teacher_seed=teacher_seed)
            if teacher_seed == 0:
                run.add(run.config(run.student, terms=KD, teacher=backbone, seed=seed), "report", "KD", 74.0)
    (table,) = equal_teacher.build(results_of(run), Options())
    assert [row[2].mean for row in table.rows] == [pytest.approx(1.5)]
    assert "HSAKD - KD, wrn_40_2 → wrn_16_2: over the teachers that both rows have (1)." in table.notes


def test_rows_whose_teachers_have_other_seeds_are_not_compared_and_that_is_said(folder: Make) -> None:
    run = folder(dataset="digits")
    backbone, frozen, _ = run.teachers()
    run.add(run.config(run.student, terms=ALL_TERMS, teacher=frozen), "report", "HSAKD", 75.0)
    run.add(run.config(run.student, terms=KD, teacher=replace(backbone, seed=1)), "report", "KD", 74.0, teacher_seed=1)
    with pytest.raises(NothingToShow, match="no two methods to compare, since no seed and teacher have a number in both rows"):
        equal_teacher.build(results_of(run), Options())


def test_holms_family_are_the_rows_with_a_verdict_and_a_shared_student_counts_once(folder: Make) -> None:
    run = folder(student="mobilenetv2_half", is_papers=True)
    for run.teacher in ("vgg13_bn", "resnet50"):
        backbone, _, _ = run.teachers()
        for seed in range(3):
            run.add(run.config(run.student, taps=(), seed=seed), "report", "Student", 73.0 + 0.2 * seed)
            run.add(run.config(run.student, terms=KD, teacher=backbone, seed=seed), "report", "KD", 75.0 + 0.1 * seed)
            short = run.config(run.student, terms=(*KD, ("sp", 1.0)), teacher=backbone, seed=seed)
            run.add(replace(short, optim=replace(short.optim, epochs=12, milestones=())), "report", "SP", 70.0 + 0.1 * seed)
    _, table = table1.build(results_of(run), Options())
    rows = {(row[0].text.partition(" ")[0], row[1].text): row for row in table.rows}
    measured = {"Student": (73.25, 73.45, 73.65), "KD": (75.25, 75.35, 75.45)}
    kinds = [("vgg13_bn", "Student"), ("vgg13_bn", "KD"), ("resnet50", "KD")]
    tests = [welch(summarize(measured[kind]), published(table1.PUBLISHED, ("", pair, run.student))[kind]).p for pair, kind in kinds]
    assert [rows[place][7].p for place in kinds] == pytest.approx(holm(tests))
    assert rows["resnet50", "Student"][7].p == rows["vgg13_bn", "Student"][7].p
    assert [cell.text for cell in rows["resnet50", "SP"][2:]] == [
        "-",
        "70.35 ± 0.10 (3)",
        *"----",
        "none (not the paper's schedule or data)",
    ]
    assert any("over the 3 comparisons with a verdict" in note for note in table.notes)


def test_the_papers_protocols_are_those_of_the_presets() -> None:
    assert (SLOW_LEARNERS, SLOW_LEARNING_RATE) == (presets.SLOW_LEARNERS, presets.SLOW_LEARNING_RATE)
    for preset, dataset, size in (("paper", "cifar100", 32), ("imagenet", "imagenet", 224)):
        ours, theirs = PROTOCOLS[dataset], presets.PRESETS[preset]
        assert replace(theirs.data, image_size=size) == ours.data
        for name in OPTIM_FIELDS:
            assert getattr(ours.optim, name) == getattr(theirs.optim, name)
            assert getattr(ours.branches, name) == getattr(theirs.branch_optim, name)
    assert PROTOCOLS["stl10"].optim == PROTOCOLS["tinyimagenet"].optim == PROBE_OPTIM


CHANGES: dict[str, Any] = {"image_size": 16, "train_subset": 500, "few_shot_ratio": 0.5, "validation_fraction": 0.1}
CHANGES |= {"epochs": 12, "batch_size": 512, "learning_rate": 0.1, "milestones": (1,), "weight_decay": 0.0, "warmup_epochs": 5}


@pytest.mark.parametrize("name", [*DATA_FIELDS, *OPTIM_FIELDS])
def test_a_trial_of_another_schedule_or_other_data_is_not_the_papers(folder: Make, name: str) -> None:
    run = folder(is_papers=True)
    backbone, frozen, _ = run.teachers()
    student = run.config(run.student, terms=ALL_TERMS, teacher=frozen)

    def changed(trial: TrialConfig) -> TrialConfig:
        part = "data" if name in DATA_FIELDS else "optim"
        return replace(trial, **{part: replace(getattr(trial, part), **{name: CHANGES[name]})})

    assert departures(student.to_json()) == ()
    (found,) = departures(changed(student).to_json())
    assert found.startswith(f"{name} {CHANGES[name]}, not ")
    other = replace(frozen, backbone=changed(backbone))
    assert departures(replace(student, teacher=other).to_json()) == (f"teacher's {found}",)
    assert bool(departures(changed(student).to_json(), varies_ratio=True)) is (name != "few_shot_ratio")


def test_a_slow_learner_has_its_own_rate_and_imported_weights_no_schedule() -> None:
    data = DataConfig(dataset="cifar100")
    slow = TrialConfig(network="shufflenet_v1", data=data)
    assert departures(slow.to_json()) == ("learning_rate 0.05, not 0.01",)
    assert departures(replace(slow, optim=OptimConfig(learning_rate=0.01)).to_json()) == ()
    imported = TrialConfig(network="wrn_40_2", data=data, optim=OptimConfig(epochs=0, milestones=()), imported_sha256="0" * 64)
    assert departures(TrialConfig(network="wrn_16_2", data=data, teacher=imported).to_json()) == ()


def test_table_1_has_no_published_numbers_and_no_verdicts_beside_small_images(folder: Make) -> None:
    run = folder(is_papers=True)
    backbone, _, _ = run.teachers()
    small = DataConfig(dataset="cifar100", image_size=16)
    for seed in range(3):
        for method, teacher in (("Student", None), ("KD", replace(backbone, data=small))):
            config = run.config(run.student, terms=KD if teacher else ALL_TERMS[:1], teacher=teacher, seed=seed, taps=())
            run.add(replace(config, data=small), "report", method, 73.0 + 0.2 * seed)
    (table,) = table1.build(results_of(run), Options())  # without a comparison
    assert [row[0].text for row in table.rows] == ["Student", "KD"]
    start = "wrn_40_2 → wrn_16_2: no published numbers beside"
    assert [note for note in table.notes if "no published" in note] == [
        f"{start} KD, not of the paper's schedule or data (image_size 16, not 32; teacher's image_size 16, not 32).",
        f"{start} Student, not of the paper's schedule or data (image_size 16, not 32).",
    ]


@pytest.mark.parametrize("is_papers", [True, False])
def test_imagenet_rows_of_both_papers_stand_beside_ours_of_the_papers_schedule(folder: Make, is_papers: bool) -> None:
    run = folder(dataset="imagenet", teacher="resnet34_imagenet", student="resnet18_imagenet", is_papers=is_papers)
    run.add(run.config(run.student, taps=()), "report", "Student", 70.0)
    online = run.config(run.student, terms=(("task", 1.0), ("ce_q", 1.0)), peer=run.student)
    run.add(online, "report", "HSSAKD (online)", 71.0, teacher=run.student)
    (table,) = imagenet.build(results_of(run), Options())
    found = {(row[0].text.partition(" ")[0], row[1].text): [cell.text for cell in row[2:]] for row in table.rows}
    assert found[run.teacher, "Student"] == ["70.00 (1)", "no last", *(["69.75", "89.07"] if is_papers else "--")]
    assert found[run.student, "HSSAKD (online)"] == ["71.00 (1)", "no last", "71.49" if is_papers else "-", "-"]
    assert ((run.teacher, "SSKD") in found) is is_papers


def test_every_cell_of_every_csv_has_a_key(folder: Make) -> None:
    run = folder()
    table = equal(run, HSAKD=(75.0, 76.0), KD=(74.0, 73.0))
    (path := run.root / "equal_teacher.csv").write_text(table.to_csv())
    found = pd.read_csv(path)
    assert not found.duplicated(["line", "column"]).any()
    gained = found[(found["line"] == 1) & (found["column"] == "Gain")].iloc[0]
    assert (gained["n"], gained["low"] < gained["mean"] < gained["high"]) == (2, True)
    assert 0 < gained["p"] < 1
