"""`analysis/build.py` on real Parquet folders, whole and broken."""

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.aggregate import load
from analysis.build import main
from analysis.compact import compact, read_trial_file

Make = Callable[..., Any]


def rows_of(path: Path) -> pd.DataFrame:
    return pd.read_csv(path)


def cell(path: Path, row: str) -> pd.Series:
    table = rows_of(path)
    return table[table["row"] == row].iloc[0]


def test_table1_shows_mean_sample_std_and_n_and_the_trials_behind_them(folder: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder()
    run.pair()
    assert main([str(run.write())]) == 0
    found = cell(run.root / "tables/table1.csv", "HSAKD")
    assert found["text"] == "77.20 ± 0.10 (3)"
    assert found["std"] == pytest.approx(0.1)
    assert len(found["trials"].split()) == 3
    assert {"table1.md", "table1.tex", "table1.csv", "table1.html"} <= {path.name for path in (run.root / "tables").iterdir()}
    assert "77.20 ± 0.10 (3)" in capsys.readouterr().out


def test_a_folder_of_ablations_only_prints_its_studies(folder: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(dataset="digits")
    for label, top1 in (("task", 70.0), ("task+kl_q", 71.5)):
        run.add(run.config(run.student, seed=0), "report", label, top1, study="loss-terms")
    assert main([str(run.write())]) == 0
    head, *_, last = capsys.readouterr().out.split("\n\n")
    assert head == "**Effect of the loss terms**"
    assert re.match(r"\d+ files in ", last)


def test_published_rows_stand_beside_measured_ones_for_cifar100_only(folder: Make) -> None:
    for dataset in ("cifar100", "digits"):
        run = folder(dataset, dataset=dataset, is_papers=True)
        run.pair()
        assert main([str(run.write())]) == 0
        assert ("HSAKD*, published (best-test)" in set(rows_of(run.root / "tables/table1.csv")["row"])) is (dataset == "cifar100")


def test_an_unfinished_sweep_says_what_is_missing(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair(unfinished=(("KD", 1), *(("HSAKD", seed) for seed in range(3))))
    student = run.config(run.student, seed=9, taps=())
    run.add(student, "report", "Student", 1.0, status="diverged", error="loss is NaN")
    assert main([str(run.write())]) == 0
    assert cell(run.root / "tables/table1.csv", "KD")["text"] == "75.20 ± 0.14 (2/3 seeds)"
    assert cell(run.root / "tables/table1.csv", "HSAKD")["text"] == "waiting"
    assert "(3/4 seeds)" in cell(run.root / "tables/table1.csv", "Student")["text"]
    assert "diverged at step 17: loss is NaN" in (run.root / "tables/table1.md").read_text()


def test_one_seed_prints_no_std(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair(seeds=1)
    assert main([str(run.write())]) == 0
    assert cell(run.root / "tables/table1.csv", "KD")["text"] == "75.10 (1)"


def test_several_folders_are_merged_by_trial_id(folder: Make, tmp_path: Path) -> None:
    first, second = folder("one", dataset="digits"), folder("two", dataset="digits")
    first.pair(unfinished=(("KD", 2),))
    second.pair(unfinished=(("KD", 0),))
    assert main([str(first.write()), str(second.write()), "--out", str(tmp_path / "out")]) == 0
    assert cell(tmp_path / "out/table1.csv", "KD")["n"] == 3


def test_a_broken_file_a_foreign_file_and_an_unknown_schema_are_sentences(folder: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(dataset="digits")
    run.pair()
    run.write()
    ids = sorted(path for path in (run.root / "trials").iterdir())
    ids[0].write_bytes(ids[0].read_bytes()[:100])
    table = pq.read_table(ids[1])
    pq.write_table(table.set_column(table.column_names.index("schema_version"), "schema_version", [[99]]), ids[1])
    pq.write_table(table.drop_columns(["network"]), ids[2])
    assert main([str(run.root)]) == 0
    said = capsys.readouterr().out
    assert "not readable Parquet" in said
    assert "schema_version 99" in said
    assert "no column network" in said
    texts = " ".join(rows_of(run.root / "tables/table1.csv")["text"])
    assert texts.count("2/3 seeds") + texts.count("1/3 seeds") + texts.count("failed: unreadable") + texts.count("0/") >= 1


def spoil_trial(run: Any) -> str:
    path = sorted((run.root / "trials").iterdir())[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return f"run/trials/{path.name} is not readable Parquet (cut or half-written); its trial counts as missing."


def spoil_row(run: Any) -> str:
    path = sorted((run.root / "trials").iterdir())[0]
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("status"), "status", [["finished?"]]), path)
    return f"run/trials/{path.name} has a broken row (its id or its status is not valid); its trial counts as missing."


def spoil_version(run: Any) -> str:
    path = sorted((run.root / "trials").iterdir())[0]
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("schema_version"), "schema_version", [[99]]), path)
    return f"run/trials/{path.name} has schema_version 99; accepted: 1; its trial counts as missing."


def spoil_epochs(run: Any) -> str:
    config = run.config(run.student, seed=0, taps=())
    path = run.root / "epochs" / f"{config.trial_id}.parquet"
    path.write_bytes(path.read_bytes()[:50])
    return f"run/epochs/{path.name} is not readable Parquet (cut or half-written); its curve is left out."


def spoil_plan(run: Any) -> str:
    path = run.root / "plan.parquet"
    path.write_bytes(path.read_bytes()[:200])
    return "run/plan.parquet can't be used"


def spoil_plan_version(run: Any) -> str:
    path = run.root / "plan.parquet"
    table = pq.read_table(path)
    versions = [[7] * table.num_rows]
    pq.write_table(table.set_column(table.column_names.index("schema_version"), "schema_version", versions), path)
    return "run/plan.parquet can't be used: plan.parquet has schema_version 7; accepted: 1."


def set_column(path: Path, name: str, value: Any) -> None:
    table = pq.read_table(path)
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array([value], table.schema.field(place).type)), path)


