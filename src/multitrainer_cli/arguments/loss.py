"""The options of what is minimized: --label-smoothing, --mixup and --class-weights."""

from __future__ import annotations

import argparse
import math
from typing import Sequence

from ..errors import UserError
from .values import mixup_alpha, positive_int, smoothing

OPTIONS = ("label_smoothing", "mixup", "mixup_off_epoch", "class_weights")
BALANCED = "balanced"


def add_loss_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the options of what is minimized to a parser."""
    add = parser.add_argument
    add(
        "--label-smoothing",
        metavar="EPS",
        type=smoothing,
        help="give this part of every label to all classes evenly, such as 0.1 (default 0)",
    )
    add(
        "--mixup",
        metavar="ALPHA",
        type=mixup_alpha,
        help="train on sums of two images, with shares drawn from Beta(ALPHA, ALPHA), such as 0.2 (default 0: none)",
    )
    add("--mixup-off-epoch", metavar="N", type=positive_int, help="train the last N epochs without --mixup")
    add(
        "--class-weights",
        metavar="CLASS=W",
        action="append",
        help="count each image of this class W times in the loss (repeatable), or 'balanced': every class as much as "
        "any other, however many images it has",
    )


def parse_class_weights(texts: Sequence[str]) -> dict[str, float] | None:
    """Return the weights by class that ``CLASS=W`` names, or None if the text is ``balanced``."""
    if BALANCED in texts:
        if len(texts) > 1:
            others = ", ".join(text for text in texts if text != BALANCED) or BALANCED
            raise UserError(f"--class-weights balanced cannot be combined with {others}; keep one of them")
        return None
    weights: dict[str, float] = {}
    for text in texts:
        name, weight = _parse_class_weight(text)
        if name in weights:
            raise UserError(f"--class-weights {text}: {name} is given more than once; keep one of them")
        weights[name] = weight
    return weights


def has_class_weights(texts: Sequence[str]) -> bool:
    """Return whether a class counts otherwise than by default, once."""
    weights = parse_class_weights(texts)
    return weights is None or any(weight != 1 for weight in weights.values())


def _parse_class_weight(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        weight = float(value)
    except ValueError:
        name = ""
    if not name:
        raise UserError(f"--class-weights {text}: expected balanced, or CLASS=W such as cat=2")
    if not 0 <= weight < math.inf:
        raise UserError(f"--class-weights {text}: expected a finite number >= 0")
    return name, weight
