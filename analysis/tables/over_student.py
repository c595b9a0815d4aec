"""What each method gains over the plain student."""

from dataclasses import replace

from analysis.aggregate import SELECTIONS, Results, by_row, pair_label, pairs_of, reported, where
from analysis.artefact import NotAsked, NothingToShow, Options
from analysis.gains import Line, gain_table
from analysis.studies import gain
from analysis.table import Table
from analysis.tables.table1 import rows_of
from analysis.uniform import uniform

BASE = "Student"


def build(results: Results, options: Options) -> list[Table]:
    """Return each method's gain over the student of the same seeds, in Table 1's order; rows of the same trials have one line."""
    entries = reported(results)
    pairs, notes = pairs_of(entries), list[str]()
    kept, _ = uniform(entries, pairs, options, notes)
    of_rows = by_row(kept[kept["purpose"] == "report"], pairs)
    found: list[Line] = []
    places = [(pair, method) for pair in pairs for method in rows_of({method for _, method in of_rows}) if method != BASE]
    places = [(pair, method) for pair, method in places if {(pair, method), (pair, BASE)} <= of_rows.keys()]
    if not places:
        raise NotAsked("Gains over the student: the folder's plan has no method beside a student.")
    for pair, method in places:
        gained = gain(of_rows[pair, method], of_rows[pair, BASE], SELECTIONS[options.selection], force=options.force)
        label = pair_label(pair, pairs)
        same = [what for other, what, known in found if gained is not None and other == label and known[1] == gained[1]]
        if gained is None:
            notes.append(f"No line of {where(pair, method)}: no seed has a number in both rows, or a row has different settings.")
        elif same:
            notes.append(f"No line of {where(pair, method)}: the same trials as in {same[0]}.")
        else:
            found.append((label, f"{method} - {BASE}", gained))
    if not found:
        raise NothingToShow(" ".join(["Gains over the student: none to show.", *notes]))
    table = gain_table(found, options, name="over_student", title="Gains over the student")
    return [replace(table, notes=(*table.notes, *notes))]