def spoil_configuration(run: Any) -> str:
    path = sorted((run.root / "trials").iterdir())[0]
    set_column(path, "config_json", '{"objective": 7}')
    return f"run/trials/{path.name} has a broken row (its configuration can't be read); its trial counts as missing."


def spoil_accuracy(run: Any) -> str:
    path = sorted((run.root / "trials").iterdir())[0]
    set_column(path, "top1_last", float("inf"))
    return f"run/trials/{path.name} has a broken row (top1_last is inf; accepted: 0 to 100); its trial counts as missing."


def empty_accuracy(run: Any) -> str:
    set_column(run.root / "trials" / f"{run.config(run.student, seed=0, taps=()).trial_id}.parquet", "top1_last", None)
    return "Student, wrn_40_2 → wrn_16_2: 1 of 3 complete trials have no number for the selection 'last'."


def leave_a_link_to_nothing(run: Any) -> str:
    path = sorted((run.root / "trials").iterdir())[0]
    path.unlink()
    path.symlink_to(run.root / "gone")
    return f"run/trials/{path.name} is not readable Parquet (cut or half-written); its trial counts as missing."


def add_a_foreign_file(run: Any) -> str:
    pq.write_table(pa.table({"a": [1, 2]}), run.root / "trials" / "foreign.parquet")
    return "run/trials/foreign.parquet has no column config_json; it is not a trial's file; its trial counts as missing."


def swap_epochs(run: Any) -> str:
    first, second = sorted((run.root / "epochs").iterdir())[:2]
    shutil.copy(second, first)
    return f"run/epochs/{first.name} has the epochs of another trial; its curve is left out."


def spoil_epochs_version(run: Any) -> str:
    path = sorted((run.root / "epochs").iterdir())[0]
    pq.write_table(pq.read_table(path).replace_schema_metadata({"schema_version": "9"}), path)
    return f"run/epochs/{path.name} has schema_version 9; accepted: 1; its curve is left out."


