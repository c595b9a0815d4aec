"""A table of numbers that know their trials, written as Markdown, LaTeX (booktabs), CSV or HTML."""

import csv
import html
import io
import itertools
import re
import textwrap
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

_LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "\u2212": "$-$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
_LATEX |= {character: "\\" + character for character in "&%$#_{}"}
CSV_NUMBERS = ("mean", "std", "n", "low", "high", "p")
CSV_COLUMNS = ("line", "row", "column", "text", *CSV_NUMBERS, "selection", "trials", "setting")
MAX_LINKS = 24
LATEX_LINES = 45  # of a page
HEAD_WIDTH, ROW_WIDTH, CELL_WIDTH = 16, 32, 24  # letters in a line of LaTeX's heads, rows' names and cells ("+1.20 [+0.80, +1.60] (3)")
_AT_MOST_TEXT_WIDTH = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
_MINUS = re.compile(r"(?<!\w)-(?=\d)|(?<= )-(?= )")  # of "-0.5" and of "HSAKD - KD"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What stands in one place: its text, and, for a measured number, mean, std (ddof=1), n and the trials it comes from.

    A difference has the ends of its 95 % interval and its p-value, too. `selection` is given where it is not the table's.
    """

    text: str
    mean: float | None = None
    std: float | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    trial_ids: tuple[str, ...] = ()
    selection: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A titled table; the first cell of a row names it; `notes` stand below and say what is missing.

    `setting` says on what its trials were trained: the first note, in LaTeX in the caption, in the CSV a column. `selection`
    is the epoch that its test accuracies are of, a key of `aggregate.SELECTIONS`; empty where it shows none.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    selection: str = ""
    setting: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.name
        assert len(set(self.columns)) == len(self.columns), self.name

    @property
    def all_trial_ids(self) -> set[str]:
        """The trials behind the cells."""
        return {trial_id for row in self.rows for cell in row for trial_id in cell.trial_ids}

    @property
    def trial_ids(self) -> set[str]:
        """The trials that the cells link to: of a cell with many, the first; the CSV names all."""
        return {trial_id for row in self.rows for cell in row for trial_id in cell.trial_ids[:MAX_LINKS]}

    @property
    def _notes(self) -> list[str]:
        return [*([f"Trained on {self.setting}."] if self.setting else []), *self.notes]

    def to_markdown(self) -> str:
        lines = [f"**{_markdown(self.title)}**", "", _pipes(self.columns), "|" + " --- |" * len(self.columns)]
        lines += [_pipes([cell.text for cell in row]) for row in self.rows]
        lines += ["", *(f"- {_markdown(note)}" for note in self._notes)] if self._notes else []
        return "\n".join(lines) + "\n"

    def to_latex(self) -> str:
        """Return a booktabs `table*`, or several of a long one, no wider than the text; the first line says what the preamble needs."""
        parts = self._parts()
        lines = [r"% needs \usepackage{booktabs,graphicx}"]
        for number, rows in enumerate(parts, 1):
            title = re.sub(r"^Table \d+: (.)", lambda found: found[1].upper(), self.title)  # LaTeX has numbers of its own
            title += f" ({number} of {len(parts)})" if len(parts) > 1 else ""
            title += f". Trained on {self.setting}." if self.setting else ""
            label = self.name.replace("_", "-") + (f"-{number}" if len(parts) > 1 else "")
            lines += [r"\begin{table*}", r"\centering", rf"\caption{{{latex(title)}}}", rf"\label{{tab:{label}}}"]
            lines += [r"\smallskip\footnotesize\setlength{\tabcolsep}{4pt}", _AT_MOST_TEXT_WIDTH]
            lines += [rf"\begin{{tabular}}{{l{'c' * (len(self.columns) - 1)}}}", r"\toprule"]
            lines += [_latex_row(_stacked(column, HEAD_WIDTH) for column in self.columns), r"\midrule"]
            for name, *cells in rows:
                lines.append(_latex_row([_stacked(name.text, ROW_WIDTH, "[l]"), *(_stacked(cell.text, CELL_WIDTH) for cell in cells)]))
            lines += [r"\bottomrule", r"\end{tabular}}", r"\par\smallskip\raggedright"]
            lines += [rf"{latex(note)}\par" for note in self.notes if number == len(parts)]
            lines.append(r"\end{table*}")
        return "\n".join(lines) + "\n"

    def _parts(self) -> list[list[tuple[Cell, ...]]]:
        """Return the rows in parts that fit on a page; rows with the same first cell stay together where they fit."""
        parts: list[list[tuple[Cell, ...]]] = [[]]
        room = LATEX_LINES
        for _, group in itertools.groupby(self.rows, key=lambda row: row[0].text):
            rows = [(row, max(len(_wrapped(cell.text, CELL_WIDTH if i else ROW_WIDTH)) for i, cell in enumerate(row))) for row in group]
            is_new = sum(height for _, height in rows) > room
            for row, height in rows:
                if parts[-1] and (is_new or height > room):
                    parts.append([])
                    room = LATEX_LINES
                parts[-1].append(row)
                room, is_new = room - height, False
        return parts

    def to_csv(self) -> str:
        """Return one line a cell, at full precision, with the trials behind it; `line` (from 1) and `column` name the cell."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for line, row in enumerate(self.rows, 1):
            for column, cell in zip(self.columns[1:], row[1:], strict=True):
                selection = cell.selection or (self.selection if cell.trial_ids else "")
                numbers = ["" if (number := getattr(cell, name)) is None else repr(number) for name in CSV_NUMBERS]
                writer.writerow([line, row[0].text, column, cell.text, *numbers, selection, " ".join(cell.trial_ids), self.setting])
        return text.getvalue()

    def to_html(self, *, linked: bool = False) -> str:
        """Return the table as an HTML fragment; `linked` makes each number a link to its trials' places in the report."""
        head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in self.columns)
        body = "".join(
            "<tr>" + "".join(_html_cell(cell, linked=linked, is_head=not i) for i, cell in enumerate(row)) + "</tr>\n" for row in self.rows
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self._notes)
        return (
            f'<figure class="table" id="table-{html.escape(self.name)}"><figcaption>{html.escape(self.title)}</figcaption>\n'
            f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n'
            + (f'<ul class="notes">{notes}</ul>' if notes else "")
            + "</figure>\n"
        )


