"""What tables refuse, mark and count: columns of unlike rows, confirmations, one setting for all pairs, costs, LaTeX."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.aggregate import load
from analysis.build import main
from analysis.one_setting import one_setting
from analysis.search import studies_of

Make = Callable[..., Any]


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
    assert row == ["75.50 ± 0.71 (2)", "+2.00 [+2.00, +2.00]"]


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
    run = folder()
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


def test_the_cost_of_the_search_is_in_the_notes_with_its_pruned_trials(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair()
    run.studies()
    assert main([str(run.write())]) == 0
    note = next(line for line in (run.root / "tables/table1.md").read_text().splitlines() if "HSAKD-tuned was chosen" in line)
    assert re.search(r"by \d+ search and confirmation trials \(\d+ complete, 1 pruned\), 0\.\d\d hours", note)
    hours = cell(run.root / "tables/search_summary.csv", "wrn_40_2-wrn_16_2", "Hours")
    ids = str(hours["trials"]).split()
    assert hours["mean"] == pytest.approx(len(ids) * 40 / 3600)


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
    assert "Figure temperature: the folder has no complete trial of the study." in said
    assert "waiting" in (run.root / "tables/temperature.md").read_text()
    assert not re.search("loss-terms|transfer|ImageNet|Search:", said)


def test_few_shot_stands_beside_table_5(folder: Make) -> None:
    run = folder(teacher="resnet56", student="resnet20")
    _, _, teacher = run.teachers()
    for seed in range(3):
        config = run.config(run.student, few_shot_ratio=0.25, teacher=teacher, seed=seed, terms=(("task", 1.0), ("kl_q", 1.0)))
        run.add(config, "report", "HSAKD* 25%", 68.0, study="few-shot")
    assert main([str(run.write())]) == 0
    assert cell(run.root / "tables/few_shot.csv", "HSAKD* 25%", "published")["text"] == "68.50 ± 0.24"
    assert cell(run.root / "tables/few_shot.csv", "CRD 50%", "published")["text"] == "69.91 ± 0.20"


def test_every_latex_table_is_strict_booktabs(folder: Make) -> None:
    run = folder()
    run.pair()
    run.studies()
    run.add(run.config(run.student, seed=8, taps=()), "report", "Student", 1.0, status="failed", error=r"50 % of $x_1 & {y} \ ~ ^ # <é>")
    assert main([str(run.write())]) == 0
    files = sorted((run.root / "tables").glob("*.tex"))
    assert len(files) >= 9
    for path in files:
        lines = path.read_text().splitlines()
        text = "\n".join(lines)
        assert text.isascii(), path.name
        assert lines[0] == r"\begin{table}", path.name
        assert lines[-1] == r"\end{table}", path.name
        rules = [line for line in lines if line in (r"\toprule", r"\midrule", r"\bottomrule")]
        assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\caption{") == text.count(r"\label{") == 1
        columns = next(re.fullmatch(r"\\begin\{tabular\}\{(l[lcr]*)\}", line) for line in lines if r"\begin{tabular}" in line)
        assert columns is not None
        start, end = lines.index(r"\toprule"), lines.index(r"\bottomrule")
        for line in lines[start + 1 : end]:
            if line != r"\midrule":
                assert line.endswith(r" \\"), line
                assert len(re.findall(r"(?<!\\)&", line)) == len(columns[1]) - 1, line
        bare = re.sub(r"\\[\\&%$#_{}]", "", re.sub(r"\$\\(pm|rightarrow|times|geq|sim)\$", "", text))
        assert bare.count("{") == bare.count("}")
        assert not re.search(r"[$#^~]|(?<!\\)%", re.sub(r"\\text(backslash|asciitilde|asciicircum)\{\}", "", bare)), path.name
        body = [re.sub(r"\\[\\_]", "", line) for line in lines if not line.startswith((r"\label", r"\begin", r"\end"))]
        assert not any("_" in line for line in body), path.name
