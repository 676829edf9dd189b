"""The values of command line options: devices, optimizers, multipliers, epochs, and numbers within bounds."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

import mxnet as mx

from ..groups.targets import closest_names
from .errors import UserError

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
BATCH_SIZE = 32
UNUSABLE = ("groupadagrad", "test")  # registered, but for sparse embeddings and for MXNet's own tests


class OptimizerChoice(NamedTuple):
    """The name of an optimizer and the settings to make it with."""

    name: str
    settings: dict[str, Any]


def parse_contexts(text: str | None, local_rank: int = 0) -> list[mx.Context]:
    """Turn ``gpu(0),gpu(1)`` into contexts that exist; by default, every process of a machine takes its own GPU."""
    count = mx.context.num_gpus()
    if text is None:
        return [mx.gpu(local_rank % count) if count else mx.cpu()]
    contexts = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(cpu|gpu)(?:\((\d+)\))?\s*", part)
        if match is None:
            raise UserError(f"--ctx {text}: expected cpu, gpu(0) or gpu(0),gpu(1), not {part.strip()!r}")
        kind, number = match.group(1), int(match.group(2) or 0)
        if kind == "gpu" and number >= count:
            raise UserError(
                f"--ctx {text}: MXNet sees {count} GPUs, so there is no gpu({number}); use --ctx cpu, or install "
                "an MXNet built for this machine's CUDA"
            )
        contexts.append(mx.Context(kind, number))
    if len(set(contexts)) < len(contexts):
        raise UserError(f"--ctx {text}: a device is named twice")
    return contexts


def parse_optimizer(name: str | None, lr: float | None, wd: float | None) -> OptimizerChoice:
    """Choose an optimizer, with momentum if it has one that is 0 by default, and a weight decay of its own if any."""
    registry = mx.optimizer.Optimizer.opt_registry
    name = (name or "sgd").lower()
    known = [each for each in registry if each not in UNUSABLE]
    if name not in known:
        closest = ", ".join(closest_names(name, known, 5))
        raise UserError(f"--optimizer {name}: MXNet has no such optimizer; closest: {closest}")
    parameters = inspect.signature(registry[name]).parameters
    default_wd = parameters["wd"].default if "wd" in parameters else WEIGHT_DECAY
    settings = {"wd": default_wd if wd is None else wd}
    if lr is not None:
        settings["learning_rate"] = lr
    momentum = parameters.get("momentum")
    # DCASGD's momentum fails in MXNet itself; Signum has one by default.
    if momentum is not None and momentum.default == 0 and name != "dcasgd":
        settings["momentum"] = MOMENTUM
    return OptimizerChoice(name, settings)


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
    if not all(1 < epoch <= epochs for epoch in chosen) or chosen != sorted(chosen):
        raise UserError(
            f"--unfreeze-at {text}: expected epochs from 2 to {epochs}, the last epoch of this run, in ascending order"
        )
    return (path.strip() if equals else None), chosen


def utf8_path(text: str) -> Path:
    """Read the path of a file or folder."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # neither MXNet nor JSON can hold such a name
        raise argparse.ArgumentTypeError(f"expected a name in UTF-8, got {text!r}; rename it") from error
    return Path(text)


def recorded_text(name: str, value: Any) -> str:
    """Return the text of an option in the record of a run: what follows its name on the command line."""
    return f" --{name.replace('_', '-')} ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(kind: Callable[[str], Any], accepts: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """Return an argparse type for the numbers of a kind that `accepts` returns true for."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
        return value

    parse.__name__ = kind.__name__  # argparse prints it if the text is not a number
    return parse


positive_int = _number(int, lambda value: value > 0, "a number above 0")
positive_float = _number(float, lambda value: 0 < value < float("inf"), "a number above 0")
non_negative_int = _number(int, lambda value: 0 <= value < 2**31, "a whole number of at least 0")
non_negative_float = _number(float, lambda value: 0 <= value < float("inf"), "a number of at least 0")
fraction = _number(float, lambda value: 0 < value <= 1, "a number above 0 and at most 1")


def add_training_arguments(parser: argparse.ArgumentParser, epochs: str, digits_batch_size: int | None = None) -> None:
    """Add the options of every training; `epochs` and `digits_batch_size` are for the help text."""
    add = parser.add_argument
    add("--lr", type=positive_float, help="learning rate (default: the optimizer's own, 0.01 for sgd)")
    add("--wd", type=non_negative_float, help="weight decay (default 0.0001; 0.01 for adamw)")
    add("--optimizer", metavar="NAME", help="any MXNet optimizer, or adamw (default sgd; momentum 0.9 if it has one)")
    add("--epochs", type=positive_int, help=f"number of epochs ({epochs})")
    of_digits = "" if digits_batch_size is None else f"; {digits_batch_size} for the digits"
    add(
        "--batch-size",
        type=positive_int,
        help=f"images in a batch, over all devices and ranks (default {BATCH_SIZE}{of_digits})",
    )
