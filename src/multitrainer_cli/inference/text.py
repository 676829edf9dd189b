"""Text on standard output that is never ambiguous, and an output that nobody reads any more."""

from __future__ import annotations

import os
import signal
import sys

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


def write_line(line: str) -> None:
    """Print a line; what the encoding of standard output does not have is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))


def discard_output() -> int:
    """Discard what is left for standard output, because its reader has gone, and return the exit status for that."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return CLOSED_PIPE
