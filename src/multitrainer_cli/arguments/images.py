"""The options that divide the images of --data."""

from __future__ import annotations

import argparse

from . import defaults
from .values import proper_fraction


def add_split_argument(parser: argparse.ArgumentParser) -> None:
    """Add --val-split to a parser."""
    parser.add_argument(
        "--val-split",
        metavar="FRACTION",
        type=proper_fraction,
        help="set this share of the images of every class aside to validate on, if --data has no val/ "
        f"(default {defaults.VAL_SPLIT:g})",
    )
