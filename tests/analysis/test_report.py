"""The report, opened in a real browser; figures, studies and compaction on real Parquet folders."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, browser
from filelock import FileLock
from scipy import stats

from analysis.aggregate import load
from analysis.build import main
from analysis.compact import compact
from analysis.compact import main as compact_main
from analysis.inference import Summary, holm, paired, summarize, verdict, welch

Make = Callable[..., Any]
ALL_TERMS = (("task", 1.0), ("kl_q", 1.0), ("kl_p", 1.0))
STUDIES = ("loss_terms", "aux_placement", "temperature", "loss_weights")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, make_folder: Make) -> Path:
    """A folder with Table 1's pair, every study and a search, one text of it hostile; built once."""
    run = make_folder(tmp_path_factory.mktemp("built") / "run", is_papers=True)
    run.pair()
    run.studies()
    run.add(run.config(run.student, seed=8, taps=()), "report", "Student", 1.0, status="failed", error="<script>alert('x')</script>")
    assert main([str(run.write())]) == 0
    return Path(run.root)


@pytest.fixture
def whole(built: Path, tmp_path: Path) -> Path:
    """A copy of `built` to spoil."""
    return Path(shutil.copytree(built, tmp_path / "run"))


def test_the_same_results_give_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    assert main([str(whole), "--out", str(tmp_path / "again")]) == 0
    first, again = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (whole / "tables", tmp_path / "again"))
    assert first == again


def test_every_study_has_a_table_and_every_figure_an_svg_and_a_png(whole: Path) -> None:
    names = {path.name for path in (whole / "tables").iterdir()}
    for study in (*STUDIES, "few_shot", "search_summary", "equal_teacher", "cost", "table1_comparison"):
        assert {f"{study}.{suffix}" for suffix in ("md", "tex", "csv", "html")} <= names
    for figure in (*STUDIES, "learning_curves", "placement_lattice", "importance", "pareto"):
        assert {f"figure_{figure}.svg", f"figure_{figure}.png"} <= names


