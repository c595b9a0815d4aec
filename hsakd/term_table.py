"""What every loss term reads, importable without torch: forecasts and tables need it. A test compares it with the registrations."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE_FILE = Path(__file__).with_name("term_table.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class TermFacts:
    """What the registration of a term (or of several, together) declares: see `hsakd.losses.LossTerm`.

    `reads_branches` is of the trained network, `reads_teacher_branches` of its teacher; `pretraining_share` is in parts of the epochs.
    """

    is_rotated: bool
    reads_branches: bool
    reads_teacher_branches: bool
    reads_features: bool
    library: str
    pretraining_share: float


@cache
def term_table() -> dict[str, TermFacts]:
    """Return the facts by the term's name."""
    return {name: TermFacts(**row) for name, row in json.loads(TABLE_FILE.read_text()).items()}


def facts_of_terms(names: Iterable[str]) -> TermFacts:
    """Return what terms read between them, and the sum of their shares of pre-training; names of other versions count for nothing."""
    facts = [term_table()[name] for name in names if name in term_table()]
    return TermFacts(
        is_rotated=any(term.is_rotated for term in facts),
        reads_branches=any(term.reads_branches for term in facts),
        reads_teacher_branches=any(term.reads_teacher_branches for term in facts),
        reads_features=any(term.reads_features for term in facts),
        library=next((term.library for term in facts if term.library), ""),
        pretraining_share=sum(term.pretraining_share for term in facts),
    )
