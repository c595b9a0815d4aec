"""Table 5 of the paper: students trained on a part of the training set, the teacher on all of it."""

from dataclasses import replace
from typing import Any

from analysis.aggregate import METHODS, Results
from analysis.artefact import Options
from analysis.inference import Summary
from analysis.studies import StudyRows, study_table
from analysis.table import Table
from analysis.uniform import Pair

PUBLISHED_RATIOS = (25, 50, 75)


def build(results: Results, options: Options) -> list[Table]:
    """Return the accuracy of each method at each ratio, the published ones beside them where the pair is the paper's."""
    title = "Few-shot: accuracy over the part of the training set (the teacher has seen all of it)"
    table = study_table(
        results, options, study="few-shot", title=title, order=_order, base="KD of its ratio", base_of=_kd_of, beside=_published
    )
    if any("HSAKD*" in row[0].text for row in table.rows):
        table = replace(table, notes=(*table.notes, "KD and HSAKD* have teachers of their own: of one seed, trained plainly and jointly."))
    return [table]


def _order(entry: dict[str, Any]) -> tuple[int, str, float]:
    method = str(entry["method"]).rpartition(" ")[0]
    return METHODS.index(method) if method in METHODS else len(METHODS), method, float(entry["few_shot_ratio"])


def _kd_of(arm: str) -> str:
    return f"KD {arm.rpartition(' ')[2]}"


def _published(rows: StudyRows, pair: Pair, notes: list[str]) -> dict[str, Summary]:
    """Return Table 5 under our arms' names; its HSAKD learns from the jointly trained teacher, so it is our HSAKD*."""
    found = {}
    for per_cent in PUBLISHED_RATIOS:
        for method, summary in rows.published(f"table5_fewshot_{per_cent}", pair, notes, varies_ratio=True).items():
            found[f"{'HSAKD*' if method == 'HSAKD' else method} {per_cent}%"] = summary
    return found
