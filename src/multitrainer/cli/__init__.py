"""The ``multitrainer`` command: it parses the command line, and prints an error of the user as one line.

Each subcommand has a module here, and the rooms hold what they share. Nothing else in the package imports the command.
"""

from __future__ import annotations

import argparse
from typing import Any, NoReturn, Sequence

from . import finetune, print_groups
from .errors import UserError, report_error


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)  # or --over would replace a run

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command, with one subparser for each subcommand."""
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
        The arguments after the name of the program; by default, those of this process.

    Returns
    -------
    int
        The exit status: 0, or 2 after an error of the user, 130 after Ctrl-C, and 1 if another rank has ended early.
    """
    try:
        args = build_parser().parse_args(argv)
        status: int = args.run(args)
    except (KeyboardInterrupt, UserError, OSError) as error:
        return report_error(error)
    return status
