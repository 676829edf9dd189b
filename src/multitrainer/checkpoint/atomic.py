"""Write a file atomically: under a temporary name in the same folder first, then moved into place."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Iterator


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Create a temporary file, which replaces `path` if the block succeeds and is removed if it fails.

    If the process or the machine stops at any time, `path` holds either its old content or all of the new content. If
    several processes save at once, the last one wins. A replaced file keeps its mode and owner. A process that is
    killed inside the block may leave the temporary file behind; its name begins with a dot and ends with ``.tmp``.

    Raises
    ------
    OSError
        If the file cannot be written (a full disk, no permission), or `path` exists and is not a regular file.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    real = Path(os.path.realpath(str(path)))  # so that a symbolic link stays a link
    before = real.stat() if real.exists() else None
    temporary = _create_temporary(real, path, 0o666 if before is None else 0o600)
    try:
        yield temporary
        # A full disk may show only now, when the system writes out its buffers.
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


def _create_temporary(beside: Path, reported_as: Path, mode: int) -> Path:
    """Create an empty file that no other process uses; errors name the path that the user gave."""
    # Random: threads share a process, and machines that share a volume may have processes of equal number. Short: 40
    # characters of four bytes leave room for the rest in the 255 bytes that a name may have.
    path = beside.with_name(f".{beside.name[:40]}.{os.urandom(8).hex()}.tmp")
    try:
        os.close(os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), str(reported_as)) from error
    return path


def _flush_folder(folder: Path) -> None:
    """Write the move itself to disk, on file systems that can flush a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(str(folder), os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
