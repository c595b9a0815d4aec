"""Epochs as TensorBoard logs, on request: a run per trial, named so that a pair's trials stand together."""

from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from hsakd.config import TrialConfig
from hsakd.records import EpochMetrics


class TensorBoardLogs:
    """Writes under `folder`; the driver is the only writer. A trial that goes on after an interruption goes on in its own run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writers: dict[str, SummaryWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for writer in self.writers.values():
            writer.close()

    def add(self, config: TrialConfig, metrics: EpochMetrics | None) -> None:
        """Write one epoch of a trial, its configuration with the first; None: no more come, so that few files are open at a time."""
        writer = self.writers.get(config.trial_id)
        if metrics is None:
            if writer is not None:
                self.writers.pop(config.trial_id).close()
            return
        if writer is None:
            teacher = "" if config.teacher is None else f"{config.teacher.network}-"
            terms = "+".join(name for name, _ in config.objective.terms)
            name = f"{teacher}{config.network}/{terms}/seed{config.seed}-{config.trial_id}".replace("/timm/", "/timm-")
            writer = self.writers[config.trial_id] = SummaryWriter(str(self.folder / name))
            writer.add_text("configuration", f"`{config.to_json()}`")
        accuracies = {
            "top1_test": metrics.top1_test,
            "top5_test": metrics.top5_test,
            "top1_val": metrics.top1_val,
            "map50_test": metrics.map50_test,
        }
        numbers = {f"accuracy/{name}": value for name, value in accuracies.items() if value is not None}
        numbers |= {f"loss/{name}": value for name, value in metrics.loss_terms.items()}
        numbers |= {"loss/total": metrics.loss, "learning_rate": metrics.learning_rate, "seconds/train": metrics.train_seconds}
        for name, value in numbers.items():
            writer.add_scalar(name, value, metrics.epoch)
        writer.flush()
