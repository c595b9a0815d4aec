"""A table of numbers that know their trials, written as Markdown, LaTeX (booktabs), CSV or HTML."""

import csv
import html
import io
import re
import unicodedata
from dataclasses import dataclass

_LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
_LATEX |= {character: "\\" + character for character in "&%$#_{}"}
CSV_COLUMNS = ("row", "column", "text", "mean", "std", "n", "trials")
MAX_LINKS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What stands in one place: its text, and, for a measured number, mean, std (ddof=1), n and the trials it comes from."""

    text: str
    mean: float | None = None
    std: float | None = None
    n: int | None = None
    trial_ids: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A titled table; the first cell of a row names it; `notes` stand below and say what is missing."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.name

    @property
    def trial_ids(self) -> set[str]:
        """The trials that the cells link to: of a cell with many, the first; the CSV names all."""
        return {trial_id for row in self.rows for cell in row for trial_id in cell.trial_ids[:MAX_LINKS]}

    def to_markdown(self) -> str:
        lines = [f"**{_markdown(self.title)}**", "", _pipes(self.columns), "|" + " --- |" * len(self.columns)]
        lines += [_pipes([cell.text for cell in row]) for row in self.rows]
        lines += ["", *(f"- {_markdown(note)}" for note in self.notes)] if self.notes else []
        return "\n".join(lines) + "\n"

    def to_latex(self) -> str:
        """Return a booktabs `table`; the preamble needs `\\usepackage{booktabs}`."""
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex(self.title)}}}", rf"\label{{tab:{self.name.replace('_', '-')}}}"]
        lines += [rf"\begin{{tabular}}{{l{'c' * (len(self.columns) - 1)}}}", r"\toprule"]
        lines += [" & ".join(latex(column) for column in self.columns) + r" \\", r"\midrule"]
        lines += [" & ".join(latex(cell.text) for cell in row) + r" \\" for row in self.rows]
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\footnotesize {latex(note)}" for note in self.notes]
        return "\n".join([*lines, r"\end{table}"]) + "\n"

    def to_csv(self) -> str:
        """Return one line a cell, at full precision, with the trials behind it."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for row in self.rows:
            for column, cell in zip(self.columns[1:], row[1:], strict=True):
                numbers = ["" if number is None else repr(number) for number in (cell.mean, cell.std, cell.n)]
                writer.writerow([row[0].text, column, cell.text, *numbers, " ".join(cell.trial_ids)])
        return text.getvalue()

    def to_html(self, *, linked: bool = False) -> str:
        """Return the table as an HTML fragment; `linked` makes each number a link to its trials' places in the report."""
        head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in self.columns)
        body = "".join(
            "<tr>" + "".join(_html_cell(cell, linked=linked, is_head=not i) for i, cell in enumerate(row)) + "</tr>\n" for row in self.rows
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f'<figure class="table" id="table-{html.escape(self.name)}"><figcaption>{html.escape(self.title)}</figcaption>\n'
            f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n'
            + (f'<ul class="notes">{notes}</ul>' if notes else "")
            + "</figure>\n"
        )


def latex(text: str) -> str:
    """Return `text` with LaTeX's special characters escaped; what ASCII lacks loses its accent or becomes a question mark."""
    plain = "".join(_LATEX.get(character, character) for character in _one_line(text))
    letters = [letter for letter in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(letter)]
    return "".join(letter if letter.isascii() else "?" for letter in letters)


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
