"""The ``multitrainer`` command: reads the command line and turns a user's mistake into one line and exit status 2."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn, Sequence

from . import finetune, print_groups
from .errors import UserError, report


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)  # --over must not replace a run

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command, one subparser a subcommand."""
    parser = _Parser(prog="multitrainer", description="Parameter groups for MXNet Gluon, from the command line.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    finetune.add_parser(commands)
    print_groups.add_parser(commands)
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
        The exit status: 0, 2 after a user error, 130 after Ctrl-C; 1 where another rank of the run has ended early.
    """
    try:
        args = build_parser().parse_args(argv)
        status: int = args.run(args)
    except (KeyboardInterrupt, UserError, OSError) as error:
        return report(error)
    return status
