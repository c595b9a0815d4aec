"""What each study found: its best setting, what mattered, and what the paper's setting gives away."""

from analysis.aggregate import Results
from analysis.artefact import NothingToShow, Options
from analysis.search import SearchTrial, Study, studies_of
from analysis.table import Cell, Table


def build(results: Results, options: Options) -> list[Table]:
    """Return a row per study; every number is validation accuracy, never test accuracy."""
    del options
    studies = studies_of(results)
    if not studies:
        raise NothingToShow("Search: the folder's plan has no search trials.")
    shared, mean_regret = _one_setting(studies)
    rows, notes = [], ["Validation accuracy in per cent; regret: how far below the study's best. Trial 0 is the paper's setting."]
    for study in studies:
        best, paper = study.best, study.paper
        if best is None:
            notes.append(f"{study.name}: no search trial is complete yet ({study.states}).")
            rows.append((Cell(text=study.name), Cell(text=study.states), *[Cell(text="waiting")] * 6))
            continue
        mine = shared[study.name] if shared else None
        cells = (
            Cell(text=study.states),
            Cell(text=study.describe(best)),
            Cell(text=f"{best.value:.2f}", mean=best.value, trial_ids=(best.trial_id,)),
            *(
                _regret(best.value, None if other is None else other.value, () if other is None else (other.trial_id,))
                for other in (paper, mine)
            ),
            Cell(text=", ".join(f"{name} {share:.0%}" for name, share in study.importances().items()) or "too few trials"),
            _confirmed(results, study),
        )
        rows.append((Cell(text=study.name), *cells))
    if shared:
        notes.append(f"One setting for all pairs: the best that every study tried, mean regret {mean_regret:.2f} points.")
    columns = (
        "Study",
        "Trials",
        "Best setting",
        "Best",
        "Regret of the paper's setting",
        "Regret of one setting",
        "Importance (fANOVA)",
        "Confirmed",
    )
    return [Table(name="search_summary", title="Search", columns=columns, rows=tuple(rows), notes=tuple(notes))]


def _regret(best: float, value: float | None, trial_ids: tuple[str, ...]) -> Cell:
    return Cell(text="-") if value is None else Cell(text=f"{best - value:.2f}", mean=best - value, trial_ids=trial_ids)


def _one_setting(studies: list[Study]) -> tuple[dict[str, SearchTrial] | None, float]:
    with_best = [study for study in studies if study.best is not None]
    tried = [{tuple(sorted(trial.params.items())): trial for trial in study.complete} for study in with_best]
    common = set.intersection(*(set(trials) for trials in tried)) if tried else set()
    if not common or len(with_best) < 2:
        return None, 0.0
    chosen = max(sorted(common, key=str), key=lambda params: sum(trials[params].value for trials in tried))
    regrets = [study.best.value - trials[chosen].value for study, trials in zip(with_best, tried, strict=True) if study.best is not None]
    return {study.name: trials[chosen] for study, trials in zip(with_best, tried, strict=True)}, sum(regrets) / len(regrets)


def _confirmed(results: Results, study: Study) -> Cell:
    entries = results.rows(purpose="confirm", study=study.name)
    done = entries[(entries["status"] == "complete") & entries["top1_val"].notna()]
    if done.empty:
        return Cell(text="-" if entries.empty else "waiting")
    means = {number: group["top1_val"].astype(float).to_list() for number, group in done.groupby(done["study_number"].astype(int))}
    winner = max(means, key=lambda number: (sum(means[number]) / len(means[number]), -int(str(number))))
    ids = tuple(done.loc[done["study_number"] == winner, "trial_id"])
    mean = sum(means[winner]) / len(means[winner])
    return Cell(text=f"trial {winner}: {mean:.2f} ({len(means[winner])}) of {len(means)} settings", mean=mean, trial_ids=ids)
