"""What tables refuse, mark and count: columns of unlike rows, confirmations, one setting for all pairs, costs, LaTeX."""

import itertools
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.aggregate import PAIRS, load
from analysis.artefact import NotAsked, NothingToShow, Options
from analysis.build import main
from analysis.figures import importance
from analysis.one_setting import one_setting
from analysis.search import studies_of
from analysis.setting import setting_of
from analysis.table import Cell, Table
from analysis.tables import cost, few_shot, networks, pruning, search_summary, table1
from analysis.tables import temperature as temperatures
from hsakd.config import OptimConfig
from hsakd.network_table import network_table
from hsakd.records import PruningRow
from hsakd.store import write_rows

Make = Callable[..., Any]
ALL_TERMS = (("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))
HAS_LATEX = bool(
    shutil.which("pdflatex") and not subprocess.run(["kpsewhich", "booktabs.sty"], stdout=subprocess.DEVNULL, check=False).returncode
)


def cell(path: Path, row: str, column: str = "") -> pd.Series:
    table = pd.read_csv(path)
    return table[(table["row"] == row) & table["column"].str.contains(column, regex=False)].iloc[0]


def test_a_row_with_another_teacher_is_refused_in_the_column_unless_forced(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair()
    backbone, _, _ = run.teachers()
    other = replace(backbone, optim=replace(backbone.optim, epochs=2, milestones=()))
    for seed in range(2):
        config = run.config(run.student, terms=(("task", 0.1), ("kd", 0.9)), teacher=other, taps=(), seed=seed)
        run.add(config, "report", "SSKD", 90.0)
    assert main([str(run.write())]) == 0
    assert cell(run.root / "tables/table1.csv", "SSKD")["text"] == "refused"
    assert "SSKD, wrn_40_2 → wrn_16_2: refused, the frozen teacher differs" in (run.root / "tables/table1.md").read_text()
    assert cell(run.root / "tables/table1.csv", "KD")["n"] == 3
    assert main([str(run.root), "--force"]) == 0
    assert cell(run.root / "tables/table1.csv", "SSKD")["text"] == "90.00 ± 0.00 (2)"
    assert "forced, the frozen teacher differs" in (run.root / "tables/table1.md").read_text()


def test_an_arm_with_another_teacher_is_refused_in_its_studys_column_and_has_no_gain(folder: Make) -> None:
    run = folder(dataset="digits")
    _, _, joint = run.teachers()
    other = replace(joint, optim=replace(joint.optim, epochs=2, milestones=()))
    terms = (("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))
    for temperature, teacher in ((1.0, joint), (3.0, joint), (5.0, other)):
        for seed in range(2):
            config = run.config(run.student, terms=terms, teacher=teacher, temperature=temperature, seed=seed)
            run.add(config, "report", f"temperature={temperature:g}", 70.0 + temperature + seed, study="temperature")
    assert main([str(run.write())]) == 0
    row = pd.read_csv(run.root / "tables/temperature.csv").query("row == 'temperature=5'")["text"].tolist()
    assert row == ["refused", "-"]
    assert "temperature=5, wrn_40_2 → wrn_16_2: refused, the joint teacher differs" in (run.root / "tables/report.html").read_text()
    assert main([str(run.root), "--force"]) == 0
    row = pd.read_csv(run.root / "tables/temperature.csv").query("row == 'temperature=5'")["text"].tolist()
    assert row == ["75.50 ± 0.71 (2)", "+2.00 [+2.00, +2.00] (2)"]


def test_a_trial_of_another_student_is_refused(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair()
    run.add(run.config("resnet20", taps=()), "report", "Odd", 99.0)
    assert main([str(run.write())]) == 0
    assert cell(run.root / "tables/table1.csv", "Odd")["text"] == "refused"
    assert "Odd, wrn_40_2 → wrn_16_2: refused, trained with resnet20 (--force shows it)" in (run.root / "tables/table1.md").read_text()


def test_networks_without_a_row_in_the_table_of_networks_are_named(folder: Make) -> None:
    run = folder(dataset="digits", teacher="timm/resnet34")
    run.pair(seeds=1)
    assert main([str(run.write())]) == 0
    assert "without a row: timm/resnet34." in (run.root / "tables/networks.md").read_text()


def test_two_folders_with_different_results_of_one_trial_are_a_sentence(folder: Make, tmp_path: Path, capsys: Any) -> None:
    for name, top1 in (("one", 70.0), ("two", 80.0)):
        run = folder(name, dataset="digits")
        run.add(run.config(run.student, taps=()), "report", "Student", top1)
        run.write()
    assert main([str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "out")]) == 0
    sentence = "is complete in several folders with different results; the last finished is shown."
    assert sentence in capsys.readouterr().out
    report = (tmp_path / "out/report.html").read_text()
    assert sentence in report
    shown = cell(tmp_path / "out/table1.csv", "Student")["mean"]
    assert f'<th scope="row">top1_last</th><td>{shown}</td>' in report  # the trial that the number links to says the same
    assert f"epoch 3: loss 0.25, top1_test {shown * (1 - math.exp(-4)):.4g}" in report


def test_a_row_on_other_data_is_refused_in_the_column(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair()
    for seed in range(2):
        config = run.config(run.student, taps=(), seed=seed)
        run.add(replace(config, data=replace(config.data, train_subset=500)), "report", "Half", 90.0)
    assert main([str(run.write())]) == 0
    assert "Half, wrn_40_2 → wrn_16_2: refused, the training data differs" in (run.root / "tables/table1.md").read_text()


def test_published_rows_say_their_selection_and_a_missing_selection_is_never_filled_in(folder: Make) -> None:
    run = folder(is_papers=True)
    run.pair()
    assert main([str(run.write()), "--selection", "val"]) == 0
    assert cell(run.root / "tables/table1.csv", "KD")["text"] == "no val"
    assert cell(run.root / "tables/table1.csv", "KD, published (best-test)")["text"] == "75.23 ± 0.23"
    assert main([str(run.root), "--selection", "best-test"]) == 0
    assert cell(run.root / "tables/table1.csv", "KD")["text"] == "75.45 ± 0.10 (3)"


def confirm(run: Any, temperature: float, values: tuple[float | None, ...], number: int, status: str = "complete") -> None:
    _, _, teacher = run.teachers(0.1)
    terms = (("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))
    for seed, value in enumerate(values):
        config = run.config(run.student, validation=0.1, terms=terms, temperature=temperature, teacher=teacher, seed=seed)
        more = {"study": f"{run.teacher}-{run.student}", "study_number": number}
        if seed == 0:
            run.add(config, "search", "search", 70.0, **more)
        run.add(config, "confirm", "confirm", value, status=status if seed == 1 else "complete", **more)


def confirmed(run: Any) -> str:
    assert main([str(run.write())]) == 0
    return str(cell(run.root / "tables/search_summary.csv", f"{run.teacher}-{run.student}", "Confirmed")["text"])


def test_of_equal_confirmations_the_papers_setting_is_the_winner(folder: Make) -> None:
    run = folder(dataset="digits")
    confirm(run, 5.0, (80.0, 80.0), 1)
    confirm(run, 3.0, (80.0, 80.0), 0)
    assert confirmed(run) == "the paper's setting: 79.00 (2), best of 2"


def test_a_setting_with_a_failed_seed_cannot_win_and_a_waiting_one_makes_it_a_leader(folder: Make) -> None:
    run = folder(dataset="digits")
    confirm(run, 3.0, (80.0, 80.0), 0)
    confirm(run, 5.0, (90.0, 90.0), 1, status="diverged")
    assert confirmed(run) == "the paper's setting: 79.00 (2), best of 2"
    confirm(run, 7.0, (70.0, None), 2)
    assert confirmed(run) == "the paper's setting: 79.00 (2), leads 1 of 3 so far"


def set_column(path: Path, name: str, value: Any) -> None:
    table = pq.read_table(path)
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array([value], table.schema.field(place).type)), path)


def age(path: Path) -> None:
    """Make a trial's record one of an older version, whose configurations lacked fields that today's write at their default."""
    config = json.loads(pq.read_table(path)["config_json"][0].as_py())
    for part in filter(None, (config, config["teacher"], (config["teacher"] or {}).get("backbone"))):
        del part["data"]["folder"], part["optim"]["batch_shards"], part["peer"], part["detection"]
    set_column(path, "config_json", json.dumps(config))


def test_trials_of_an_older_version_share_a_cell_a_gain_and_a_confirmation_with_newer_ones(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair()
    run.studies()
    confirm(run, 5.0, (80.0, 81.0), 1)
    confirm(run, 7.0, (70.0, 71.0), 2)
    run.write()
    for path in sorted((run.root / "trials").iterdir())[::2]:
        age(path)
    assert main([str(run.root)]) == 0
    texts = pd.concat(pd.read_csv(path) for path in (run.root / "tables").glob("*.csv"))["text"].astype(str)
    assert not texts.str.contains("refused").any()
    assert cell(run.root / "tables/loss_terms.csv", "task+kl_q", "gain")["text"] == "+1.00 [+1.00, +1.00] (3)"
    assert str(cell(run.root / "tables/search_summary.csv", f"{run.teacher}-{run.student}", "Confirmed")["text"]).endswith("best of 4")


def test_where_every_setting_has_a_failed_seed_the_papers_is_taken_as_the_sweep_takes_it(folder: Make) -> None:
    run = folder(dataset="digits")
    confirm(run, 3.0, (80.0, 80.0), 0, status="failed")
    confirm(run, 5.0, (90.0, 90.0), 1, status="diverged")
    assert confirmed(run) == "the paper's setting: each has a failed seed"


def test_of_a_study_with_many_trials_the_best_is_a_candidate_for_one_setting(folder: Make) -> None:
    run = folder(dataset="digits")
    for run.student in ("wrn_16_2", "wrn_40_1"):
        _, _, teacher = run.teachers(0.1)
        for number in range(102):  # of which every second one is judged
            temperature = 3.0 if number == 0 else 10.0 + number
            terms = (("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))
            config = run.config(run.student, validation=0.1, terms=terms, temperature=temperature, teacher=teacher)
            more = {"study": f"{run.teacher}-{run.student}", "study_number": number}
            run.add(config, "search", "search", 90.0 if number == 51 else 70.0, **more)
    results = load([run.write()])
    found = one_setting(studies_of(results))
    assert found is not None
    assert (found.text, found.mean_regret, found.num_compared) == ("temperature 61", 0.0, 52)
    (table,) = search_summary.build(results, Options())
    assert "A study of over 100 trials proposes an even part of them, its best and the paper's." in table.notes
    assert any("0.00 points, of the 52 settings that every study tried or has enough trials to estimate" in note for note in table.notes)


def test_the_cost_of_the_search_with_its_teacher_and_pruned_trials_is_the_same_in_three_tables(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair()
    run.studies()
    run.write()
    for path in (run.root / "trials").iterdir():  # of three ranks of two threads, so that hours and CPU-hours differ
        for name, value in (("num_threads", 2), ("num_ranks", 3)):
            set_column(path, name, value)
    results = load([run.root])
    costs = {(row[0].text, row[1].text): row[4].mean for row in cost.build(results, Options())[0].rows}
    expected = sum(costs[place] or 0 for place in (("search", "search"), ("confirm", "confirm"), ("search", "teacher")))
    (summary,) = search_summary.build(results, Options())
    hours = summary.rows[0][-1]
    assert hours.mean == pytest.approx(expected) == pytest.approx(len(hours.trial_ids) * 2 * 3 * 40 / 3600)
    text = f"{expected:.3f} CPU-hours (trial hours x threads)"
    assert any(f"together, each trial once, {text}." in note for note in summary.notes)
    (note,) = (note for note in table1.build(results, Options())[0].notes if "HSAKD-tuned was chosen" in note)
    assert re.search(r"by \d+ search and confirmation trials \(\d+ complete, 1 pruned\); with their 1 teacher they took ", note)
    assert note.endswith(f"{text}.")


def test_a_trial_on_several_gpus_counts_on_each(folder: Make) -> None:
    run = folder(dataset="digits")
    run.add(run.config(run.student, taps=()), "report", "Student", 70.0)
    (path,) = (run.write() / "trials").iterdir()
    for name, value in (("device", "cuda"), ("num_threads", 6), ("num_ranks", 8)):
        set_column(path, name, value)
    (table,) = cost.build(load([run.root]), Options())
    assert table.rows[0][4].mean == pytest.approx(8 * 40 / 3600)
    assert table.notes[0].startswith("Together 0.089 GPU-hours (trial hours x GPUs)")


def test_a_pruning_report_is_a_table_where_there_is_one_and_a_sentence_where_it_is_cut(folder: Make) -> None:
    run = folder(dataset="digits")
    run.studies(seeds=1)
    results = load([run.write()])
    with pytest.raises(NotAsked):
        pruning.build(results, Options())
    best = str(results.rows(purpose="search")["trial_id"].iloc[0])
    shared = {"study": "a-b", "num_trials": 12, "best_trial_id": best, "best_top1_val": 77.0, "seconds_saved": 1800.0, "epochs_saved": 10}
    kept = PruningRow(pruner="as run", num_pruned=1, epochs_run=40, kills_best=False, top1_val_left=77.0, **shared)
    killed = replace(kept, pruner="median", num_pruned=2, epochs_run=30, kills_best=True, top1_val_left=76.25)
    write_rows(run.root / "pruning.parquet", [kept, killed], PruningRow)
    (table,) = pruning.build(results, Options())
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["a-b", "as run", "12", "1", "10 (20%)", "0.500", "77.00", "-"],
        ["a-b", "median", "12", "2", "10 (25%)", "0.500", "77.00", "0.75"],
    ]
    assert table.trial_ids == {best}
    (run.root / "pruning.parquet").write_bytes(b"PAR1")
    with pytest.raises(NothingToShow, match=r"run/pruning.parquet is not a readable Parquet file"):
        pruning.build(results, Options())


def test_the_bank_saved_what_live_predictions_would_have_run_and_shared_trials_are_named(folder: Make) -> None:
    run = folder(dataset="stl10")
    _, _, joint = run.teachers()
    for label, taps in (("c1", (1,)), ("c1+c2+c3", None)):
        run.add(run.config(run.student, terms=(("task", 1.0), ("kl_q", 1.0)), teacher=joint, taps=taps), "report", label, 70.0, study="aux")
    run.add(run.config(run.student, terms=(("task", 1.0), ("kl_q", 1.0)), teacher=joint), "report", "HSAKD*", 70.0)
    run.add(run.config("wrn_40_1", taps=()), "report", "Student", None, student="wrn_40_1")
    run.add(run.config(run.student, taps=()), "report", "Student", 70.0)
    record = run.record(run.config("wrn_40_1", taps=()), 70.0)
    run.store.write_trial(replace(record, multi_adds=20_000_000), [])
    (table,) = cost.build(load([run.write()]), Options())
    rows = {row[0].text: row for row in table.rows}
    facts = network_table()["wrn_40_2"]
    whole = 300 * 4 * 9 * (facts.multi_adds + sum(facts.branch_multi_adds)) / 1e12  # hits, rotations, 96 px for 32
    assert rows["HSAKD*"][7].mean == pytest.approx(whole)
    assert rows["aux: c1"][7].mean == pytest.approx(300 * 4 * 9 * (facts.multi_adds + facts.branch_multi_adds[0]) / 1e12)
    assert "aux: c1+c2+c3" not in rows
    assert (
        table.notes[-1] == "A trial that serves several rows is counted in one; trials of these rows are counted in others: aux: c1+c2+c3."
    )
    assert (rows["Student"][5].text, rows["Student"][5].mean, len(rows["Student"][5].trial_ids)) == ("10.0 to 20.0", None, 2)
    assert (rows["HSAKD*"][5].text, rows["HSAKD*"][5].mean) == ("10.0", 10.0)


def test_one_setting_for_all_pairs_is_measured_where_tried_and_estimated_elsewhere(folder: Make, tmp_path: Path) -> None:
    first, second = folder("one", dataset="digits"), folder("two", dataset="digits", student="wrn_40_1")
    for run, best in ((first, 4.0), (second, 6.0)):
        _, _, teacher = run.teachers(0.1)
        for number in range(12):
            temperature = 3.0 if number == 0 else 1.0 + number + (0.0 if run is first else 0.3)
            terms = (("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))
            config = run.config(run.student, validation=0.1, terms=terms, temperature=temperature, teacher=teacher)
            more = {"study": f"{run.teacher}-{run.student}", "study_number": number}
            run.add(config, "search", "search", 80 - abs(temperature - best), **more)
        run.write()
    found = one_setting(studies_of(load([first.root, second.root])))
    assert found is not None
    temperature = float(found.text.split()[1])
    assert 3.5 < temperature < 6.5
    assert sorted(guess.trial is None for guess in found.guesses.values()) == [False, True]
    assert 0 < found.mean_regret < 1.5
    assert main([str(first.root), str(second.root), "--out", str(tmp_path / "out")]) == 0
    texts = pd.read_csv(tmp_path / "out/search_summary.csv")
    regrets = texts[texts["column"] == "Regret of one setting"]["text"]
    assert sum(text.startswith("~") for text in regrets) == 1


def test_studies_of_two_data_sets_stay_apart(folder: Make) -> None:
    runs = [folder("one", dataset="digits"), folder("two", dataset="fashion_mnist")]
    for run in runs:
        run.studies()
        run.write()
    found = studies_of(load([run.root for run in runs]))
    assert [study.label for study in found] == ["wrn_40_2-wrn_16_2 [digits]", "wrn_40_2-wrn_16_2 [fashion_mnist]"]
    assert [len(study.complete) for study in found] == [11, 11]


def test_only_a_study_that_the_plan_asked_for_is_called_missing(folder: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(dataset="digits")
    run.pair()
    run.add(run.config(run.student, seed=5), "report", "temperature=3", None, study="temperature")
    assert main([str(run.write())]) == 0
    said = capsys.readouterr().out
    assert "Figure temperature: no arm of the study has a number for the selection 'last' yet." in said
    assert "waiting" in (run.root / "tables/temperature.md").read_text()
    assert not re.search("loss-terms|transfer|ImageNet|Search:", said)


def test_few_shot_stands_beside_table_5(folder: Make) -> None:
    run = folder(teacher="resnet56", student="resnet20", is_papers=True)
    _, _, teacher = run.teachers()
    for seed in range(3):
        config = run.config(run.student, few_shot_ratio=0.25, teacher=teacher, seed=seed, terms=(("task", 1.0), ("kl_q", 1.0)))
        run.add(config, "report", "HSAKD* 25%", 68.0, study="few-shot")
    assert main([str(run.write())]) == 0
    assert cell(run.root / "tables/few_shot.csv", "HSAKD* 25%", "published")["text"] == "68.50 ± 0.24"
    assert cell(run.root / "tables/few_shot.csv", "CRD 50%", "published")["text"] == "69.91 ± 0.20"


def test_few_shot_has_kd_first_and_gains_over_kd_of_the_same_ratio(folder: Make) -> None:
    run = folder(dataset="digits")
    backbone, _, joint = run.teachers()
    rows = (("HSAKD*", joint, ALL_TERMS, 70.0), ("KD", backbone, (("task", 0.1), ("kd", 0.9)), 65.0))
    for (method, teacher, terms, top1), ratio, seed in itertools.product(rows, (0.5, 0.25), range(3)):
        config = run.config(run.student, few_shot_ratio=ratio, teacher=teacher, seed=seed, terms=terms)
        top1 += 10 * ratio + seed * (1 if method == "KD" else 1.5)
        run.add(config, "report", f"{method} {ratio:.0%}", top1, study="few-shot")
    (table,) = few_shot.build(load([run.write()]), Options())
    assert table.columns[2] == "wrn_40_2 → wrn_16_2: gain over KD of its ratio"
    assert [row[0].text for row in table.rows] == ["KD 25%", "KD 50%", "HSAKD* 25%", "HSAKD* 50%"]
    assert [row[2].text for row in table.rows[:2]] == ["base", "base"]
    assert [row[2].mean for row in table.rows[2:]] == [5.5, 5.5]
    assert "KD and HSAKD* have teachers of their own: of one seed, trained plainly and jointly." in table.notes


def test_every_latex_table_is_strict_booktabs(folder: Make) -> None:
    run = folder()
    run.pair()
    run.studies()
    run.add(run.config(run.student, seed=8, taps=()), "report", "Student", 1.0, status="failed", error=r"50 % of $x_1 & {y} \ ~ ^ # <é>")
    assert main([str(run.write())]) == 0
    files = sorted((run.root / "tables").glob("*.tex"))
    assert len(files) >= 9
    for path in files:
        assert_is_latex(path.read_text(), num_parts=1)
    assert (
        r"\caption{Accuracy of the methods. Trained on cifar100, 50,000 training images, 32x32, 4 epochs.}"
        in (run.root / "tables/table1.tex").read_text()
    )
    assert r"\shortstack{wrn\_40\_2 $\rightarrow$\\{}wrn\_16\_2}" in (run.root / "tables/table1.tex").read_text()
    assert " $-$1.10 [" in (run.root / "tables/temperature.tex").read_text()
    assert "HSAKD $-$ KD" in (run.root / "tables/equal_teacher.tex").read_text()
    for table in (*(pd.read_csv(path) for path in (run.root / "tables").glob("*.csv")),):
        assert not table.duplicated(["line", "column"]).any()


def test_a_long_latex_table_is_in_parts_that_fit_on_a_page_and_keep_a_pairs_rows_together() -> None:
    rows = [(Cell(text=pair), Cell(text=f"[{i}]")) for pair, num_rows in (("a", 30), ("b", 30), ("c", 100)) for i in range(num_rows)]
    table = Table(name="long_one", title="Table 7: long", columns=("Pair", "a column's long head [in brackets]"), rows=tuple(rows))
    parts = assert_is_latex(table.to_latex(), num_parts=5)
    assert [len(part) for part in parts] == [30, 30, 45, 45, 10]
    assert [{line[0] for line in part} for part in parts] == [{"a"}, {"b"}, {"c"}, {"c"}, {"c"}]
    assert r"\caption{Long (2 of 5)}" in table.to_latex()
    assert not re.search(r"\\\\\s*[\[*]", table.to_latex())  # which LaTeX would take for an argument
    assert table.to_latex().count(r"\label{tab:long-one-2}") == 1


@pytest.mark.skipif(not HAS_LATEX, reason="no LaTeX with booktabs is installed (Debian package: texlive-latex-recommended)")
def test_latex_takes_the_tables_and_finds_none_too_wide(folder: Make, tmp_path: Path) -> None:
    run = folder()
    for run.teacher, run.student in PAIRS:
        run.pair()
    run.studies()
    run.add(run.config(run.student, seed=8, taps=()), "report", "Student", 1.0, status="failed", error=r"50 % of $x_1 & {y} \ ~ ^ # <é>")
    results = load([run.write()])
    tables = [table for module in (table1, search_summary, cost, temperatures) for table in module.build(results, Options())]
    tables.append(
        Table(name="long_one", title="Long", columns=("A", "[b] * (c)"), rows=((Cell(text="a [b]"), Cell(text="[c] " * 20)),) * 50)
    )
    body = "".join(table.to_latex() for table in tables)
    for layout in ("onecolumn", "twocolumn"):
        head = rf"\documentclass[{layout}]{{article}}" + r"\usepackage{booktabs,graphicx}\begin{document}"
        (tmp_path / "paper.tex").write_text(head + "\n" + body + r"\end{document}")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=900, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
        assert not re.search("Overfull|Float too large", done.stdout)


def assert_is_latex(text: str, *, num_parts: int) -> list[list[str]]:
    """Check what LaTeX and booktabs need, float by float; return the lines of each body."""
    assert text.isascii()
    first, *lines = text.splitlines()
    assert first == r"% needs \usepackage{booktabs,graphicx}"
    starts = [i for i, line in enumerate(lines) if line == r"\begin{table*}"]
    ends = [i for i, line in enumerate(lines) if line == r"\end{table*}"]
    assert len(starts) == len(ends) == num_parts
    assert [0, *(end + 1 for end in ends)] == [*starts, len(lines)]
    bodies = []
    for part in (lines[start : end + 1] for start, end in zip(starts, ends, strict=True)):
        text = "\n".join(part)
        rules = [line for line in part if line in (r"\toprule", r"\midrule", r"\bottomrule")]
        assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}}") == text.count(r"\caption{") == text.count(r"\label{") == 1
        assert text.count(r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%") == 1
        columns = next(re.fullmatch(r"\\begin\{tabular\}\{(l[lcr]*)\}", line) for line in part if r"\begin{tabular}" in line)
        assert columns is not None
        start, end = part.index(r"\toprule"), part.index(r"\bottomrule")
        for line in part[start + 1 : end]:
            if line != r"\midrule":
                assert line.endswith(r" \\"), line
                assert len(re.findall(r"(?<!\\)&", line)) == len(columns[1]) - 1, line
        bare = re.sub(r"\\[\\&%$#_{}]", "", re.sub(r"\$(\\(pm|rightarrow|times|geq|sim)|-)\$", "", text))
        assert bare.count("{") == bare.count("}")
        bare = re.sub(r"\\text(backslash|asciitilde|asciicircum)\{\}", "", bare).replace("{!}{%", "")
        assert not re.search(r"[$#^~]|(?<!\\)%", bare)
        body = [re.sub(r"\\[\\_]", "", line) for line in part if not line.startswith((r"\label", r"\begin", r"\end"))]
        assert not any("_" in line for line in body)
        bodies.append(part[part.index(r"\midrule") + 1 : end])
    return bodies


def test_a_teacher_from_a_weights_file_is_named_with_the_rows_that_rest_on_it(folder: Make) -> None:
    run = folder(dataset="digits")
    backbone = replace(run.teachers()[0], optim=OptimConfig(epochs=0, milestones=()), imported_sha256="abcdef012345" + "0" * 52)
    frozen = replace(run.teachers()[1], backbone=backbone)
    run.add(run.config(run.student), "report", "Student", 70.0)
    run.add(run.config(run.student, terms=(("task", 0.1), ("kd", 0.9)), teacher=backbone, taps=()), "report", "KD", 71.0)
    run.add(run.config(run.student, teacher=frozen), "report", "HSAKD", 72.0)
    table = table1.build(load([run.write()]), Options())[0]
    assert [note for note in table.notes if "weights file" in note] == [
        f"{run.teacher} is from a weights file (sha256 abcdef012345), not trained here, in: HSAKD, KD."
    ]


def test_every_output_says_on_what_its_trials_were_trained(folder: Make) -> None:
    run = folder(dataset="fashion_mnist")
    run.pair()
    run.studies()
    assert main([str(run.write())]) == 0
    setting = "fashion_mnist, 60,000 training images, 28x28, 4 epochs"
    tables = run.root / "tables"
    assert f"- Trained on {setting}.\n" in (tables / "table1.md").read_text()
    assert f"<li>Trained on {setting}.</li>" in (tables / "table1.html").read_text()
    assert r"Effect of the temperature. Trained on fashion\_mnist, 60,000" in (tables / "temperature.tex").read_text()
    assert set(pd.read_csv(tables / "loss_terms.csv")["setting"]) == {setting}
    assert f"{setting}; " not in (tables / "search_summary.md").read_text()
    assert "60,000 training images (10 % held out), 28x28, 4 epochs" in (tables / "search_summary.md").read_text()
    report = (tables / "report.html").read_text()
    assert len(re.findall(r'<img alt="[^"]*Trained on fashion_mnist', report)) == report.count("<img") > 0


def test_several_settings_are_counted_and_weights_from_a_file_have_none(folder: Make) -> None:
    run = folder(dataset="digits")
    configs = [run.config(run.student, taps=(), seed=seed) for seed in range(3)]
    configs += [replace(configs[0], optim=replace(configs[0].optim, epochs=epochs)) for epochs in (5, 6, 7, 8)]
    configs.append(replace(configs[0], optim=replace(configs[0].optim, epochs=0), imported_sha256="0" * 64))
    for config in configs:
        run.add(config, "report", "Student", 70.0)
    found = setting_of(load([run.write()]), [config.trial_id for config in configs])
    data = "digits, 1,437 training images, 8x8"
    assert found == f"{data}, 4 epochs (3 trials); {data}, 5 epochs (1 trial); {data}, 6 epochs (1 trial); 2 other settings"


def test_a_csv_names_the_selection_of_its_test_accuracies(folder: Make) -> None:
    run = folder(is_papers=True)
    run.pair()
    run.studies()
    assert main([str(run.write()), "--selection", "best-test"]) == 0
    assert set(pd.read_csv(run.root / "tables/table1.csv")["selection"]) == {"best-test"}
    assert main([str(run.root)]) == 0
    table1 = pd.read_csv(run.root / "tables/table1.csv").dropna(subset="mean")
    is_published = table1["row"].str.contains("published")
    assert (table1["selection"] == is_published.map({True: "best-test", False: "last"})).all()
    assert is_published.any()
    for name, selection in (("equal_teacher", "last"), ("table1_comparison", "best-test"), ("temperature", "last")):
        assert set(pd.read_csv(run.root / f"tables/{name}.csv").dropna(subset="trials")["selection"]) == {selection}
    assert pd.read_csv(run.root / "tables/cost.csv")["selection"].isna().all()


def test_networks_are_counted_at_the_size_that_caption_and_heads_name(folder: Make) -> None:
    run = folder()
    run.pair()
    run.add(run.config("resnet18_imagenet", taps=()), "report", "Student", None, student="resnet18_imagenet")
    small, large = networks.build(load([run.write()]), Options())
    assert (small.title, large.title) == ("Networks at 32 px, 100 classes", "Networks at 224 px, 1000 classes")
    assert "Multiply-adds (M), 32 px, 100 classes" in small.columns
    assert [row[0].text for row in small.rows] == ["wrn_16_2", "wrn_40_2"]
    assert [row[0].text for row in large.rows] == ["resnet18_imagenet"]


@pytest.mark.parametrize("temperature", [3.0, 4.0])
def test_a_note_says_where_the_tuned_row_is_the_papers_setting(folder: Make, temperature: float) -> None:
    run = folder()
    run.pair()
    joint = run.teachers()[2]
    for seed in range(3):
        run.add(run.config(run.student, terms=ALL_TERMS, teacher=joint, seed=seed, temperature=temperature), "report", "HSAKD-tuned", 78.6)
    (table, *_) = table1.build(load([run.write()]), Options())
    note = "HSAKD-tuned of wrn_40_2 → wrn_16_2 is the paper's setting: the same trials as HSAKD*."
    assert (note in table.notes) is (temperature == 3.0)


def test_searches_are_described_in_the_space_files_names(folder: Make) -> None:
    run = folder(dataset="digits")
    teacher = run.teachers(0.1)[2]
    for number, (taps, branch_weights) in enumerate([(None, None), ((2, 3), (0.5, 2.0)), ((1,), None), ((2,), None), (None, None)]):
        terms = (("task", 1.0), ("kl_q", 1.0 + number), ("kl_p", 1.0))
        config = run.config(run.student, validation=0.1, terms=terms, teacher=teacher, taps=taps)
        config = replace(config, objective=replace(config.objective, branch_weights=branch_weights))
        more = {"study": f"{run.teacher}-{run.student}", "study_number": number}
        run.add(config, "search", "search", 70.0 + (number == 4), **more)
        run.add(replace(config, seed=1), "confirm", "confirm", 70.0 + (number == 1), **more)
    results = load([run.write()])
    (study,) = studies_of(results)
    assert study.complete[1].params["branch_weight_2"] == 0.5
    assert study.complete[1].params["branch_weight_3"] == 2.0
    assert study.describe(study.complete[1]) == "branch_weight_2 0.5, branch_weight_3 2, placement 2+3, kl_q 2"
    (table,) = search_summary.build(results, Options())
    row = {column: cell.text for column, cell in zip(table.columns, table.rows[0], strict=True)}
    assert row["Best setting"].endswith("placement 1+2+3, kl_q 5")
    assert row["Confirmed"].startswith("temperature 3, kl_q 2, kl_p 1, placement 2+3: ")
    (drawing,) = importance.draw(results, Options())
    names = {text.get_text() for text in drawing.figure.legends[0].get_texts()}
    assert names == {"kl_q", "placement"}
    assert {name for name, _ in re.findall(r"(\S+) (\d+)%", row["Importance (fANOVA)"])} == names
