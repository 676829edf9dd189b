"""The options of the network: --model, --input-size, --pretrained and --params."""

from __future__ import annotations

import argparse

from . import defaults
from .values import input_side, name, utf8_path


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --model, --input-size, --pretrained and --params to a parser."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        type=name,
        help=f"a GluonCV classifier (default {defaults.MODEL}, quick on a CPU, good on a GPU)",
    )
    parser.add_argument(
        "--input-size",
        metavar="N",
        type=input_side,
        help="train and validate on images of N x N pixels, if the network can take them (default: the size that its "
        "published weights were trained with, 224 for most)",
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--pretrained", action="store_true", default=None, help="start from GluonCV's published weights"
    )
    weights.add_argument("--params", metavar="FILE", type=utf8_path, help="start from the weights in this file")
