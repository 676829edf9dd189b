"""Errors of the user, how the command reports them, and imports that may be missing."""

from __future__ import annotations

import contextlib
import sys
import traceback
import warnings
from typing import Any, Iterator

from .interrupts import import_whole


class UserError(ValueError):
    """An error that the user can fix; the command prints it as one line."""


@contextlib.contextmanager
def naming(option: str) -> Iterator[None]:
    """Turn a TypeError or a ValueError into a UserError that begins with an option and its value.

    Parameters
    ----------
    option : str
        As it was given, such as ``--layer-decay 0.5``.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UserError(f"{option}: {error}") from error


INTERRUPTED = 130  # what a shell reports for a program that SIGINT ended


def report_error(error: BaseException, prefix: str = "") -> int:
    """Print the error that ended the command to standard error, and return the exit status.

    Parameters
    ----------
    error : BaseException
        A UserError and an OSError are printed as one line, any other error as a traceback.
    prefix : str
        Printed before the message.
    """
    if isinstance(error, KeyboardInterrupt):
        print(f"multitrainer: {prefix}interrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, UserError):
        message = str(error)
    elif isinstance(error, OSError):
        message = (f"{error.filename}: " if error.filename else "") + str(error.strerror or error)
    else:
        traceback.print_exception(type(error), error, error.__traceback__)
        return 1
    print(f"multitrainer: error: {prefix}{' '.join(message.split())}", file=sys.stderr)
    return 2


def require(module: str, extra: str = "finetune") -> Any:
    """Import a module of an extra.

    Parameters
    ----------
    module : str
        The dotted name to import.
    extra : str, default 'finetune'
        The extra that installs its package.

    Raises
    ------
    UserError
        If its package cannot be imported; the message names the extra.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_whole(module)
    except ImportError as error:
        raise UserError(
            f"{module.split('.')[0]} cannot be imported ({error}); install what this command needs: "
            f"pip install 'multitrainer[{extra}]'"
        ) from error
