"""A file is complete or it is not there: it is written beside its place, then moved."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Iterator


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file in the same folder, moved to `path` when the block ends well and removed when not.

    Whenever the process or the machine stops, `path` holds what it held before or all of the new file; of several
    savers, the last one's. A file that is replaced keeps its mode and owner. If the process is stopped before the end,
    it may leave the temporary file behind, whose name begins with a dot and ends with ``.tmp``.

    Raises
    ------
    OSError
        If it cannot be written (a full disk, no permission), or `path` is something else than a file.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    real = Path(os.path.realpath(str(path)))  # a link goes on pointing to the file
    before = real.stat() if real.exists() else None
    temporary = _new_file(real, path, 0o666 if before is None else 0o600)
    try:
        yield temporary
        # A full disk may show only now, when the system writes out what it has buffered.
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if before is not None:
            with contextlib.suppress(OSError):  # only root can give a file to another user
                os.chown(temporary, before.st_uid, before.st_gid)
            os.chmod(temporary, stat.S_IMODE(before.st_mode))
        os.replace(temporary, real)
        _flush_folder(real.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _new_file(beside: Path, named: Path, mode: int) -> Path:
    """Make an empty file that no other saver uses, less the bits of the umask; return its path."""
    # Random: threads share a process, and machines that share a volume may have processes of equal number. Short: 40
    # characters of four bytes leave room for the rest in the 255 bytes that a name may have.
    path = beside.with_name(f".{beside.name[:40]}.{os.urandom(8).hex()}.tmp")
    try:
        os.close(os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), str(named)) from error
    return path


def _flush_folder(folder: Path) -> None:
    """Make the move last, too, on file systems that can flush a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(str(folder), os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
