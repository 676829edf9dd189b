"""The options of every training: learning rate, optimizer, length, and how the rate changes over the epochs."""

from __future__ import annotations

import argparse

from . import defaults
from .values import epoch_count, learning_rate, name, non_negative_float, positive_int, weight_decay

SCHEDULES = ("constant", "step", "cosine", "poly")
STEPS, FACTOR = (0.5, 0.75), 0.1  # shares of the epochs, as in GluonCV's training scripts for CIFAR
POWER = 2


def add_training_arguments(parser: argparse.ArgumentParser, epochs: str, digits_batch_size: int | None = None) -> None:
    """Add the options of every training; `epochs` and `digits_batch_size` are for the help text."""
    help_text = "learning rate (default: the optimizer's own, 0.01 for sgd)"
    parser.add_argument("--lr", type=learning_rate, help=help_text)
    add_optimizer_arguments(parser)
    add_length_arguments(parser, epochs, digits_batch_size)


def add_optimizer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --wd and --optimizer to a parser."""
    add = parser.add_argument
    add("--wd", type=weight_decay, help="weight decay (default 0.0001; 0.01 for adamw)")
    add(
        "--optimizer",
        metavar="NAME",
        type=name,
        help="any MXNet optimizer, or adamw (default sgd; momentum 0.9 if it has one)",
    )


def add_length_arguments(parser: argparse.ArgumentParser, epochs: str, digits_batch_size: int | None = None) -> None:
    """Add --epochs and --batch-size to a parser."""
    add = parser.add_argument
    add("--epochs", type=epoch_count, help=f"number of epochs ({epochs})")
    of_digits = "" if digits_batch_size is None else f"; {digits_batch_size} for the digits"
    add(
        "--batch-size",
        type=positive_int,
        help=f"images in a batch, over all devices and ranks (default {defaults.BATCH_SIZE}{of_digits})",
    )


def add_schedule_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --lr-schedule and --warmup to a parser."""
    parser.add_argument(
        "--lr-schedule",
        choices=SCHEDULES,
        help=f"how --lr changes over the epochs: constant (default); step, times {FACTOR:g} after {STEPS[0]:.0%} and "
        f"{STEPS[1]:.0%} of them; cosine or poly (power {POWER}), down to 0".replace("%", "%%"),
    )
    parser.add_argument(
        "--warmup",
        metavar="EPOCHS",
        type=non_negative_float,
        help="let --lr rise from 0 during this many epochs (default 0)",
    )