def lose_epochs(run: Any) -> str:
    path = sorted((run.root / "epochs").iterdir())[0]
    path.unlink()
    return f"Without epochs that can be read, so in no curve: 1 trial ({path.stem})."


def spoil_plan_line(run: Any) -> str:
    path = run.root / "plan.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("method")
    methods = [None, *table["method"].to_pylist()[1:]]
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(methods, pa.string())), path)
    return "run/plan.parquet has 1 line with an empty field; it is left out."


def forget_a_line(run: Any) -> str:
    path = run.root / "plan.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, table.num_rows - 1), path)
    return f"In no line of the plan (another command planned it), so in no table: 1 trial ({table['trial_id'][-1].as_py()})."


def spoil_index(run: Any) -> str:
    compact(run.root)
    (path,) = run.root.glob("compacted/*/index.parquet")
    pq.write_table(pa.table({"a": [1]}), path)
    return f"run/compacted/{path.parent.name} is not readable (index.parquet is not an index); the small files are read instead."


def spoil_part(run: Any) -> str:
    compact(run.root)
    path = sorted(run.root.glob("compacted/*/trials/*.parquet"))[0]
    pq.write_table(pa.table({"a": [1]}), path)
    return f"run/compacted/{path.name} is not readable; its trials are read from their small files."


def lose_part(run: Any) -> str:
    compact(run.root)
    path = sorted(run.root.glob("compacted/*/trials/*.parquet"))[0]
    path.unlink()
    return f"run/compacted/{path.name} is not readable; its trials are read from their small files."


def spoil_plan_configuration(run: Any) -> str:
    path = run.root / "plan.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("config_json")
    texts = pa.array(['{"data": 7, "teacher": 8, "backbone": 9}'] * table.num_rows, pa.string())
    pq.write_table(table.set_column(place, table.schema.field(place), texts), path)
    shutil.rmtree(run.root / "trials")
    return "Learning curves: no complete trial has epochs with test accuracy."


def spoil_epochs_of_a_compacted_trial(run: Any) -> str:
    compact(run.root)
    path = sorted((run.root / "epochs").iterdir())[0]
    path.write_bytes(path.read_bytes()[:50])
    part = next(run.root.glob(f"compacted/*/epochs/{path.stem[0]}.parquet"))
    part.write_bytes(b"PAR1")
    return f"run/epochs/{path.name} is not readable Parquet (cut or half-written); its curve is left out."


def leave_nothing(run: Any) -> str:
    shutil.rmtree(run.root)
    run.root.mkdir()
    return "run holds no plan and no trials."


SPOILERS = (spoil_trial, spoil_row, spoil_version, spoil_configuration, spoil_accuracy, empty_accuracy, leave_a_link_to_nothing)
SPOILERS += (add_a_foreign_file, spoil_epochs, swap_epochs, spoil_epochs_version, lose_epochs, spoil_plan, spoil_plan_version)
SPOILERS += (spoil_plan_line, spoil_plan_configuration, forget_a_line, spoil_index, spoil_part, lose_part, leave_nothing)
SPOILERS += (spoil_epochs_of_a_compacted_trial,)


@pytest.mark.parametrize("spoil", SPOILERS)
def test_what_cannot_be_read_is_a_sentence_in_the_output_and_in_the_report(
    folder: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], str]
) -> None:
    monkeypatch.setattr("analysis.build.rendered", lambda *_: b"<svg/>")  # pictures are slow and not what is read here
    run = folder(dataset="digits")
    run.pair()
    run.write()
    sentence = spoil(run)
    assert main([str(run.root)]) == 0
    assert sentence in capsys.readouterr().out
    assert html.escape(sentence) in (run.root / "tables/report.html").read_text()


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"PAR1"), Path.unlink])
def test_what_only_a_damaged_compacted_file_had_is_unreadable_and_not_waiting(folder: Make, spoil: Callable[[Path], Any]) -> None:
    run = folder(dataset="digits")
    run.pair()
    compact(run.write())
    shutil.rmtree(run.root / "trials")
    path = sorted(run.root.glob("compacted/*/trials/*.parquet"))[0]
    while not (lost := pq.read_table(path)["trial_id"].to_pylist()):
        path = path.with_name(f"{int(path.stem, 16) + 1:x}.parquet")
    spoil(path)
    results = load([run.root])
    assert set(results.entries.loc[results.entries["status"] == "unreadable", "trial_id"]) == set(lost)
    assert not (results.entries["status"] == "waiting").any()
    (sentence,) = results.notes
    assert sentence.startswith(f"run/compacted/{path.name} is not readable; its trials are read from their small files; without one, so ")
    assert all(trial_id in sentence for trial_id in lost[:5])


