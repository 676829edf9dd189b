"""The parser of the command line, without the options of the subcommands."""

from __future__ import annotations

import argparse
from importlib import metadata
from typing import Any, NoReturn

from ..errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors, and that does not guess options from their beginnings."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)  # or --over would replace a run

    def error(self, message: str) -> NoReturn:
        """Raise a UserError."""
        raise UserError(f"{message} (see {self.prog} --help)")


class PrintVersions(argparse.Action):
    """Prints the versions of the packages that decide what the command does, without importing them."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print them, and exit."""
        print("\n".join(map(_describe_version, ("multitrainer", "mxnet", "gluoncv", "numpy"))))
        parser.exit()


def _describe_version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} is not installed"
