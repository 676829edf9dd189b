"""Text on standard output that is never ambiguous, and an output that nobody reads any more."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator

CLOSED_PIPE = 128 + signal.SIGPIPE  # what a shell reports for a program that SIGPIPE ended


def escape(text: str) -> str:
    r"""Return text on one line, with backslashes and whatever cannot be printed escaped as in Python.

    Bytes of a file name that are not in UTF-8 are escaped as the lone surrogates that Python reads them as. No two
    texts give the same result.

    Examples
    --------
    >>> print(escape("a\tb\\c é " + os.fsdecode(b"\xe9")))
    a\tb\\c é \udce9
    """
    return "".join(
        each if each.isprintable() and each != "\\" else each.encode("unicode_escape").decode() for each in text
    )


@contextlib.contextmanager
def unencodable_escaped() -> Iterator[None]:
    """Print what the encoding of standard output does not have as escapes, as long as the block runs."""
    output = sys.stdout
    if isinstance(output, io.TextIOWrapper):  # not what a program that calls `main` may have put there
        errors, change = output.errors, output.reconfigure
        change(errors="backslashreplace")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it is reported already
                change(errors=errors)
    else:
        yield


def reader_has_gone() -> bool:
    """Return whether standard output is a pipe that nobody reads any more; a socket can break as well."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def discard_output() -> int:
    """Discard what is left for standard output, because its reader has gone, and return the exit status for that."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return CLOSED_PIPE