def test_of_a_damaged_compacted_index_what_has_no_small_file_is_unreadable_and_not_waiting(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair(unfinished=(("KD", 2),))
    compact(run.write())
    kept, *lost = sorted(path.stem for path in (run.root / "trials").iterdir())
    for trial_id in lost:
        (run.root / "trials" / f"{trial_id}.parquet").unlink()
    (index,) = run.root.glob("compacted/*/index.parquet")
    index.write_bytes(b"PAR1")
    entries = load([run.root]).entries
    assert set(entries.loc[entries["status"] == "unreadable", "trial_id"]) == set(lost)
    assert set(entries.loc[entries["status"] == "complete", "trial_id"]) == {kept}
    assert list(entries.loc[entries["status"] == "waiting", "method"]) == ["KD"]


def test_epochs_that_a_compaction_has_are_in_the_curve_though_their_small_file_is_cut(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair()
    compact(run.write())
    for path in (run.root / "epochs").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    results = load([run.root])
    assert len(results.epochs(list(results.trials["trial_id"]), ["top1_test"])) == 4 * len(results.trials)
    assert results.notes == []


BAD_VALUES = (
    ("objective", "terms", [["task", 1.0], ["kl_q", "x"]]),
    ("objective", "temperature", "warm"),
    ("objective", "branch_weights", ["a", 1.0, 1.0]),
    ("data", "image_size", "x"),
    ("data", "validation_fraction", "x"),
    ("data", "few_shot_ratio", None),
    ("data", "dataset", 7),
    ("optim", "epochs", float("nan")),
    ("", "num_rotations", "x"),
    ("", "taps", ["c1"]),
)


def with_value(config_json: str, place: tuple[str, str, Any]) -> str:
    config = json.loads(config_json)
    section, name, value = place
    (config[section] if section else config)[name] = value
    return json.dumps(config)


def test_a_configuration_of_other_types_is_a_sentence_that_names_its_file(folder: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(dataset="digits")
    run.pair()
    run.studies(seeds=2)
    run.write()
    students = [path for path in sorted((run.root / "trials").iterdir()) if pq.read_table(path)["role"][0].as_py() == "student"]
    spoiled = students[:: len(students) // len(BAD_VALUES)][: len(BAD_VALUES)]
    for path, place in zip(spoiled, BAD_VALUES, strict=True):
        set_column(path, "config_json", with_value(pq.read_table(path)["config_json"][0].as_py(), place))
    assert main([str(run.root)]) == 0
    said = capsys.readouterr().out
    for path, place in zip(spoiled, BAD_VALUES, strict=True):
        sentence = f"run/trials/{path.name} has a broken row (its configuration can't be read); its trial counts as missing."
        assert sentence in said, place
    entries = load([run.root]).entries
    assert set(entries.loc[entries["status"] != "complete", "trial_id"]) - {path.stem for path in spoiled} == set(
        entries.loc[entries["status"] == "pruned", "trial_id"]
    )


def test_a_plan_with_configurations_of_other_types_is_built(folder: Make) -> None:
    run = folder(dataset="digits")
    run.studies(seeds=1)
    run.plan = [replace(entry, config_json=with_value(entry.config_json, BAD_VALUES[i % 10])) for i, entry in enumerate(run.plan)]
    run.write()
    shutil.rmtree(run.root / "trials")
    assert main([str(run.root)]) == 0


def test_a_selection_without_any_number_has_no_chart_and_nothing_of_the_build_before_stays(
    folder: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder(dataset="digits")
    run.studies(seeds=1)
    assert main([str(run.write())]) == 0
    out = run.root / "tables"
    before = {path.name for path in out.iterdir()}
    assert {"figure_loss_terms.png", "figure_temperature.svg"} < before
    (out / "figure_of_mine.png").write_bytes(b"mine")
    assert main([str(run.root), "--selection", "val"]) == 0
    assert "- Figure loss-terms: no arm of the study has a number for the selection 'val' yet." in capsys.readouterr().out
    after = {path.name for path in out.iterdir()}
    assert "loss_terms.md" in after
    assert not any(name.startswith(("figure_loss", "figure_aux", "figure_temp")) for name in after)
    assert "figure_of_mine.png" in after
    assert set(json.loads((out / "written.json").read_text())) == after - {"figure_of_mine.png", "written.json"}
    (out / "written.json").write_text(json.dumps(["../plan.parquet", 7, "gone"]))
    assert main([str(run.root)]) == 0
    assert (run.root / "plan.parquet").exists()
    assert {path.name for path in out.iterdir()} == before | {"figure_of_mine.png"}


def test_a_study_with_one_trial_is_a_sentence_in_the_output_and_in_the_report(folder: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(dataset="digits")
    run.add(run.config(run.student, seed=0, validation=0.1), "search", "search", 70.0, study="a-b", study_number=0)
    assert main([str(run.write())]) == 0
    sentence = "Importance: no study has four complete trials that vary a parameter."
    assert sentence in capsys.readouterr().out
    assert sentence in (run.root / "tables/report.html").read_text()
    assert "too few trials" in (run.root / "tables/report.html").read_text()


def test_bad_input_is_one_sentence_and_status_2(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "analysis/build.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "none")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_trials_of_different_settings_are_refused_unless_forced(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair()
    run.epochs = 5
    run.add(run.config(run.student, seed=7, taps=()), "report", "Student", 90.0)
    run.write()
    assert main([str(run.root)]) == 0
    assert cell(run.root / "tables/table1.csv", "Student")["text"] == "refused"
    assert main([str(run.root), "--force"]) == 0
    assert cell(run.root / "tables/table1.csv", "Student")["text"].endswith("!")


def test_lines_without_a_trial_id_wait_until_another_folder_knows_them(folder: Make, tmp_path: Path) -> None:
    first, second = folder("one", dataset="digits"), folder("two", dataset="digits")
    first.pair()
    first.await_tuned()
    second.pair()
    for seed in range(3):
        config = second.config(second.student, seed=seed, temperature=7.0, teacher=second.teachers()[2])
        second.add(config, "report", "HSAKD-tuned", 80.0)
    assert main([str(first.write())]) == 0
    assert cell(first.root / "tables/table1.csv", "HSAKD-tuned")["text"] == "waiting"
    assert "3 of 3 trials not finished yet" in (first.root / "tables/table1.md").read_text()
    assert main([str(first.root), str(second.write()), "--out", str(tmp_path / "out")]) == 0
    assert cell(tmp_path / "out/table1.csv", "HSAKD-tuned")["text"] == "80.00 ± 0.00 (3)"


def test_a_flipped_bit_in_a_number_is_not_read_as_another(folder: Make) -> None:
    run = folder(dataset="digits")
    run.pair()
    path = next((run.write() / "trials").iterdir())
    content, expected = path.read_bytes(), read_trial_file(path, ["top1_last"])
    with pq.ParquetFile(path) as file:
        columns = [file.metadata.row_group(0).column(index) for index in range(file.metadata.num_columns)]
    chunk = next(column for column in columns if column.path_in_schema == "top1_last")
    num_refused = 0
    for place in range(chunk.dictionary_page_offset, chunk.dictionary_page_offset + chunk.total_compressed_size):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            assert read_trial_file(path, ["top1_last"]) == expected
        except ValueError:
            num_refused += 1
    assert num_refused > 20
