"""Whether a node may run trials: the same libraries as the driver, the same result folder, the data set in place. Knows no Ray."""

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

from hsakd.config import DataConfig

WORKER_PACKAGES = ("torch", "torchvision", "numpy", "ray", "pyarrow", "safetensors", "scikit-learn")
OPTIONAL_PACKAGES = ("torchdistill", "timm", "pycocotools")  # compared where the driver has them
TOKEN_FILE = "driver.token"


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What the driver has: versions of what trials import, and the words in the result folder's token file.

    `dataset` is what every node must be able to read; what else a trial needs (a probe's backbone that is trained again) may be missing.
    """

    out: Path
    token: str
    versions: tuple[tuple[str, str], ...]
    dataset: str = ""

    @property
    def is_shared(self) -> bool:
        """Whether this node sees the driver's result folder."""
        path = self.out / TOKEN_FILE
        try:
            return path.read_text() == self.token
        except OSError:
            return False


def present_versions() -> dict[str, str]:
    """Return this process's versions of Python and of what trials import, build tags (+cpu, +cu126) dropped; empty where not installed."""
    found = {name: next(iter(importlib.metadata.distributions(name=name)), None) for name in (*WORKER_PACKAGES, *OPTIONAL_PACKAGES)}
    versions = {name: "" if entry is None else entry.version.partition("+")[0] for name, entry in found.items()}
    return {"python": ".".join(platform.python_version_tuple()[:2]), **versions}


def node_problem(expected: Expected) -> str:
    """Return in one sentence why this node can't run trials, or "" if it can."""
    present = present_versions()
    for name, version in expected.versions:
        if present.get(name, "") != version and (version or name not in OPTIONAL_PACKAGES):
            return f"{name} is {present.get(name) or 'not installed'}; the driver has {version}"
    if not expected.is_shared:
        return f"--out {expected.out} is not the driver's folder here; accepted: a folder that all nodes share"
    return ""


def data_problem(data: DataConfig, data_dir: Path | None) -> str:
    """Return in one sentence why the data set can't be read here, or ""."""
    from hsakd.data import check_dataset

    try:
        check_dataset(data, data_dir)
    except (ValueError, KeyError, OSError) as error:
        return str(error.args[0]) if error.args else repr(error)
    return ""
