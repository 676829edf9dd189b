"""The ``multitrainer`` command: it parses the command line, and prints an error of the user as one line.

Each subcommand has a module here, with its parser in ``arguments``; the rooms hold what subcommands share. The command
is a package of its own, and not a part of the library: whatever imports ``multitrainer`` imports MXNet, which takes
seconds, and ``--help`` need not wait for it.
"""

from __future__ import annotations

import argparse
import importlib
from importlib import metadata
from typing import Any, NoReturn, Sequence

from . import arguments
from .errors import UserError, report_error


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)  # or --over would replace a run

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command, with one subparser for each subcommand."""
    parser = _Parser(prog="multitrainer", description="Parameter groups for MXNet Gluon, from the command line.")
    parser.add_argument("--version", action=_PrintVersions, nargs=0, help="print the versions and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    for name in arguments.SUBCOMMANDS:
        importlib.import_module(f".arguments.{name}", __name__).add_parser(commands)
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
        subcommand = importlib.import_module(f".{args.command}", __name__)
        status: int = subcommand.run(args)
    except (KeyboardInterrupt, UserError, OSError) as error:
        return report_error(error)
    return status


def _describe_version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} is not installed"


class _PrintVersions(argparse.Action):
    """Prints the versions of the packages that decide what the command does, without importing them."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print("\n".join(map(_describe_version, ("multitrainer", "mxnet", "gluoncv", "numpy"))))
        parser.exit()
