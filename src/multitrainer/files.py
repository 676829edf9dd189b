"""A file is complete or it is not there: it is written beside its place, then moved."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Iterator


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file in the same folder, moved to `path` when the block ends well and removed when not.

    Whenever the process or the machine stops, `path` holds what it held before or all of the new file. Stopped before
    its end, the process may leave the temporary file behind, whose name begins with a dot.

    Raises
    ------
    OSError
        Where it cannot be written (a full disk, no permission), or `path` is something else than a file.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    path = Path(os.path.realpath(str(path)))  # a link goes on pointing to the file
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        # A full disk may show only now, when the system writes out what it has buffered.
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _flush_folder(folder: Path) -> None:
    """Make the move last, too; where a file system cannot do that for a folder, it has its own ways."""
    with contextlib.suppress(OSError):
        handle = os.open(str(folder), os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
