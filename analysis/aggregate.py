"""Result folders as one frame: the work-list joined with its trials, and cells of mean±std (n) made from it."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar, cast

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.compact import PARTITIONS, Generation, Small, current, merged_ids, read_epoch_file, read_part, read_trial_file, small_files
from analysis.configurations import check, facts_of, settings_of
from analysis.inference import Summary, summarize
from analysis.table import Cell
from hsakd.records import EPOCH_SCHEMA, PLAN_SCHEMA, TRIAL_SCHEMA, PlanEntry
from hsakd.store import read_rows

T = TypeVar("T")
READ_ATTEMPTS = 8  # compactions that may overtake one reader
TABLES_AT_ONCE = 1000  # small files merged in one go: a table of one row takes 60 kB of memory, a row of a merged one 3
SHOWN_IDS = 5  # of trials that a sentence is about
SELECTIONS = {"last": "top1_last", "val": "top1_at_best_val", "best-test": "top1_best_test"}
METHODS = ("Teacher", "Teacher*", "Student", "KD", "HSAKD", "HSAKD*", "HSAKD-tuned")
TRIAL_COLUMNS = [
    name for name in TRIAL_SCHEMA.names if name not in ("versions", "branch_top1_joint", "branch_top1_class", "schema_version")
]
PAIRS = (  # the order of the paper's Table 1
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13_bn", "mobilenetv2_half"),
    ("resnet50", "mobilenetv2_half"),
    ("wrn_40_2", "shufflenet_v1"),
    ("resnet32x4", "shufflenet_v2"),
)
CELL_COLUMNS = ["trial_id", "seed", "teacher_seed", "status", "error", "diverged_step", "config_json"]
_PLAN_KEY = ["trial_id", "purpose", "method", "teacher", "student", "seed", "teacher_seed", "study", "study_number"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Several result folders merged by trial id.

    `entries` has a row per line of the work-list with its trial's columns beside it (`status` "waiting" where there is no trial yet,
    "unreadable" where its file is broken) and the facts of its configuration that tables ask for. `notes` say what was left out.
    """

    folders: tuple[Path, ...]
    trials: pd.DataFrame
    entries: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    memo: dict[str, Any] = field(default_factory=dict)  # what several artefacts need and is slow to find, by name

    def rows(self, purpose: str | None = None, study: str | None = None) -> pd.DataFrame:
        """Return the entries of one purpose and study (None: any)."""
        chosen = self.entries
        if purpose is not None:
            chosen = chosen[chosen["purpose"] == purpose]
        return chosen if study is None else chosen[chosen["study"] == study]

    def by_folder(self, trial_ids: Sequence[str]) -> list[tuple[Path, list[str]]]:
        """Return where the trials' rows that tables show come from: another folder may have another result of the same trial."""
        wanted = self.trials[self.trials["trial_id"].isin(list(trial_ids))]
        return [(self.folders[cast(int, number)], sorted(group)) for number, group in wanted.groupby("folder")["trial_id"]]

    def full_rows(self, trial_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return every column of the trials asked for, from wherever they are stored."""
        found = dict[str, dict[str, Any]]()
        for folder, wanted in self.by_folder(trial_ids):
            for trial_id in wanted:
                path = folder / "trials" / f"{trial_id}.parquet"
                if path.exists():
                    try:
                        found[trial_id] = read_trial_file(path, TRIAL_SCHEMA.names).to_pylist()[0]
                    except ValueError:
                        continue
            table = _merged_rows(folder, "trials", sorted(set(wanted) - set(found)), TRIAL_SCHEMA.names, self.notes)
            found |= {row["trial_id"]: row for row in table.to_pylist()}
        return [found[trial_id] for trial_id in sorted(found)]

    def epochs(self, trial_ids: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
        """Return `trial_id`, `epoch` and `columns` of the epochs of some trials; nothing else is read."""
        names = list(dict.fromkeys(["trial_id", "epoch", *columns]))
        schema = pa.schema([EPOCH_SCHEMA.field(name) for name in names])
        lost, parts = set[str](), [schema.empty_table()]
        for folder, of_folder in self.by_folder(trial_ids):
            wanted, broken = set(of_folder), dict[str, ValueError]()
            for trial_id in of_folder:
                path = folder / "epochs" / f"{trial_id}.parquet"
                if path.exists():
                    try:
                        parts.append(read_epoch_file(path, schema))
                        wanted.discard(trial_id)
                    except ValueError as error:
                        broken[trial_id] = error
            parts.append(_merged_rows(folder, "epochs", sorted(wanted), names, self.notes))
            wanted -= set(parts[-1]["trial_id"].to_pylist())  # a compaction may have kept the epochs of a file that is broken now
            self.notes.extend(f"{folder.name}/{error}; its curve is left out." for trial_id, error in broken.items() if trial_id in wanted)
            lost |= wanted - set(broken)
        ran = self.trials.loc[self.trials["epochs_done"].fillna(0) > 0, "trial_id"]
        if unseen := sorted(lost & set(ran)):
            self.notes.append(f"Without epochs that can be read, so in no curve: {_listed(unseen)}.")
        frame = cast(pd.DataFrame, pa.concat_tables(parts).to_pandas())
        return frame.drop_duplicates(["trial_id", "epoch"], keep="last").sort_values(["trial_id", "epoch"])


def load(folders: Sequence[Path]) -> Results:
    """Read and merge result folders; what can't be read becomes a note. Raises ValueError for a folder that does not exist."""
    notes: list[str] = []
    plans, trials, broken, without_plan = [], [], set[str](), set[str]()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"RUNS is {str(folder)!r}; accepted: result folders, made by sweeps/run_pairs.py --out")
        plans.append(_read_plan(folder, notes))
        table, unreadable = _read_trials(folder, notes)
        trials.append(table)
        broken |= unreadable
        if not plans[-1].num_rows and not table.num_rows:
            notes.append(f"{folder.name} holds no plan and no trials.")
        elif not plans[-1].num_rows:
            notes.append(f"{folder.name} has {table.num_rows} trials but no readable plan.parquet, so no table knows what they are for.")
            without_plan |= set(table["trial_id"].to_pylist())
    numbered = [table.append_column("folder", pa.array([number] * len(table), pa.int64())) for number, table in enumerate(trials)]
    frame = _merge_trials(pa.concat_tables(numbered), notes)
    plan = _merge_plans(pa.concat_tables(plans).to_pandas())
    unplanned = sorted(set(frame["trial_id"]) - set(plan["trial_id"]) - without_plan)
    if unplanned:
        notes.append(f"In no line of the plan (another command planned it), so in no table: {_listed(unplanned)}.")
    return Results(folders=tuple(folders), trials=frame, entries=_join(plan, frame, broken), notes=notes)