def test_hostile_text_in_a_record_is_text_in_the_report(whole: Path) -> None:
    report = (whole / "tables/report.html").read_text()
    assert "<script>alert" not in report
    assert "&lt;script&gt;alert" in report


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (Debian package: chromium)")
def test_the_report_in_a_browser_has_no_errors_sorts_links_and_fits_a_phone_in_light_and_dark(built: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as page:
        page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        page.resize(1200, 900)
        page.open((built / "tables/report.html").resolve().as_uri())
        page.wait_for("document.body.dataset.figures")
        found = page.evaluate("({...document.body.dataset})")
        assert found == {"figures": "8", "broken": "0", "dangling": "0"}
        column = "[...document.querySelectorAll('#table-temperature tbody tr')].map(row => Number(row.cells[1].dataset.sort))"
        before = page.evaluate(column)
        page.click("#table-temperature thead th:nth-child(2) button")
        assert page.evaluate(column) == sorted(before) != before
        page.click("#table-temperature thead th:nth-child(2) button")
        assert page.evaluate(column) == sorted(before, reverse=True)
        page.evaluate(
            "document.querySelector('#table-table1 tbody').append(...['10', '-', '9', 'b 10', 'b 9'].map(text => {"
            " const row = document.querySelector('#table-table1 tbody tr').cloneNode(true);"
            " row.cells[1].removeAttribute('data-sort'); row.cells[1].textContent = text; row.className = 'added'; return row; }))"
        )
        page.click("#table-table1 thead th:nth-child(2) button")
        assert page.evaluate("[...document.querySelectorAll('tr.added')].map(row => row.cells[1].textContent)") == [
            "9",
            "10",
            "-",
            "b 9",
            "b 10",
        ]
        page.click("#table-temperature tbody td a")
        page.wait_for("location.hash.startsWith('#trial-') && document.querySelector(location.hash).open")
        opened = page.evaluate("document.querySelector(location.hash).innerText")
        for part in ("seed", "versions", "torch 2.9", '"temperature"', "epoch 3: loss"):
            assert part.lower() in opened.lower(), part
        colours = []
        for scheme in ("light", "dark"):
            page.prefer(scheme)
            colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert colours == ["rgb(255, 255, 255)", "rgb(22, 24, 27)"]
        page.resize(390, 844, is_phone=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("Math.max(...[...document.images].map(image => image.getBoundingClientRect().right))") <= 390
        assert page.errors == []


def test_compacted_and_small_files_read_the_same(whole: Path) -> None:
    before = load([whole])
    assert compact(whole)[0] == len(before.trials)
    after = load([whole])
    assert before.trials.equals(after.trials)
    some = before.trials["trial_id"].to_list()[:5]
    curves = before.epochs(some, ["top1_test"])
    for trial_id in some:
        (whole / "epochs" / f"{trial_id}.parquet").unlink()
    assert np.array_equal(curves["top1_test"], after.epochs(some, ["top1_test"])["top1_test"])


def test_a_trial_redone_after_compaction_is_read_from_its_new_file_and_once(folder: Make) -> None:
    run = folder()
    run.pair()
    compact(run.write())
    config = run.config(run.student, seed=0, taps=())
    run.finish(config, 12.5)
    trials = load([run.root]).trials
    assert trials.loc[trials["trial_id"] == config.trial_id, "top1_last"].to_list() == [12.5]


READER = """
import sys, time
from pathlib import Path
from analysis.aggregate import load
run, expected, stop = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
reads = 0
Path(sys.argv[4]).touch()
while not stop.exists() or reads == 0:
    results = load([run])
    found = results.trials["trial_id"]
    assert len(found) == expected and found.is_unique, (len(found), results.notes)
    curves = results.epochs(found.to_list()[:20], ["top1_test"])
    assert len(curves) == 20 * 4, len(curves)
    assert not results.notes, results.notes
    reads += 1
print(reads)
"""


def test_a_reader_in_another_process_sees_every_trial_once_while_compactions_run(folder: Make, tmp_path: Path) -> None:
    run = folder()
    run.pair()
    run.studies()
    expected, stop, ready = len(list((run.write() / "trials").iterdir())), tmp_path / "stop", tmp_path / "ready"
    command = [sys.executable, "-c", READER, str(run.root), str(expected), str(stop), str(ready)]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    compactions_while_read = 0
    while compactions_while_read < 5 and reader.poll() is None:
        is_reading = ready.exists()
        compact(run.root)
        compactions_while_read += is_reading
    stop.touch()
    output, errors = reader.communicate(timeout=900)
    assert reader.returncode == 0, errors
    assert int(output) >= 1


def test_a_second_compaction_waits_for_the_first_to_end(folder: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder()
    run.pair()
    compact(run.write())
    with FileLock(run.root / "compacted" / ".lock"):
        assert compact_main([str(run.root)]) == 2
    assert "in which another compaction is at work; accepted: wait for it to end" in capsys.readouterr().err
    assert compact_main([str(run.root)]) == 0


def test_a_compaction_that_dies_before_its_rename_changes_nothing(folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder()
    run.pair()
    before = load([run.write()]).trials

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.compact.replacing", die)
    with pytest.raises(KeyboardInterrupt):
        compact(run.root)
    assert load([run.root]).trials.equals(before)


def test_a_broken_generation_falls_back_on_the_small_files(folder: Make) -> None:
    run = folder()
    run.pair()
    before = load([run.write()]).trials
    compact(run.root)
    for path in run.root.glob("compacted/*/trials/*.parquet"):
        path.write_bytes(b"PAR1")
    results = load([run.root])
    assert results.trials.equals(before)
    assert "not readable" in results.notes[0]


def test_a_study_with_one_trial_builds(folder: Make) -> None:
    run = folder()
    run.add(run.config(run.student, seed=0), "report", "task", 70.0, study="loss-terms")
    run.add(run.config(run.student, seed=0, validation=0.1), "search", "HSAKD-tuned", 70.0, study="a-b", study_number=0)
    assert main([str(run.write())]) == 0
    assert "70.00 (1)" in (run.root / "tables/loss_terms.md").read_text()
    assert "too few trials" in (run.root / "tables/search_summary.md").read_text()


def test_welch_from_summaries_is_welch_from_the_values() -> None:
    left, right = [77.1, 77.5, 76.8, 77.0], [76.0, 76.9, 76.4]
    expected = stats.ttest_ind(left, right, equal_var=False)
    found = welch(summarize(left), summarize(right))
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_one_value_has_no_std_and_no_interval() -> None:
    assert summarize([3.0]).std is None
    assert welch(summarize([3.0]), Summary(mean=2.0, std=0.1, n=3)).low is None


def test_paired_differences_take_the_bootstrap_from_ten_pairs() -> None:
    values = np.random.default_rng(0).normal(1, 1, 10).tolist()
    assert paired(values[:9], [0.0] * 9).method == "paired t"
    assert paired(values, [0.0] * 10).method.startswith("paired bootstrap")
    assert paired(values, [0.0] * 10) == paired(values, [0.0] * 10)


def test_verdicts_and_holm() -> None:
    narrow = Summary(mean=70.0, std=0.05, n=3)
    assert verdict(welch(narrow, Summary(mean=70.1, std=0.05, n=3))) == "reproduced"
    assert verdict(welch(narrow, Summary(mean=75.0, std=0.05, n=3))) == "below"
    assert verdict(welch(narrow, Summary(mean=65.0, std=0.05, n=3))) == "above"
    assert verdict(welch(Summary(mean=70.0, std=5.0, n=3), narrow)) == "inconclusive"
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]


def test_a_trials_entry_names_its_rows_links_to_its_teacher_and_rounds(folder: Make) -> None:
    run = folder()
    run.pair()
    joint = run.teachers()[2]
    config = run.config(run.student, terms=ALL_TERMS, teacher=joint, seed=0)
    run.add(config, "report", "task+kl_q+kl_p", 77.21000000000001, study="loss-terms")
    assert main([str(run.write())]) == 0
    report = (run.root / "tables/report.html").read_text()
    (entry,) = re.findall(rf'<details id="trial-{config.trial_id}">.*?</details>', report, re.DOTALL)
    assert "HSAKD*, wrn_40_2 → wrn_16_2 (report); task+kl_q+kl_p, wrn_40_2 → wrn_16_2 (report, loss-terms)" in entry
    assert f'<a href="#trial-{joint.trial_id}">{joint.trial_id}</a>' in entry
    assert f'<details id="trial-{joint.trial_id}">' in report
    assert '<th scope="row">top1_last</th><td>77.21</td>' in entry