def latex(text: str) -> str:
    """Return `text` with LaTeX's special characters escaped; what ASCII lacks loses its accent or becomes a question mark."""
    plain = "".join(_LATEX.get(character, character) for character in _MINUS.sub("\u2212", _one_line(text)))
    letters = [letter for letter in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(letter)]
    return "".join(letter if letter.isascii() else "?" for letter in letters)


def _latex_row(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"


def _stacked(text: str, width: int, place: str = "") -> str:
    """Return a head or cell for LaTeX, in several lines where it is longer than `width`; {} keeps a [ from being an argument of \\\\."""
    lines = [latex(line) for line in _wrapped(text, width)]
    return rf"\shortstack{place}{{" + r"\\{}".join(lines) + "}" if len(lines) > 1 else "".join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(_one_line(text), width, break_long_words=False, break_on_hyphens=False)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _markdown(text: str) -> str:
    return _one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def _pipes(texts: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(_markdown(text) for text in texts) + " |"


def _html_cell(cell: Cell, *, linked: bool, is_head: bool) -> str:
    text = html.escape(cell.text)
    if linked and cell.trial_ids:
        ids = [html.escape(trial_id) for trial_id in cell.trial_ids[:MAX_LINKS]]
        others = "".join(f' <a href="#trial-{trial_id}" title="trial {trial_id}">{i}</a>' for i, trial_id in enumerate(ids, 1))
        more = f" of {len(cell.trial_ids)}: see the CSV" if len(cell.trial_ids) > len(ids) else ""
        text = f'<a href="#trial-{ids[0]}">{text}</a>' + (f"<sup>{others}{more}</sup>" if len(ids) > 1 else "")
    sort_value = "" if cell.mean is None else f' data-sort="{cell.mean!r}"'
    return f'<th scope="row">{text}</th>' if is_head else f"<td{sort_value}>{text}</td>"