def _listed(trial_ids: Sequence[str]) -> str:
    """Return "2 trials (a, b)", of many the first."""
    more = ", ..." if len(trial_ids) > SHOWN_IDS else ""
    return f"{len(trial_ids)} trial{'s' if len(trial_ids) > 1 else ''} ({', '.join(trial_ids[:SHOWN_IDS])}{more})"


def _merge_plans(plan: pd.DataFrame) -> pd.DataFrame:
    """Keep each line once; a line whose trial was not known yet gives way to the same line of another folder that knows it."""
    known = plan[plan["trial_id"] != ""].drop_duplicates(_PLAN_KEY)
    unknown = plan[plan["trial_id"] == ""]
    place = [name for name in _PLAN_KEY if name not in ("trial_id", "study_number")]
    is_known = (
        pd.MultiIndex.from_frame(unknown[place]).isin(pd.MultiIndex.from_frame(known[place])) & (unknown["purpose"] == "report").to_numpy()
    )
    return pd.concat([known, unknown[~is_known]])


def _read_plan(folder: Path, notes: list[str]) -> pa.Table:
    path = folder / "plan.parquet"
    if not path.exists():
        return PLAN_SCHEMA.empty_table()
    try:
        table = pq.read_table(path)
        if table.schema.equals(PLAN_SCHEMA) and pc.all(pc.equal(table["schema_version"], 1)).as_py() is not False:
            table = table.replace_schema_metadata(PLAN_SCHEMA.metadata)
        else:
            rows = [{name: getattr(entry, name) for name in PLAN_SCHEMA.names} for entry in read_rows(path, PlanEntry)]
            table = pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)
    except (ValueError, pa.ArrowException, OSError) as error:
        notes.append(f"{folder.name}/plan.parquet can't be used: {str(error).splitlines()[0]}.")
        return PLAN_SCHEMA.empty_table()
    whole = table.filter(pc.invert(reduce(pc.or_, (pc.is_null(table[name]) for name in PLAN_SCHEMA.names if name != "study_number"))))
    if whole.num_rows < table.num_rows:
        broken = table.num_rows - whole.num_rows
        what = "1 line with an empty field; it is" if broken == 1 else f"{broken} lines with an empty field; they are"
        notes.append(f"{folder.name}/plan.parquet has {what} left out.")
    return whole


