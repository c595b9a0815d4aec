"""Result folders as one frame: the work-list joined with its trials, and cells of mean±std (n) made from it."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.compact import PARTITIONS, Generation, Small, current, read_part, read_trial_file, small_files
from analysis.inference import Summary, summarize
from analysis.table import Cell
from hsakd.records import EPOCH_SCHEMA, PLAN_SCHEMA, TRIAL_SCHEMA, PlanEntry, read_rows

T = TypeVar("T")
READ_ATTEMPTS = 8  # compactions that may overtake one reader
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

    def full_rows(self, trial_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return every column of the trials asked for, from wherever they are stored."""
        wanted, found = set(trial_ids), dict[str, dict[str, Any]]()
        for folder in self.folders:
            for trial_id in sorted(wanted - set(found)):
                path = folder / "trials" / f"{trial_id}.parquet"
                if path.exists():
                    try:
                        found[trial_id] = read_trial_file(path, TRIAL_SCHEMA.names).to_pylist()[0]
                    except ValueError:
                        continue
            table = _merged_rows(folder, "trials", sorted(wanted - set(found)), TRIAL_SCHEMA.names, self.notes)
            found |= {row["trial_id"]: row for row in table.to_pylist()}
        return [found[trial_id] for trial_id in sorted(found)]

    def epochs(self, trial_ids: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
        """Return `trial_id`, `epoch` and `columns` of the epochs of some trials; nothing else is read."""
        names = list(dict.fromkeys(["trial_id", "epoch", *columns]))
        wanted, parts = set(trial_ids), list[pa.Table]()
        for folder in self.folders:
            for trial_id in sorted(wanted):
                path = folder / "epochs" / f"{trial_id}.parquet"
                if path.exists():
                    try:
                        parts.append(pq.read_table(path, columns=names))
                        wanted.discard(trial_id)
                    except (pa.ArrowException, OSError):
                        self.notes.append(f"{folder.name}/epochs/{path.name} is not readable Parquet; its curve is left out.")
            parts.append(_merged_rows(folder, "epochs", sorted(wanted), names, self.notes))
            wanted -= set(parts[-1]["trial_id"].to_pylist())
        schema = pa.schema([EPOCH_SCHEMA.field(name) for name in names])
        table = pa.concat_tables([part.select(names).cast(schema) for part in parts]) if parts else schema.empty_table()
        return cast(pd.DataFrame, table.to_pandas()).drop_duplicates(["trial_id", "epoch"], keep="last").sort_values(["trial_id", "epoch"])


def load(folders: Sequence[Path]) -> Results:
    """Read and merge result folders; what can't be read becomes a note. Raises ValueError for a folder that does not exist."""
    notes: list[str] = []
    plans, trials, broken = [], [], set[str]()
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
    frame = _merge_trials(pa.concat_tables(trials), notes)
    plan = _merge_plans(pa.concat_tables(plans).to_pandas())
    return Results(folders=tuple(folders), trials=frame, entries=_join(plan, frame, broken), notes=notes)


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
            return table.replace_schema_metadata(PLAN_SCHEMA.metadata)
        entries = read_rows(path, PlanEntry)
        return pa.Table.from_pylist([{name: getattr(entry, name) for name in PLAN_SCHEMA.names} for entry in entries], schema=PLAN_SCHEMA)
    except (ValueError, pa.ArrowException, OSError) as error:
        notes.append(f"{folder.name}/plan.parquet can't be used: {str(error).splitlines()[0]}.")
        return PLAN_SCHEMA.empty_table()


def _generation(folder: Path, notes: list[str]) -> Generation | None:
    try:
        return current(folder)
    except ValueError as error:
        notes.append(f"{error}.")
        return None


def _while_current(folder: Path, notes: list[str], read: Callable[[Generation], T]) -> T | None:
    """Return what `read` makes of the folder's generation; None without one.

    A compaction may replace and delete the generation meanwhile: then its files are gone, and the new one is read from the start.
    """
    for _ in range(READ_ATTEMPTS):
        generation = _generation(folder, notes)
        if generation is None:
            return None
        try:
            return read(generation)
        except FileNotFoundError:
            continue
    notes.append(f"{folder.name}/compacted lacks files; the small files are read instead.")
    return None


def _merged_rows(folder: Path, kind: str, trial_ids: Sequence[str], columns: Sequence[str], notes: list[str]) -> pa.Table:
    """Return `columns` of the rows of some trials from the folder's generation; only the partitions that can have them are opened."""
    schema = TRIAL_SCHEMA if kind == "trials" else EPOCH_SCHEMA
    empty = pa.schema([schema.field(name) for name in columns]).empty_table()
    digits = sorted({trial_id[:1] for trial_id in trial_ids} & set(PARTITIONS))

    def read(generation: Generation) -> tuple[list[pa.Table], list[str]]:
        parts, broken = [empty], []
        for digit in digits:
            path = generation.folder / kind / f"{digit}.parquet"
            try:
                parts.append(read_part(path, empty.schema, pc.field("trial_id").isin(list(trial_ids))))
            except FileNotFoundError:
                raise
            except (pa.ArrowException, OSError):
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

    def read_merged(generation: Generation) -> tuple[list[pa.Table], dict[str, Small], list[str]]:
        files, merged, broken = small_files(folder / "trials"), [empty], []
        fresh = dict[str, list[str]]()  # by first digit: the trials whose small file is as it was, or gone
        for name, at in generation.index.items():
            if name not in files or (files[name].mtime_ns, files[name].size) == at:
                fresh.setdefault(name[:1], []).append(name)
        for digit in PARTITIONS:
            path = generation.folder / "trials" / f"{digit}.parquet"
            try:
                table = read_part(path, schema)
            except FileNotFoundError:
                raise
            except (pa.ArrowException, OSError):
                broken.append(f"{folder.name}/compacted/{path.name} is not readable; its trials are read from their small files.")
                fresh.pop(digit, None)
                continue
            merged.append(table.filter(pc.is_in(table["trial_id"], pa.array(fresh.get(digit, []), pa.string()))))
        known = {name for names in fresh.values() for name in names}
        return merged, {name: file for name, file in files.items() if name not in known}, broken

    found = _while_current(folder, notes, read_merged)
    parts, files, said = found if found is not None else ([empty], small_files(folder / "trials"), [])
    notes += said
    broken = set[str]()

    def read(path: Path) -> pa.Table | str:
        try:
            return read_trial_file(path, TRIAL_COLUMNS)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        for name, result in zip(files, pool.map(read, [file.path for file in files.values()]), strict=True):
            if isinstance(result, str):
                notes.append(f"{folder.name}/{result}; its trial counts as missing.")
                broken.add(name)
            else:
                parts.append(result)
    return pa.concat_tables(parts).combine_chunks(), broken


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
    own = trials.drop(columns=["seed"]).rename(columns={"config_json": "trial_config_json"})
    entries = plan.drop(columns=["schema_version"]).merge(own, on="trial_id", how="left")
    waiting = entries["status"].isna()
    entries["status"] = entries["status"].mask(waiting, "waiting").mask(waiting & entries["trial_id"].isin(broken), "unreadable")
    known = entries["trial_config_json"].fillna("")
    entries["config_json"] = known.where(known != "", entries["config_json"].fillna(""))
    entries = entries.drop(columns=["trial_config_json"])
    facts = pd.DataFrame([_facts(text) for text in entries["config_json"]], index=entries.index, columns=list(_facts("")))
    entries["dataset"] = entries["dataset"].fillna(facts["config_dataset"])
    entries = pd.concat([entries, facts], axis=1)
    order = ["teacher", "student", "study", "purpose", "method", "seed", "teacher_seed", "study_number", "trial_id"]
    return entries.sort_values(order, kind="stable").reset_index(drop=True)


def _without_teacher(config_json: str) -> dict[str, Any]:
    """Parse a configuration without its teacher (two thirds of it, and the last of its sorted keys); empty where it can't be parsed."""
    head, found, _ = config_json.partition(',"teacher":')
    for text in (head + "}" if found else "", config_json):
        try:
            return cast(dict[str, Any], json.loads(text))
        except ValueError:  # the cut was inside a backbone: the whole text
            continue
    return {}


def _facts(config_json: str) -> dict[str, Any]:
    """Return what tables ask of a configuration, as columns."""
    config = _without_teacher(config_json)
    data, optim, objective = config.get("data", {}), config.get("optim", {}), config.get("objective", {})
    taps = config.get("taps")
    return {
        "config_dataset": data.get("dataset", ""),
        "validation_fraction": data.get("validation_fraction", 0.0),
        "few_shot_ratio": data.get("few_shot_ratio", 1.0),
        "train_subset": data.get("train_subset"),
        "image_size": data.get("image_size"),
        "num_rotations": config.get("num_rotations", 4),
        "epochs": optim.get("epochs"),
        "learning_rate": optim.get("learning_rate"),
        "temperature": objective.get("temperature"),
        "weights": dict(objective.get("terms", [])),
        "branch_weights": tuple(objective.get("branch_weights") or ()),
        "taps": "all" if taps is None else "+".join(f"c{tap}" for tap in taps) or "none",
    }


def setting_of(config_json: str) -> str:
    """Return a configuration without its seeds: trials of one cell must agree in it."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: strip(item) for name, item in value.items() if name != "seed"}
        return value

    return json.dumps(strip(json.loads(config_json)), sort_keys=True) if config_json else ""


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


def pair_label(pair: tuple[str, str, str], pairs: Sequence[tuple[str, str, str]]) -> str:
    """Return "teacher → student", with the data set where several are shown."""
    return f"{pair[1]} → {pair[2]}" + (f" [{pair[0]}]" if len({other[0] for other in pairs}) > 1 else "")


def format_summary(summary: Summary, planned: int | None = None) -> str:
    """Return "81.10 ± 0.20 (3)"; no std with n < 2; "(2/3 seeds)" where some are missing."""
    spread = "" if summary.std is None else f" ± {summary.std:.2f}"
    count = f"{summary.n}" if planned in (None, summary.n) else f"{summary.n}/{planned} seeds"
    return f"{summary.mean:.2f}{spread} ({count})"


def make_cell(
    entries: pd.DataFrame, *, selection: str, where: str, notes: list[str], force: bool = False, column: str | None = None
) -> Cell:
    """Return one cell from the entries of its seeds; sentences on what is missing or refused go to `notes`."""
    entries = entries.drop_duplicates(["trial_id", "seed", "teacher_seed"])  # a trial not yet known has no id
    if entries.empty:
        return Cell(text="-")
    done = entries[entries["status"] == "complete"]
    for entry in entries[~entries["status"].isin(["complete", "waiting"])].to_dict("records"):
        step = f" at step {entry['diverged_step']:.0f}" if pd.notna(entry.get("diverged_step")) else ""
        error = f": {entry['error']}" if isinstance(entry.get("error"), str) and entry["error"] else ""
        notes.append(f"{where}, seed {entry['seed']}: {str(entry['status']).replace('_', ' ')}{step}{error} (trial {entry['trial_id']}).")
    num_waiting = int((entries["status"] == "waiting").sum())
    if num_waiting:
        notes.append(f"{where}: {num_waiting} of {len(entries)} trials not finished yet.")
    if done.empty:
        other = entries.loc[entries["status"] != "waiting", "status"]
        text = (
            "waiting"
            if other.empty
            else ("failed" if set(other) == {"failed"} else f"failed: {', '.join(sorted(set(other)))}".replace("_", " "))
        )
        return Cell(text=text, n=0)
    settings = {setting_of(text) for text in done["config_json"]}
    mark = ""
    if len(settings) > 1:
        if not force:
            notes.append(f"{where}: refused, its {len(done)} trials have {len(settings)} different settings (--force averages them).")
            return Cell(text="refused", trial_ids=tuple(done["trial_id"]))
        notes.append(f"{where}: forced, averages {len(settings)} different settings (marked !).")
        mark = " !"
    values = done[column or SELECTIONS[selection]].astype(float).dropna()
    if values.empty:
        notes.append(f"{where}: the trials have no number for the selection {selection!r}.")
        return Cell(text=f"no {selection}", trial_ids=tuple(done["trial_id"]))
    summary = summarize(values.to_list())
    ids = tuple(done.loc[values.index, "trial_id"])
    return Cell(text=format_summary(summary, len(entries)) + mark, mean=summary.mean, std=summary.std, n=summary.n, trial_ids=ids)


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


def reference() -> pd.DataFrame:
    """Return the published numbers, under our network names, each with its source."""
    return pd.read_csv(Path(__file__).with_name("reference.csv"), keep_default_na=True)
