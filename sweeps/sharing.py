"""Teachers of another sweep: finished ones are taken over by their trial id, once their tensors' digest was checked."""

import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from hsakd.config import TrialConfig
from hsakd.files import replacing
from hsakd.models.checkpoints import weights_sha256
from hsakd.records import TrialRecord
from hsakd.store import ResultStore


class TeacherSource:
    """Takes finished teachers and backbones from `source` into `own`; `news` says which, and which were refused and why."""

    def __init__(self, source: ResultStore, own: ResultStore) -> None:
        self.source, self.own = source, own
        self.news: list[str] = []
        self.refused: set[str] = set()

    def adopt(self, config: TrialConfig) -> TrialRecord | None:
        """Return the trial's record, now in our folder, if the other has it complete with intact weights; None otherwise.

        Students are left to their own sweep. Weights are linked where both folders are on one file system, else copied.
        """
        trial_id = config.trial_id
        if config.role == "student" or trial_id in self.refused:
            return None
        record = self.source.offered(trial_id)
        if record is None:
            return None
        try:
            is_same_trial = record.config == config
            is_intact = weights_sha256(load_file(self.source.weights_path(trial_id))) == record.weights_sha256
        except (ValueError, SafetensorError, OSError):
            is_same_trial = is_intact = False
        if not (is_same_trial and is_intact):
            self.refused.add(trial_id)
            self.news.append(f"not shared: {trial_id} ({config.network}) of {self.source.root} isn't what its record says")
            return None
        link_or_copy(self.source.weights_path(trial_id), self.own.weights_path(trial_id))
        self.own.write_trial(record, self.source.read_epochs(trial_id))
        self.news.append(f"shared: {trial_id} ({config.network}, {config.role}) from {self.source.root}")
        return record


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where they are on different file systems, atomically."""
    with replacing(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
