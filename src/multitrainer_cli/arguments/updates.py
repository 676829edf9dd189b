"""The options of updates: --accumulate, --clip-grad and --ema."""

from __future__ import annotations

import argparse

from .values import positive_float, positive_int, proper_fraction

OPTIONS = ("accumulate", "clip_grad", "ema")


def add_accumulate_argument(parser: argparse.ArgumentParser) -> None:
    """Add --accumulate to a parser."""
    parser.add_argument(
        "--accumulate",
        metavar="N",
        type=positive_int,
        help="make one update with the gradients of N batches (default 1), for batches that do not fit into memory; "
        "the last update of an epoch has those that are left",
    )


def add_clip_argument(parser: argparse.ArgumentParser) -> None:
    """Add --clip-grad to a parser."""
    parser.add_argument(
        "--clip-grad",
        metavar="NORM",
        type=positive_float,
        help="scale the gradients of an update down to this norm, all together, if theirs is larger",
    )


def add_average_argument(parser: argparse._ActionsContainer) -> None:
    """Add --ema to a parser."""
    parser.add_argument(
        "--ema",
        metavar="DECAY",
        type=proper_fraction,
        help="measure and keep an exponential moving average of the weights, which goes back 1 / (1 - DECAY) updates, "
        "such as 0.99",
    )
