"""What options of the command line mean: devices, optimizers, multipliers and numbers within bounds."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from typing import Any, Sequence

import mxnet as mx

from ..groups.targets import closest_names
from .errors import UserError

MOMENTUM = 0.9
BATCH_SIZE = 32
UNUSABLE = ("groupadagrad", "test")  # registered, but for sparse embeddings and for MXNet's own tests


def add_training_arguments(parser: argparse.ArgumentParser, epochs: str, other_batch_size: int | None = None) -> None:
    """Add what every training is asked for; `epochs` says the default."""
    add = parser.add_argument
    add("--lr", type=positive(float), help="learning rate (default: the optimizer's own, 0.01 for sgd)")
    add("--wd", type=not_negative, help="weight decay (default 0.0001)")
    add("--optimizer", metavar="NAME", help="any MXNet optimizer (default sgd; momentum is 0.9 where it has one)")
    add("--epochs", type=positive(int), help=epochs)
    of_digits = "" if other_batch_size is None else f"; {other_batch_size} for the digits"
    add("--batch-size", type=positive(int), help=f"over all devices and ranks; default {BATCH_SIZE}{of_digits}")


def parse_contexts(text: str | None, local_rank: int = 0) -> list[mx.Context]:
    """Turn ``gpu(0),gpu(1)`` into contexts that exist; by default, each process of a machine has a GPU of its own."""
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


def parse_optimizer(name: str | None, lr: float | None, wd: float | None) -> tuple[str, dict[str, float]]:
    """Return an optimizer's name and settings."""
    registry = mx.optimizer.Optimizer.opt_registry
    name = (name or "sgd").lower()
    known = [each for each in registry if each not in UNUSABLE]
    if name not in known:
        closest = ", ".join(closest_names(name, known, 5))
        raise UserError(f"--optimizer {name}: MXNet has no such optimizer; closest: {closest}")
    settings = {"wd": 1e-4 if wd is None else wd}
    if lr is not None:
        settings["learning_rate"] = lr
    momentum = inspect.signature(registry[name]).parameters.get("momentum")
    # DCASGD's momentum fails in MXNet itself; Signum has one by default.
    if momentum is not None and momentum.default == 0 and name != "dcasgd":
        settings["momentum"] = MOMENTUM
    return name, settings


def parse_multiplier(text: str) -> tuple[str, float]:
    """Split ``PATH=MULT``."""
    path, equals, value = text.rpartition("=")
    try:
        return (path if equals else "").strip() or _fail(), float(value)
    except ValueError as error:
        raise UserError(f"--lr-mult {text}: expected PATH=MULT, such as features=0.1") from error


def parse_bounds(text: str) -> tuple[float, float]:
    """Split ``LO:HI``."""
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError as error:
        raise UserError(f"--discriminative {text}: expected LO:HI, such as 0.01:1") from error


def parse_unfreezing(texts: Sequence[str], epochs: int) -> list[tuple[str | None, list[int]]]:
    """Split ``EPOCH``, ``EPOCH,EPOCH`` and ``PATH=EPOCH``; no path comes first, a part after what contains it."""
    found: list[tuple[str | None, list[int]]] = []
    for text in texts:
        path, equals, numbers = text.rpartition("=")
        try:
            calendar = [int(number) for number in numbers.split(",")]
        except ValueError as error:
            raise UserError(f"--unfreeze-at {text}: expected EPOCH, PATH=EPOCH or EPOCH,EPOCH,...") from error
        if equals and (not path.strip() or len(calendar) > 1):
            raise UserError(f"--unfreeze-at {text}: expected PATH=EPOCH, such as features.0=3")
        if not all(1 < epoch <= epochs for epoch in calendar) or calendar != sorted(calendar):
            raise UserError(
                f"--unfreeze-at {text}: expected epochs from 2 to {epochs}, the last of this run, none before the other"
            )
        found.append((path.strip() if equals else None, calendar))
    paths = [path for path, _ in found]
    repeated = [path or "an EPOCH without PATH" for path in paths if paths.count(path) > 1]
    if repeated:
        raise UserError(f"--unfreeze-at: {repeated[0]} is given more than once; keep one of them")
    return sorted(found, key=lambda item: -1 if item[0] is None else item[0].count("."))


def utf8_path(text: str) -> Path:
    """Read the path of a file or folder."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a name from before UTF-8, which neither MXNet nor JSON can hold
        raise argparse.ArgumentTypeError(f"expected a name in UTF-8, got {text!r}; rename it") from error
    return Path(text)


def as_given(name: str, value: Any) -> str:
    """Return the text that a run's record keeps of an option: what follows its name on the command line."""
    return f" --{name.replace('_', '-')} ".join(map(str, value)) if isinstance(value, list) else str(value)


def positive(kind: Any) -> Any:
    """Return what argparse reads a number above 0 with."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def not_negative(text: str) -> float:
    """Read a number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return value


def share(text: str) -> float:
    """Read a number above 0, at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 1, got {text}")
    return value


def whole(text: str) -> int:
    """Read a whole number of at least 0."""
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text}")
    return value


def _fail() -> str:
    raise ValueError
