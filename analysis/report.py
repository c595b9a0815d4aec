"""One self-contained HTML file with everything; every text from the results is escaped."""

import base64
import html
import json
from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from analysis.aggregate import Results, records_of
from analysis.artefact import Drawing
from analysis.table import Table

MAX_CURVES = 500  # trials whose epochs are written out; more would make the file too large to open
FACTS: tuple[str, ...] = (
    "status",
    "error",
    "seed",
    "network",
    "dataset",
    "terms",
    "teacher_network",
    "teacher_regime",
    "teacher_trial_id",
    "top1_last",
    "top1_best_test",
)
FACTS += (
    "best_test_epoch",
    "top1_val",
    "top1_at_best_val",
    "attempts",
    "total_seconds",
    "device",
    "device_name",
    "num_threads",
    "git_commit",
)
FACTS += ("weights_sha256", "teacher_weights_sha256", "started_at", "finished_at")

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --line: #c8c8c8; --soft: #f3f3f3; --link: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181b; --line: #454a50; --soft: #22262b; --link: #8ab8f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
a { color: var(--link); } h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; margin-bottom: .4rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
thead th { background: var(--soft); } thead th button { all: unset; cursor: pointer; font-weight: 600; }
thead th button:focus-visible { outline: 2px solid var(--link); }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.notes { font-size: .88rem; padding-left: 1.2rem; } sup a { margin-left: .15rem; text-decoration: none; }
details { border-bottom: 1px solid var(--line); padding: .3rem 0; } details:target { background: var(--soft); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .5rem; font-size: .8rem; }
h1, code, .notes li, summary { overflow-wrap: anywhere; } nav a { display: inline-block; padding: .3rem 1.2rem .3rem 0; }
@media (max-width: 40rem) { h1 { font-size: 1.2rem; } .sortable tbody th { white-space: normal; min-width: 7rem; } }
"""
_SCRIPT = """
for (const table of document.querySelectorAll('table.sortable')) {
  table.querySelectorAll('thead th').forEach((head, index) => {
    const button = document.createElement('button');
    button.textContent = head.textContent;
    button.title = 'sort';
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') === 'ascending';
      table.querySelectorAll('thead th').forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const body = table.tBodies[0];
      const key = row => row.cells[index].dataset.sort ?? row.cells[index].textContent;
      const isText = text => text.trim() === '' || isNaN(text);  // numbers first, then text, whose numbers count as numbers
      const compare = (a, b) => isText(a) !== isText(b) ? isText(a) - isText(b)
        : isText(a) ? a.localeCompare(b, 'en', {numeric: true}) : a - b;
      const order = (a, b) => compare(key(a), key(b));
      const rows = [...body.rows].sort(order);
      body.replaceChildren(...(down ? rows.reverse() : rows));
    });
  });
}
const open = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === 'DETAILS') { target.open = true; target.scrollIntoView(); }
};
addEventListener('hashchange', open);
addEventListener('load', () => {
  open();
  const images = [...document.images];
  document.body.dataset.figures = images.length;
  document.body.dataset.broken = images.filter(image => image.naturalWidth === 0).length;
  const links = [...document.querySelectorAll('a[href^="#"]')];
  document.body.dataset.dangling = links.filter(link => !document.getElementById(link.getAttribute('href').slice(1))).length;
});
"""


def render(results: Results, tables: Sequence[Table], drawings: Sequence[tuple[Drawing, bytes]], notes: Sequence[str]) -> str:
    """Return the report; `drawings` come with their SVG."""
    shown = [*(table.trial_ids for table in tables), *(drawing.trial_ids for drawing, _ in drawings)]
    ids = sorted({trial_id for found in shown for trial_id in found})
    names = ", ".join(folder.name for folder in results.folders)
    counts = ", ".join(
        f"{count} {str(name).replace('_', ' ')}" for name, count in results.trials["status"].value_counts().sort_index().items()
    )
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>Results: {html.escape(names)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>Results of {html.escape(names)}</h1><p>{len(results.trials)} trials on disk ({html.escape(counts) or 'none'}).",
        "Numbers link to their trials; column heads sort.</p>",
        '<nav><a href="#tables">Tables</a><a href="#figures">Figures</a><a href="#trials">Trials</a></nav>',
    ]
    if notes:
        parts.append('<h2>What is missing</h2><ul class="notes">' + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>")
    parts += ['<h2 id="tables">Tables</h2>', *(table.to_html(linked=True) for table in tables), '<h2 id="figures">Figures</h2>']
    parts += [_figure(drawing, svg) for drawing, svg in drawings]
    return "\n".join([*parts, '<h2 id="trials">Trials</h2>', *_trials(results, ids), f"<script>{_SCRIPT}</script></body></html>\n"])


def _figure(drawing: Drawing, svg: bytes) -> str:
    source = base64.b64encode(svg).decode()
    ids = [html.escape(trial_id) for trial_id in drawing.trial_ids]
    links = " ".join(f'<a href="#trial-{trial_id}">{trial_id[:6]}</a>' for trial_id in ids)
    return (
        f'<figure id="figure-{html.escape(drawing.name)}"><figcaption>{html.escape(drawing.title)}</figcaption>'
        f'<img alt="{html.escape(drawing.caption)}" src="data:image/svg+xml;base64,{source}">'
        f'<p class="notes">{html.escape(drawing.caption)}</p>'
        f'<details><summary>{len(drawing.trial_ids)} trials</summary><p class="notes">{links}</p></details></figure>'
    )


def _trials(results: Results, trial_ids: Sequence[str]) -> list[str]:
    rows = {row["trial_id"]: row for row in results.full_rows(trial_ids)}
    with_curves = list(rows)[:MAX_CURVES]
    epochs = results.epochs(with_curves, ["loss", "top1_test", "top1_val"]).groupby("trial_id")
    curves = {str(trial_id): group for trial_id, group in epochs}
    places = _places(results, trial_ids)
    parts = []
    if len(rows) > MAX_CURVES:
        parts.append(f"<p>Epochs are shown for the first {MAX_CURVES} of {len(rows)} trials.</p>")
    for trial_id in trial_ids:
        row = rows.get(trial_id)
        gone = f'<p id="trial-{html.escape(trial_id)}">Trial {html.escape(trial_id)} can no longer be read.</p>'
        parts.append(_trial(row, curves.get(trial_id), places.get(trial_id, []), set(trial_ids)) if row else gone)
    return parts


def _places(results: Results, trial_ids: Sequence[str]) -> dict[str, list[str]]:
    """Return the plan's lines of each trial, as "HSAKD*, resnet56 → resnet20 (report, loss-terms)"."""
    entries = results.entries[results.entries["trial_id"].isin(list(trial_ids))]
    columns = ["trial_id", "method", "teacher", "student", "purpose", "study"]
    places: dict[str, list[str]] = {}
    for trial_id, method, teacher, student, purpose, study in entries[columns].drop_duplicates().itertuples(index=False):
        pair, kind = (mark.join(filter(None, names)) for mark, names in ((" → ", (teacher, student)), (", ", (purpose, study))))
        places.setdefault(trial_id, []).append(f"{method}, {pair} ({kind})")
    return places