def _generation(folder: Path, notes: list[str]) -> Generation | None:
    try:
        return current(folder)
    except ValueError as error:
        notes.append(f"{error}.")
        return None


def _while_current(folder: Path, notes: list[str], read: Callable[[Generation, bool], T]) -> T | None:
    """Return what `read` makes of the folder's generation; None without one.

    A compaction may replace and delete the generation meanwhile: then its files are gone, and the new one is read from the start. Where it
    is still the same one, `read` is told so: files that are gone are lost.
    """
    last: Path | None = None
    for _ in range(READ_ATTEMPTS):
        generation = _generation(folder, notes)
        if generation is None:
            return None
        try:
            return read(generation, generation.folder == last)
        except FileNotFoundError:
            last = generation.folder
    notes.append(f"{folder.name}/compacted lacks files; the small files are read instead.")
    return None


def _merged_rows(folder: Path, kind: str, trial_ids: Sequence[str], columns: Sequence[str], notes: list[str]) -> pa.Table:
    """Return `columns` of the rows of some trials from the folder's generation; only the partitions that can have them are opened."""
    schema = TRIAL_SCHEMA if kind == "trials" else EPOCH_SCHEMA
    empty = pa.schema([schema.field(name) for name in columns]).empty_table()
    digits = sorted({trial_id[:1] for trial_id in trial_ids} & set(PARTITIONS))

    def read(generation: Generation, is_same: bool) -> tuple[list[pa.Table], list[str]]:
        parts, broken = [empty], []
        for digit in digits:
            path = generation.folder / kind / f"{digit}.parquet"
            try:
                parts.append(read_part(path, empty.schema, pc.field("trial_id").isin(list(trial_ids))))
            except (pa.ArrowException, OSError, ValueError) as error:
                if isinstance(error, FileNotFoundError) and not is_same:
                    raise
                broken.append(f"{folder.name}/compacted: {kind}/{digit}.parquet is not readable; what only it holds is left out.")
        return parts, broken

    found = _while_current(folder, notes, read) if digits else None
    if found is None:
        return empty
    notes += found[1]
    return pa.concat_tables(found[0])


def _read_trials(folder: Path, notes: list[str]) -> tuple[pa.Table, set[str]]:
    schema = pa.schema([TRIAL_SCHEMA.field(name) for name in TRIAL_COLUMNS])
    empty = schema.empty_table()

    def read_merged(generation: Generation, is_same: bool) -> tuple[list[pa.Table], dict[str, Small], list[str], set[str]]:
        files, merged, said, known = small_files(folder / "trials"), [empty], [], set[str]()
        fresh = dict[str, list[str]]()  # by first digit: the trials whose small file is as it was, or gone
        for name, at in generation.index.items():
            if name not in files or (files[name].mtime_ns, files[name].size) == at:
                fresh.setdefault(name[:1], []).append(name)
        for digit in PARTITIONS:
            path = generation.folder / "trials" / f"{digit}.parquet"
            try:
                table = read_part(path, schema)
            except (pa.ArrowException, OSError, ValueError) as error:
                if isinstance(error, FileNotFoundError) and not is_same:
                    raise
                gone = sorted(set(fresh.get(digit, [])) - set(files))
                without = f"; without one, so unreadable: {_listed(gone)}" if gone else ""
                said.append(f"{folder.name}/compacted/{path.name} is not readable; its trials are read from their small files{without}.")
                continue
            merged.append(table.filter(pc.is_in(table["trial_id"], pa.array(fresh.get(digit, []), pa.string()))))
            known.update(merged[-1]["trial_id"].to_pylist())
        return merged, {name: file for name, file in files.items() if name not in known}, said, set(generation.index) - set(files) - known

    found = _while_current(folder, notes, read_merged)
    if found is None:
        small = small_files(folder / "trials")
        found = [empty], small, [], merged_ids(folder) - set(small)
    parts, files, said, broken = found
    notes += said

    def read(path: Path) -> pa.Table | str:
        try:
            return read_trial_file(path, TRIAL_COLUMNS)
        except ValueError as error:
            return str(error)

    waiting: list[pa.Table] = []
    with ThreadPoolExecutor(2) as pool:
        for name, result in zip(files, pool.map(read, [file.path for file in files.values()]), strict=True):
            if isinstance(result, str):
                notes.append(f"{folder.name}/{result}; its trial counts as missing.")
                broken.add(name)
                continue
            waiting.append(result)
            if len(waiting) == TABLES_AT_ONCE:
                parts.append(pa.concat_tables(waiting).combine_chunks())
                waiting.clear()
    return pa.concat_tables([*parts, *waiting]).combine_chunks(), broken


