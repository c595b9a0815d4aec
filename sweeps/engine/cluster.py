"""A Ray of our own, or somebody's: how it is started, joined and left."""

import functools
import importlib
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from hsakd.temporary import delete_left_meeting_places
from sweeps.engine.options import EngineOptions, Unfit
from sweeps.packing import num_cores

OBJECT_STORE_BYTES = 100 * 2**20
ADDRESS_SECONDS = 20.0
RAY_STARTS = 3
DELETIONS = 50
LONGEST_ROOT = 20  # characters: 107 of a socket's path, less hsakd-PID-NAME/session_DATE_TIME_PID/sockets/plasma_store


def temporary_folder() -> Path:
    """Return a new folder that says whose it is, after deleting those of processes that were killed.

    Ray's sockets lie in it and a socket's path is at most 107 characters long, so a TMPDIR of more than
    `LONGEST_ROOT` characters gives way to /tmp or, where that can't be written, to /dev/shm.
    """
    roots = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/dev/shm")]
    root = next((root for root in roots if len(str(root)) <= LONGEST_ROOT and os.access(root, os.W_OK)), roots[0])
    delete_left_meeting_places()
    for folder in root.glob("hsakd-*"):
        owner = re.fullmatch(r"hsakd-(\d+)-\w+", folder.name)
        if owner is not None and not Path(f"/proc/{owner[1]}").exists():
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"hsakd-{os.getpid()}-", dir=root))


def delete_folder(folder: Path) -> None:
    """Delete what Ray has written; its last processes may still be at it for a moment."""
    for _ in range(DELETIONS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def package_folders() -> list[str]:
    """Return our three packages, as Ray carries them to nodes where they are not installed."""
    return [str(Path(str(importlib.import_module(name).__file__)).parent) for name in ("hsakd", "sweeps", "analysis")]


@contextmanager
def ray_cluster(options: EngineOptions, folder: Path) -> Iterator[None]:
    """Start a local Ray whose files are in `folder`, or join the one at `options.address`, our packages with us."""
    try:
        if options.address is not None:
            check_address(options.address)
            try:
                ray.init(
                    address=options.address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"py_modules": package_folders(), "excludes": ["**/__pycache__", "**/*.parquet"]},
                )
            except ConnectionError as error:
                raise Unfit(f"--address is {options.address}, but no Ray cluster was found; accepted: the head's HOST:PORT") from error
        else:
            start_ray(options, folder)
        yield
    finally:
        ray.shutdown()


@contextmanager
def groups_of_their_own() -> Iterator[None]:
    """Have Ray start its processes in process groups of their own.

    A SIGTERM to the driver's group (`timeout`, `srun`, systemd) would end them before the trials' checkpoints are written. Ray has no
    option for it; they end with the driver all the same.
    """
    services: Any = importlib.import_module("ray._private.services")
    popen = services.ConsolePopen
    services.ConsolePopen = functools.partial(popen, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def start_ray(options: EngineOptions, folder: Path) -> None:
    """Start a local Ray; on a machine so busy that its processes don't answer in time, up to `RAY_STARTS` times."""
    trials_at_once = options.packing.most_at_once(options.gpus)
    for starts_left in reversed(range(RAY_STARTS)):
        try:
            with groups_of_their_own():
                ray.init(
                    num_cpus=max(num_cores(), options.cpus_per_trial * trials_at_once),
                    include_dashboard=options.has_dashboard,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=str(folder),
                    num_gpus=None if options.gpus else 0,
                )
        except Exception as error:  # Ray raises plain ones
            ray.shutdown()
            if starts_left == 0:
                reason = str(error).strip().partition("\n")[0]
                raise Unfit(
                    f"Ray could not be started in {RAY_STARTS} attempts ({reason}); accepted: a machine with time for it"
                ) from error
        else:
            return


def check_address(address: str) -> None:
    """Refuse a HOST:PORT where nothing listens: Ray itself would try for many minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ADDRESS_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise Unfit(f"--address is {address}, where nothing answers ({error}); accepted: the HOST:PORT of a Ray cluster's head") from error
