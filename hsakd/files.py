"""How files come into being: whole or not at all; and what a system that refuses or has no room says."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # a person has to make room, or another folder


def is_passing(error: BaseException) -> bool:
    """Whether a file couldn't be read because the system refuses or fails, not because of what is in it: libraries give no errno then."""
    return isinstance(error, OSError) and error.errno is not None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in `path`'s folder that becomes `path` atomically when the block ends, and vanishes if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
