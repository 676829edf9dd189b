"""The ``multitrainer`` command: reads the command line and turns a user's mistake into one line and exit status 2."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn, Sequence

from . import finetune
from .errors import UserError

INTERRUPTED = 130  # what a shell reports for a program that SIGINT ended


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command, one subparser a subcommand."""
    parser = _Parser(prog="multitrainer", description="Parameter groups for MXNet Gluon, from the command line.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    finetune.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; those of this process by default.

    Returns
    -------
    int
        The exit status: 0, 2 after a user error, 130 after Ctrl-C.
    """
    try:
        args = build_parser().parse_args(argv)
        status: int = args.run(args)
    except KeyboardInterrupt:
        print("multitrainer: interrupted", file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        return _complain(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}")
    return status


def _complain(message: str) -> int:
    print("multitrainer: error:", " ".join(message.split()), file=sys.stderr)
    return 2
