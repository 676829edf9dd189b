"""The image files that the arguments of ``predict`` name: files, folders, and lists on standard input."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import IO, Iterator, Sequence

from multitrainer.images import EXTENSIONS

from ..data.layout import is_hidden
from ..errors import UserError
from ..output import escape

_CHUNK = 2**16  # bytes


class Skipped:
    """What was not predicted: what was left out of folders, and what could not be read, which is reported at once."""

    def __init__(self) -> None:
        self.hidden = self.others = self.failures = 0

    def report(self, path: str, error: Exception) -> None:
        """Print why an image or a folder cannot be read."""
        self.failures += 1
        message = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if message.startswith(f"{path}: "):
            message = message[len(path) + 2 :]
        print(f"multitrainer: error: {escape(path)}: {escape(' '.join(message.split()))}", file=sys.stderr)

    def describe_left_out(self) -> str:
        """Return how many files were left out of folders, or an empty text."""
        counts = (self.hidden, "hidden"), (self.others, f"not called like an image ({', '.join(EXTENSIONS)})")
        return " and ".join(f"{count} {what}" for count, what in counts if count)


def find_images(arguments: Sequence[str], null: bool, skipped: Skipped) -> Iterator[str]:
    """Return an iterator over the paths of all images, which does not hold them all.

    Parameters
    ----------
    arguments : sequence of str
        Files, folders, and ``-`` for a list of files and folders on standard input.
    null : bool
        Whether the paths of that list end in a NUL byte, not in a newline.
    skipped : Skipped
        Gets what is left out of folders, and folders that cannot be read or hold no image.

    Raises
    ------
    UserError
        If standard input is named twice, or `null` has no use. The iterator raises it if a path holds a NUL byte.
    """
    if arguments.count("-") > 1:
        raise UserError("- is given twice, but standard input can be read only once")
    if null and "-" not in arguments:
        raise UserError("--null can only be used with -, the list of paths on standard input")
    return _find(arguments, null, skipped)


def _find(arguments: Sequence[str], null: bool, skipped: Skipped) -> Iterator[str]:
    for argument in arguments:
        for path in _read_list(sys.stdin.buffer, null) if argument == "-" else [argument]:
            yield from _find_below(path, skipped) if os.path.isdir(path) else [path]


def _read_list(file: IO[bytes], null: bool) -> Iterator[str]:
    """Yield the paths of a list as soon as each is complete."""
    for line in _split_at_null(file) if null else file:
        path = line.rstrip(b"\n") if not null else line
        if b"\0" in path:
            raise UserError("the list of paths on standard input holds a NUL byte; add --null if its paths end in one")
        if path:
            yield os.fsdecode(path)


def _split_at_null(file: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while True:
        chunk = file.read1(_CHUNK)  # type: ignore[attr-defined]  # returns what there is, without waiting for more
        if not chunk:
            break
        *paths, rest = (rest + chunk).split(b"\0")
        yield from paths
    yield rest


def _find_below(folder: str, skipped: Skipped) -> Iterator[str]:
    found = False
    for path in _walk(folder, skipped, ()):
        found = True
        yield path
    if not found:
        skipped.report(folder, ValueError("a folder without images"))


def _walk(folder: str, skipped: Skipped, parents: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yield the images below a folder; a link to a folder that contains it is not followed."""
    try:
        status = os.stat(folder)
        names = sorted(os.listdir(folder))
    except OSError as error:
        skipped.report(folder, error)
        return
    identity = status.st_dev, status.st_ino
    if identity in parents:
        return
    for name in names:
        path = os.path.join(folder, name)
        if is_hidden(Path(name)):
            skipped.hidden += 1
        elif os.path.isdir(path):
            yield from _walk(path, skipped, (*parents, identity))
        elif name.lower().endswith(EXTENSIONS) and not _is_special(path):
            yield path
        else:
            skipped.others += 1


def _is_special(path: str) -> bool:
    """Return whether reading would wait for another process (a pipe, a socket). A broken link is read, and reported."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
