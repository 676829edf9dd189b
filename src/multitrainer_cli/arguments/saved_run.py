"""The options of what uses a finished run: RUN, --weights, --ctx."""

from __future__ import annotations

import argparse

from . import defaults
from .values import utf8_path


def add_saved_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RUN, --weights and --ctx to a parser."""
    add = parser.add_argument
    add("run", metavar="RUN", type=utf8_path, help=f"the folder of the run, such as {defaults.RUN_FOLDER}")
    add(
        "--weights",
        choices=("best", "last"),
        default="best",
        help="those of the epoch with the best validation accuracy (default), or of the last one",
    )
    add("--ctx", metavar="CTX", help="cpu, gpu(0) or gpu(0),gpu(1) (default: gpu(0) if MXNet finds one)")