def _merge_trials(table: pa.Table, notes: list[str]) -> pd.DataFrame:
    """Keep one row a trial: a complete one before others, then the last finished; say where complete ones disagree."""
    frame = cast(pd.DataFrame, table.to_pandas())
    doubled = frame[frame["trial_id"].duplicated(keep=False) & (frame["status"] == "complete")]
    for trial_id, group in doubled.groupby("trial_id"):
        if group["top1_last"].nunique(dropna=False) > 1:
            notes.append(f"Trial {trial_id} is complete in several folders with different results; the last finished is shown.")
    frame = frame.assign(is_complete=frame["status"] == "complete").sort_values(["is_complete", "finished_at"], kind="stable")
    return frame.drop_duplicates("trial_id", keep="last").drop(columns="is_complete").sort_values("trial_id").reset_index(drop=True)


def _join(plan: pd.DataFrame, trials: pd.DataFrame, broken: set[str]) -> pd.DataFrame:
    own = trials.drop(columns=["seed", "folder"]).rename(columns={"config_json": "trial_config_json"})
    entries = plan.drop(columns=["schema_version"]).merge(own, on="trial_id", how="left")
    waiting = entries["status"].isna()
    entries["status"] = entries["status"].mask(waiting, "waiting").mask(waiting & entries["trial_id"].isin(broken), "unreadable")
    known = entries["trial_config_json"].fillna("")
    planned = entries.loc[known == "", "config_json"].map(_readable)
    entries["config_json"] = known.where(known != "", planned)
    entries = entries.drop(columns=["trial_config_json"])
    facts = pd.DataFrame([facts_of(text) for text in entries["config_json"]], index=entries.index, columns=list(facts_of("")))
    entries["dataset"] = entries["dataset"].fillna(facts["config_dataset"])
    entries = pd.concat([entries, facts], axis=1)
    order = ["teacher", "student", "study", "purpose", "method", "seed", "teacher_seed", "study_number", "trial_id"]
    return entries.sort_values(order, kind="stable").reset_index(drop=True)


def _readable(config_json: str) -> str:
    """Return a planned configuration, or nothing where tables could not read it."""
    try:
        check(config_json)
    except ValueError:
        return ""
    return config_json