def _trial(row: dict[str, Any], curve: pd.DataFrame | None, places: Sequence[str], shown: Collection[str]) -> str:
    """Return a trial's entry; its teacher is a link where it is among the `shown` trials."""
    trial_id = row["trial_id"]
    facts = [(name, _fact(name, row[name], shown)) for name in FACTS if row.get(name) not in (None, "")]
    facts = [*([("rows", html.escape("; ".join(places)))] if places else []), *facts]
    table = "".join(f'<tr><th scope="row">{name}</th><td>{text}</td></tr>' for name, text in facts)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(dict(row.get("versions") or {}).items()))
    lines = [] if curve is None else [_epoch(epoch) for epoch in records_of(curve)]
    title = f"{trial_id}: {row['network']}, {row['dataset']}, {row.get('terms') or ''}, seed {row['seed']}"
    return (
        f'<details id="trial-{html.escape(trial_id)}"><summary>{html.escape(title)}</summary>'
        f'<div class="scroll"><table>{table}</table></div>'
        f"<p>Versions: {html.escape(versions) or 'unknown'}</p><pre>{html.escape(_indented(row['config_json']))}</pre>"
        + (f"<pre>{html.escape(chr(10).join(lines))}</pre>" if lines else "<p>No epochs to show.</p>")
        + "</details>"
    )


def _fact(name: str, value: Any, shown: Collection[str]) -> str:
    text = html.escape(str(round(value, 4) if isinstance(value, float) else value))
    return f'<a href="#trial-{text}">{text}</a>' if name == "teacher_trial_id" and value in shown else text


def _epoch(epoch: dict[str, Any]) -> str:
    numbers = {name: epoch[name] for name in ("loss", "top1_test", "top1_val") if pd.notna(epoch[name])}
    return f"epoch {epoch['epoch']}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def _indented(config_json: str) -> str:
    try:
        return json.dumps(json.loads(config_json), indent=1, sort_keys=True)
    except (ValueError, TypeError):
        return str(config_json)
