"""What options of the command line mean: devices, optimizers, multipliers and numbers within bounds."""

from __future__ import annotations

import argparse
import inspect
import re
from typing import Any

import mxnet as mx

from .errors import UserError, closest

MOMENTUM = 0.9
UNUSABLE = ("groupadagrad", "test")  # registered, but for sparse embeddings and for MXNet's own tests


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
        raise UserError(f"--optimizer {name}: MXNet has no such optimizer; closest: {closest(name, known)}")
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


def whole(text: str) -> int:
    """Read a whole number of at least 0."""
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text}")
    return value


def _fail() -> str:
    raise ValueError