def pairs_of(entries: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return (dataset, teacher, student) of the entries that have a student, in the paper's order, then by name."""
    known = entries[entries["student"].fillna("") != ""]
    pairs = sorted(set(zip(known["dataset"].fillna(""), known["teacher"], known["student"], strict=True)))
    with_dataset = {pair[1:] for pair in pairs if pair[0]}
    pairs = [pair for pair in pairs if pair[0] or pair[1:] not in with_dataset]
    return sorted(pairs, key=lambda pair: (pair[0], PAIRS.index(pair[1:]) if pair[1:] in PAIRS else len(PAIRS), pair))


def methods_of(entries: pd.DataFrame) -> list[str]:
    """Return Table 1's methods in their order, then whatever else the entries report (comparators, online distillation), by name."""
    return [*METHODS, *sorted(set(entries["method"]) - set(METHODS))]


def pair_label(pair: tuple[str, str, str], pairs: Sequence[tuple[str, str, str]], *, names_dataset: bool = False) -> str:
    """Return "teacher → student", with the data set where several are shown or `names_dataset` asks for it."""
    return f"{pair[1]} → {pair[2]}" + (f" [{pair[0]}]" if names_dataset or len({other[0] for other in pairs}) > 1 else "")


def format_summary(summary: Summary, planned: int | None = None) -> str:
    """Return "81.10 ± 0.20 (3)"; no std with n < 2; "(2/3 seeds)" where some are missing."""
    spread = "" if summary.std is None else f" ± {summary.std:.2f}"
    count = f"{summary.n}" if planned in (None, summary.n) else f"{summary.n}/{planned} seeds"
    return f"{summary.mean:.2f}{spread} ({count})"


def where(pair: tuple[str, str, str], row: str) -> str:
    """Return how a note names the place of a row and pair."""
    return f"{row}, {pair[1]} → {pair[2]}"


def make_cell(
    entries: pd.DataFrame | None, *, selection: str, where: str, notes: list[str], force: bool = False, column: str | None = None
) -> Cell:
    """Return one cell from the entries of its seeds; sentences on what is missing or refused go to `notes`."""
    column = column or SELECTIONS[selection]
    if entries is None or entries.empty:
        return Cell(text="-")
    places: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in records_of(entries[[*CELL_COLUMNS, column]]):
        is_known = bool(entry["trial_id"])  # without a teacher it is one trial under every teacher's seed; one not yet known has no id
        places.setdefault((entry["trial_id"],) if is_known else (entry["seed"], entry["teacher_seed"]), entry)
    rows = list(places.values())
    done = [entry for entry in rows if entry["status"] == "complete"]
    ids = tuple(entry["trial_id"] for entry in done)
    others = [entry for entry in rows if entry["status"] not in ("complete", "waiting")]
    for entry in others:
        step = f" at step {entry['diverged_step']:.0f}" if pd.notna(entry["diverged_step"]) else ""
        error = f": {entry['error']}" if isinstance(entry["error"], str) and entry["error"] else ""
        notes.append(f"{where}, seed {entry['seed']}: {str(entry['status']).replace('_', ' ')}{step}{error} (trial {entry['trial_id']}).")
    num_waiting = len(rows) - len(done) - len(others)
    if num_waiting:
        notes.append(f"{where}: {num_waiting} of {len(rows)} trials not finished yet.")
    if not done:
        states = {str(entry["status"]) for entry in others}
        text = "waiting" if not states else "failed" if states == {"failed"} else f"failed: {', '.join(sorted(states))}".replace("_", " ")
        return Cell(text=text, n=0)
    settings = set(settings_of(entry["config_json"] for entry in done))
    mark = ""
    if len(settings) > 1:
        if not force:
            notes.append(f"{where}: refused, its {len(done)} trials have {len(settings)} different settings (--force averages them).")
            return Cell(text="refused", trial_ids=ids)
        notes.append(f"{where}: forced, averages {len(settings)} different settings (marked !).")
        mark = " !"
    values = {entry["trial_id"]: float(entry[column]) for entry in done if pd.notna(entry[column])}
    if len(values) < len(done):
        what = "the trials have" if not values else f"{len(done) - len(values)} of {len(done)} complete trials have"
        notes.append(f"{where}: {what} no number for the selection {selection!r}.")
    if not values:
        return Cell(text=f"no {selection}", trial_ids=ids)
    summary = summarize(list(values.values()))
    return Cell(text=format_summary(summary, len(rows)) + mark, mean=summary.mean, std=summary.std, n=summary.n, trial_ids=tuple(values))


def by_row(entries: pd.DataFrame, pairs: Sequence[tuple[str, str, str]]) -> dict[tuple[tuple[str, str, str], str], pd.DataFrame]:
    """Return the entries of each place of a table: by pair and row."""
    return {(pair, str(method)): group for pair in pairs for method, group in for_pair(entries, pair).groupby("method")}


def for_pair(entries: pd.DataFrame, pair: tuple[str, str, str]) -> pd.DataFrame:
    """Return the entries of a pair: its own, and those of its teacher that name no student."""
    dataset, teacher, student = pair
    mine = (entries["student"].fillna("") == student) | (entries["student"].fillna("") == "")
    same_data = entries["dataset"].fillna("").isin([dataset, ""])
    return entries[(entries["teacher"] == teacher) & mine & same_data]


def reported(results: Results) -> pd.DataFrame:
    """Return Table 1's entries: reported students, and the teachers they distil, trained on the full training set."""
    entries = results.rows(study="")
    entries = entries[(entries["validation_fraction"].fillna(0.0) == 0) & entries["purpose"].isin(["report", "backbone", "teacher"])]
    is_backbone = entries["purpose"] == "backbone"
    is_joint = (entries["purpose"] == "teacher") & (entries["method"] == "Teacher*")
    return entries[(entries["purpose"] == "report") | is_backbone | is_joint].assign(method=entries["method"].mask(is_backbone, "Teacher"))


def records_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as dictionaries by column name."""
    return cast(list[dict[str, Any]], frame.to_dict("records"))
