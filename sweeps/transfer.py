"""Linear probes as data: the frozen backbone of every finished student of a sweep, with a new linear layer on another data set."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hsakd.config import OptimConfig, TrialConfig
from hsakd.dataset_table import OWN_IMAGES, stored_size
from hsakd.image_folder import scan_image_folder
from hsakd.records import PlanEntry
from hsakd.result_folder import read_plan
from hsakd.store import ResultStore
from sweeps.cli import TransferOptions
from sweeps.presets import with_epochs
from sweeps.wording import pair_of
from sweeps.worklist import data_of

STUDY = "transfer"
PROBE_OPTIM = OptimConfig(epochs=100, learning_rate=0.1, milestones=(30, 60, 90), weight_decay=0.0)  # the authors' linear evaluation


def probe_of(source: TrialConfig, options: TransferOptions) -> TrialConfig:
    """Return the probe of a trial: random resized crops of the other data set at the size that the backbone was trained at."""
    own_size = source.data.image_size or stored_size(source.data.dataset)
    data = replace(data_of(options), image_size=options.image_size or own_size, augmentation="resized_crop")
    optim = PROBE_OPTIM if options.epochs is None else with_epochs(PROBE_OPTIM, options.epochs)
    numerics = replace(source.numerics, teacher_predictions="live")
    return TrialConfig(network=source.network, data=data, optim=optim, numerics=numerics, taps=(), seed=source.seed, backbone=source)


def transfer_work(options: TransferOptions) -> list[tuple[PlanEntry, TrialConfig]]:
    """Return the plan lines of the probes: one per reported student of the folder that is complete.

    Raises:
        ValueError: the folder has no plan or no complete student, or a user's images are not squares of one size.
    """
    _check_own_images(options)
    lines = []
    for entry in complete_students(options, read_plan(ResultStore(options.out))):
        probe = probe_of(TrialConfig.from_json(entry.config_json), options)
        lines.append((replace(entry, trial_id=probe.trial_id, study=STUDY, config_json=probe.to_json()), probe))
    return lines


def complete_students(options: TransferOptions, plan: Sequence[PlanEntry]) -> list[PlanEntry]:
    """Return the plan lines of the reported students that are complete, of the rows and pairs asked for.

    Raises:
        ValueError: none is, or the folder has no such row or pair.
    """
    store = ResultStore(options.out)
    reported = [entry for entry in plan if entry.purpose == "report" and not entry.study]
    of_pairs = _chosen("pairs", options.pairs, reported, pair_of, options.out)
    of_rows = _chosen("students", options.students, of_pairs, lambda entry: entry.method, options.out)
    chosen = [entry for entry in of_rows if entry.trial_id]
    records = {entry.trial_id: store.peek_trial(entry.trial_id) for entry in chosen}  # the work-list is also read by --dry-run
    complete = [e for e in chosen if (record := records[e.trial_id]) and record.status == "complete" and store.is_finished(record)]
    if not complete:
        raise ValueError(f"--out is {options.out}; accepted: a sweep's folder with finished students (of {len(chosen)} planned, 0 are)")
    if len(complete) < len(chosen):
        print(f"{len(chosen) - len(complete)} of {len(chosen)} students are not complete and are left out", file=sys.stderr)
    return complete


def _chosen(option: str, names: Sequence[str], entries: list[PlanEntry], name_of: Callable[[PlanEntry], str], out: Path) -> list[PlanEntry]:
    """Return the lines that an option names, all if it names none; raises ValueError where one name is no line's."""
    known = dict.fromkeys(map(name_of, entries))
    for name in names:
        if known and name not in known:
            raise ValueError(f"--{option} is {name}; accepted for {out}, separated by blanks: {', '.join(known)}")
    return [entry for entry in entries if not names or name_of(entry) in names]


def _check_own_images(options: TransferOptions) -> None:
    if options.dataset != OWN_IMAGES or options.data_dir is None:
        return
    if scan_image_folder(options.data_dir.resolve()).common_size is None:
        raise ValueError(f"--data-dir is {options.data_dir}; accepted for probes: square images of one size, of which crops are taken")
