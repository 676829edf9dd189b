"""What every subcommand needs to say that something is wrong or missing."""

from __future__ import annotations

import importlib
import sys
import traceback
import warnings
from typing import Any


class UserError(ValueError):
    """Something the user can put right; the command prints it as one line."""


INTERRUPTED = 130  # what a shell reports for a program that SIGINT ended


def report(error: BaseException, who: str = "") -> int:
    """Print what ended the command, on standard error, and return its exit status.

    Parameters
    ----------
    error : BaseException
        A user's mistake and a file that cannot be had become one line; what nobody foresaw, a traceback.
    who : str
        Begins the line.
    """
    if isinstance(error, KeyboardInterrupt):
        print(f"multitrainer: {who}interrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, UserError):
        message = str(error)
    elif isinstance(error, OSError):
        message = (f"{error.filename}: " if error.filename else "") + str(error.strerror or error)
    else:
        traceback.print_exception(type(error), error, error.__traceback__)
        return 1
    print(f"multitrainer: error: {who}{' '.join(message.split())}", file=sys.stderr)
    return 2


def require(module: str) -> Any:
    """Import a module of the ``finetune`` extra.

    Parameters
    ----------
    module : str
        The dotted name to import.

    Raises
    ------
    UserError
        Where its package is not installed, naming the extra that brings it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{module.split('.')[0]} cannot be imported ({error}); install what this command needs: "
            "pip install 'multitrainer[finetune]'"
        ) from error
