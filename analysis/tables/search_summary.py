"""What each study found: its best setting, what mattered, what the paper's setting or one for all pairs gives away, and its cost."""

import pandas as pd

from analysis.aggregate import Results, records_of
from analysis.artefact import NotAsked, Options
from analysis.configurations import settings_of
from analysis.hours import search_entries, total, with_hours
from analysis.one_setting import one_setting
from analysis.search import MAX_TRIALS_FOR_IMPORTANCE, Study, displayed, studies_of
from analysis.table import Cell, Table


def build(results: Results, options: Options) -> list[Table]:
    """Return a row per study; every number is validation accuracy, never test accuracy."""
    del options
    studies = studies_of(results)
    if not studies:
        raise NotAsked("Search: the folder's plan has no search trials.")
    shared = one_setting(studies)
    rows, notes = [], ["Validation accuracy in per cent; regret: how far below the study's best. Trial 0 is the paper's setting."]
    for study in studies:
        best, paper = study.best, study.paper
        if best is None:
            notes.append(f"{study.label}: no search trial is complete yet ({study.states}).")
            rows.append((Cell(text=study.label), Cell(text=study.states), *[Cell(text="waiting")] * 7))
            continue
        guess = shared.guesses[study.label] if shared is not None else None
        judged = tuple(trial.trial_id for trial in study.judged)
        shares = ", ".join(f"{displayed(name)} {share:.0%}" for name, share in study.importances.items())
        cells = (
            Cell(text=study.states),
            Cell(text=study.describe(best), trial_ids=(best.trial_id,)),
            Cell(text=f"{best.value:.2f}", mean=best.value, trial_ids=(best.trial_id,)),
            Cell(text="-") if paper is None else _regret(best.value - paper.value, (paper.trial_id,)),
            Cell(text="-")
            if guess is None
            else _regret(
                best.value - guess.value, judged if guess.trial is None else (guess.trial.trial_id,), is_guess=guess.trial is None
            ),
            Cell(text=shares or "too few trials", trial_ids=judged if shares else ()),
            _confirmed(results, study),
            _cost(results, study),
        )
        rows.append((Cell(text=study.label), *cells))
    if shared is not None:
        notes.append(
            f"One setting for all pairs ({shared.text}): the lowest mean regret, {shared.mean_regret:.2f} points, of the "
            f"{shared.num_compared} settings that every study tried or has enough trials to estimate. A regret marked ~ is estimated "
            "(random forest over the study's trials), since the study did not try that setting."
        )
        if any(len(study.complete) > MAX_TRIALS_FOR_IMPORTANCE for study in studies):
            notes.append(f"A study of over {MAX_TRIALS_FOR_IMPORTANCE} trials proposes an even part of them, its best and the paper's.")
    notes.append("Importance: shares of the variance of validation accuracy (fANOVA over complete trials); rough with few trials.")
    notes.append(
        f"Hours: a study's trials, confirmations and teacher, pruned and failed ones included; together, each trial once, "
        f"{total(with_hours(search_entries(results)))}. Reported rows are trained on top of that."
    )
    columns = (
        "Study",
        "Trials",
        "Best setting",
        "Best",
        "Regret of the paper's setting",
        "Regret of one setting",
        "Importance (fANOVA)",
        "Confirmed",
        "Hours",
    )
    return [Table(name="search_summary", title="Search", columns=columns, rows=tuple(rows), notes=tuple(notes))]


def _regret(value: float, trial_ids: tuple[str, ...], *, is_guess: bool = False) -> Cell:
    return Cell(text=f"{'~' if is_guess else ''}{value:.2f}", mean=value, trial_ids=trial_ids)


def _cost(results: Results, study: Study) -> Cell:
    entries = with_hours(search_entries(results, study.name, study.dataset))
    hours = float(entries["hours"].sum())
    return Cell(text=f"{hours:.3f}", mean=hours, trial_ids=tuple(entries["trial_id"]))


def _confirmed(results: Results, study: Study) -> Cell:
    """Return the confirmed setting (or, while confirmations run, the leader), chosen exactly as the sweep chooses.

    A setting needs a complete trial of every seed; of equal means, and where no setting has that, the paper's setting wins, then the one
    that searched better.
    """
    entries = results.rows(purpose="confirm", study=study.name)
    entries = entries[entries["dataset"].fillna("").isin([study.dataset, ""])].drop_duplicates(["trial_id", "seed"])
    if entries.empty:
        return Cell(text="-")
    searched = {trial.number: trial.value for trial in study.complete}
    candidates = []
    settings = pd.Series(settings_of(entries["config_json"]), index=entries.index, dtype=str)
    for _, group in entries.groupby(settings):
        done = group[(group["status"] == "complete") & group["top1_val"].notna()]
        number = int(group["study_number"].fillna(-1).min())
        if len(done) == len(group):
            mean = float(done["top1_val"].mean())
            candidates.append((mean, number == 0, searched.get(number, float("-inf")), -number, done))
    if not candidates:
        return Cell(text="waiting" if (entries["status"] == "waiting").any() else "the paper's setting: each has a failed seed")
    mean, is_paper, _, _, done = max(candidates, key=lambda candidate: candidate[:4])
    row = records_of(done)[0]
    weights = [f"{name} {weight:.3g}" for name, weight in dict(row["weights"]).items() if name != "task"]
    placement = f"placement {study.placement(row['taps'])}"
    name = "the paper's setting" if is_paper else ", ".join([f"temperature {row['temperature']:.3g}", *weights, placement])
    is_over = not (entries["status"] == "waiting").any()
    rank = f"best of {settings.nunique()}" if is_over else f"leads {len(candidates)} of {settings.nunique()} so far"
    return Cell(text=f"{name}: {mean:.2f} ({len(done)}), {rank}", mean=mean, n=len(done), trial_ids=tuple(done["trial_id"]))
