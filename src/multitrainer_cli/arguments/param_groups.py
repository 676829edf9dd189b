"""The options of parameter groups: --lr-mult, --freeze, --unfreeze-at and the recipes."""

from __future__ import annotations

import argparse

from .values import fraction, name

OPTIONS = ("lr_mult", "freeze", "layer_decay", "discriminative", "no_bias_decay", "unfreeze_at")


def add_group_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of parameter groups to a parser."""
    add = parser.add_argument
    add("--lr-mult", metavar="PATH=MULT", action="append", help="train this part at MULT times --lr (repeatable)")
    add("--freeze", metavar="PATH", type=name, action="append", help="do not train this part (repeatable)")
    recipes = parser.add_mutually_exclusive_group()
    recipes.add_argument(
        "--layer-decay",
        metavar="DECAY",
        type=fraction,
        help="train each layer at DECAY times the learning rate of the next one",
    )
    recipes.add_argument(
        "--discriminative",
        metavar="LO:HI",
        help="train the first stage at LO times --lr and the last one at HI times; the multipliers in between grow by "
        "equal factors",
    )
    add(
        "--no-bias-decay", action="store_true", default=None, help="no weight decay for biases and normalization layers"
    )
    add(
        "--unfreeze-at",
        metavar="[PATH=]EPOCH",
        action="append",
        help="freeze this part until EPOCH begins (repeatable); without PATH, everything but the last layer; with one "
        "EPOCH for each stage but the last, such as 2,4,6, stage by stage from the output down",
    )
