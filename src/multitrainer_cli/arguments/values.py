"""The values of command line options: multipliers, epochs, paths, and numbers within bounds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Callable, Sequence

from ..errors import UserError


def parse_multiplier(text: str) -> tuple[str, float]:
    """Split ``PATH=MULT``."""
    path, _, value = text.rpartition("=")
    try:
        multiplier = float(value)
    except ValueError:
        path = ""
    if not path.strip():
        raise UserError(f"--lr-mult {text}: expected PATH=MULT, such as features=0.1")
    return path.strip(), multiplier


def parse_bounds(text: str) -> tuple[float, float]:
    """Split ``LO:HI``."""
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError as error:
        raise UserError(f"--discriminative {text}: expected LO:HI, such as 0.01:1") from error


def parse_unfreezing(texts: Sequence[str], epochs: int) -> list[tuple[str | None, list[int]]]:
    """Split each ``EPOCH``, ``EPOCH,EPOCH`` or ``PATH=EPOCH`` into a path, or None, and epochs.

    What has no path comes first, then the paths, each after those that contain it.
    """
    entries = [_parse_unfreezing(text, epochs) for text in texts]
    paths = [path for path, _ in entries]
    repeated = [path or "an EPOCH without PATH" for path in paths if paths.count(path) > 1]
    if repeated:
        raise UserError(f"--unfreeze-at: {repeated[0]} is given more than once; keep one of them")
    return sorted(entries, key=lambda entry: -1 if entry[0] is None else entry[0].count("."))


def _parse_unfreezing(text: str, epochs: int) -> tuple[str | None, list[int]]:
    path, equals, numbers = text.rpartition("=")
    try:
        chosen = [int(number) for number in numbers.split(",")]
    except ValueError as error:
        raise UserError(f"--unfreeze-at {text}: expected EPOCH, PATH=EPOCH or EPOCH,EPOCH,...") from error
    if equals and (not path.strip() or len(chosen) > 1):
        raise UserError(f"--unfreeze-at {text}: expected PATH=EPOCH, such as features.0=3")
    if epochs == 1:
        raise UserError(
            f"--unfreeze-at {text}: the run has one epoch, so nothing can be unfrozen later; raise --epochs"
        )
    if not all(1 < epoch <= epochs for epoch in chosen) or chosen != sorted(chosen):
        raise UserError(
            f"--unfreeze-at {text}: expected epochs from 2 to {epochs}, the last epoch of this run, in ascending order"
        )
    return (path.strip() if equals else None), chosen


def name(text: str) -> str:
    """Read a name; an empty one is refused, which an unset variable of the shell makes."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a name, got an empty one")
    return text


def utf8_path(text: str) -> Path:
    """Read the path of a file or folder."""
    name(text)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # neither MXNet nor JSON can hold such a name
        raise argparse.ArgumentTypeError(f"expected a name in UTF-8, got {text!r}; rename it") from error
    return Path(text)


def out_folder(text: str) -> Path:
    """Read the path of a folder that may have to be made; ``missing/../b`` is ``b``, and makes nothing else."""
    path = utf8_path(text)
    return path.resolve() if ".." in path.parts and not path.parent.exists() else path


def _number(kind: Callable[[str], Any], accepts: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """Return an argparse type for the numbers of a kind that `accepts` returns true for."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
        return value

    parse.__name__ = kind.__name__  # argparse prints it if the text is not a number
    return parse


epoch_count = _number(int, lambda value: 0 < value <= 10**6, "a whole number from 1 to 1000000")
positive_int = _number(int, lambda value: value > 0, "a number above 0")
positive_float = _number(float, lambda value: 0 < value < float("inf"), "a number above 0")
learning_rate = _number(float, lambda value: 1e-20 <= value <= 1e20, "a number from 1e-20 to 1e20")  # fits in float32
weight_decay = _number(float, lambda value: value == 0 or 1e-20 <= value <= 1e20, "0, or a number from 1e-20 to 1e20")
non_negative_int = _number(int, lambda value: 0 <= value < 2**31, "a whole number from 0 to 2147483647")
non_negative_float = _number(float, lambda value: 0 <= value < float("inf"), "a number of at least 0")
smoothing = _number(float, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")
mixup_alpha = _number(float, lambda value: value == 0 or 1e-3 <= value <= 1e3, "0, or a number from 0.001 to 1000")
fraction = _number(float, lambda value: 0 < value <= 1, "a number above 0 and at most 1")
proper_fraction = _number(float, lambda value: 0 < value < 1, "a number between 0 and 1")
input_side = _number(int, lambda value: 32 <= value <= 4096, "a whole number from 32 to 4096")
