"""The ``multitrainer`` command: it parses the command line, and prints an error of the user as one line.

Each subcommand has a module here, with its parser in ``arguments``; the rooms hold what subcommands share. The command
is a package of its own, and not a part of the library. MXNet takes seconds to import: ``--help`` need not wait for it,
and how many threads it starts is settled before.

Nothing is imported before `main` runs, which reports Ctrl-C as one line even while it imports.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Sequence


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command, with one subparser for each subcommand."""
    import importlib

    from . import arguments
    from .arguments.parser import Parser, PrintVersions

    parser = Parser(prog="multitrainer", description="Parameter groups for MXNet Gluon, from the command line.")
    parser.add_argument("--version", action=PrintVersions, nargs=0, help="print the versions and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
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
        The exit status: 0, or 2 after an error of the user, 130 after Ctrl-C, 141 if nobody reads what
        is printed any more, and 1 if another rank has ended early.
    """
    try:
        return _run(argv)
    except (KeyboardInterrupt, ValueError, OSError) as error:
        from .errors import UserError, report_error

        if isinstance(error, (KeyboardInterrupt, UserError, OSError)):
            return report_error(error)
        raise


def _run(argv: Sequence[str] | None) -> int:
    import sys

    from .cores import use_all_cores
    from .interrupts import import_whole, lost_interrupts_raised
    from .output import discard_output, reader_has_gone, unencodable_escaped

    args = build_parser().parse_args(argv)
    with lost_interrupts_raised(), unencodable_escaped():
        try:
            use_all_cores()
            status: int = import_whole(f"{__name__}.{args.command}").run(args)
            sys.stdout.flush()
        except BrokenPipeError:
            if not reader_has_gone():
                raise
            status = discard_output()
    return status
