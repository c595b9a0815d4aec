"""Build every table, figure and the report from result folders: `python analysis/build.py RUNS... [--out DIR]`."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

os.environ.setdefault("MPLBACKEND", "Agg")

import analysis.figures
import analysis.tables
from analysis.aggregate import SELECTIONS, Results, load
from analysis.artefact import Drawing, NotAsked, NothingToShow, Options, discover
from analysis.drawing import rendered, with_setting
from analysis.report import render
from analysis.setting import setting_of
from analysis.table import Table
from hsakd.command_line import run_command
from hsakd.files import replacing

T = TypeVar("T")
ONLY_IN_FILES = (
    "cost",
    "equal_teacher",
    "networks",
    "networks_imagenet",
    "over_student",
    "search_summary",
)  # what is printed is the accuracies: Table 1, 2 and the studies
WRITTEN = "written.json"  # in the folder of the build: the names of its files, so that the next build can tell its own from others


def main(arguments: list[str] | None = None) -> int:
    """Build everything; exit status 2 with one sentence on bad input."""
    parser = argparse.ArgumentParser(description="Tables, figures and a report from result folders.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="result folders; several are merged by trial id")
    parser.add_argument("--out", type=Path, default=None, help="where to write (default: tables/ in the first result folder)")
    parser.add_argument(
        "--selection",
        choices=sorted(SELECTIONS),
        default="last",
        help="which test accuracy the tables show: of the last epoch (default), the best test epoch, or the best validation epoch (val: "
        "of trials with a held-out part only, which are those of search and confirmation)",
    )
    parser.add_argument("--force", action="store_true", help="average trials of different settings (marked) instead of refusing them")
    parsed = parser.parse_args(arguments)
    out = parsed.out or parsed.runs[0] / "tables"
    try:
        results = load(parsed.runs)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--out is {str(out)!r}, which can't be written ({error.strerror}); accepted: a folder") from error
        names, tables, notes = build(results, Options(selection=parsed.selection, force=parsed.force), out)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for table in tables:
        if table.name not in ONLY_IN_FILES:
            print(table.to_markdown())
    if notes:
        print("".join(f"- {note}\n" for note in notes))
    print(f"{len(names)} files in {out}: open {out / 'report.html'}; tables as md, tex, csv and html; figures as svg and png.")
    return 0


def build(results: Results, options: Options, out: Path) -> tuple[list[str], list[Table], list[str]]:
    """Write all artefacts to `out`; return the file names, the tables (Table 1 first) and sentences on what is left out.

    They take the place of what the last build wrote there: its other files are deleted, nothing else is.
    """
    notes: list[str] = []
    tables = sorted(
        _collect(analysis.tables, lambda module: module.build(results, options), notes), key=lambda table: table.name != "table1"
    )
    drawings: list[Drawing] = _collect(analysis.figures, lambda module: module.draw(results, options), notes)
    tables = [replace(table, setting=setting_of(results, table.all_trial_ids)) for table in tables]
    drawings = [with_setting(drawing, setting_of(results, drawing.trial_ids)) for drawing in drawings]
    files: dict[str, bytes] = {}
    for table in tables:
        texts = {"md": table.to_markdown(), "tex": table.to_latex(), "csv": table.to_csv(), "html": table.to_html()}
        files |= {f"{table.name}.{suffix}": text.encode() for suffix, text in texts.items()}
    for drawing in drawings:
        files |= {f"figure_{drawing.name}.{kind}": rendered(drawing.figure, kind) for kind in ("svg", "png")}
    notes = [*dict.fromkeys([*results.notes, *notes])]
    with_svg = [(drawing, files[f"figure_{drawing.name}.svg"]) for drawing in drawings]
    files["report.html"] = render(results, tables, with_svg, notes).encode()
    before = _written(out)
    _write(out / WRITTEN, json.dumps(sorted({*before, *files})).encode())  # both, until the old ones are gone: a build may be killed
    for name, content in files.items():
        _write(out / name, content)
    for name in before - set(files):
        (out / name).unlink(missing_ok=True)
    _write(out / WRITTEN, json.dumps(sorted(files)).encode())
    return sorted(files), tables, notes


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _written(out: Path) -> set[str]:
    """Return the files that the last build left in `out`; what is not a list of plain names counts as none."""
    try:
        names = json.loads((out / WRITTEN).read_text())
    except (OSError, ValueError):
        return set()
    found = {name for name in names if isinstance(name, str)} if isinstance(names, list) else set[str]()
    return {name for name in found if name == Path(name).name and (out / name).is_file()}


def _collect(package: ModuleType, make: Callable[[Any], list[T]], notes: list[str]) -> list[T]:
    made: list[T] = []
    for module in discover(package):
        try:
            made += make(module)
        except NotAsked:
            continue
        except NothingToShow as reason:
            notes.append(str(reason))
    return made


if __name__ == "__main__":
    run_command(main)
