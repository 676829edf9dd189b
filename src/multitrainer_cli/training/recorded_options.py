"""The options of a run as its record keeps them: what they amount to, however they were spelled."""

from __future__ import annotations

import argparse
from typing import Any

from ..arguments import defaults
from ..arguments.loss import BALANCED, parse_class_weights
from ..arguments.values import parse_bounds, parse_multiplier, parse_unfreezing
from .network import input_size
from .optimizer import OptimizerChoice, default_rate, parse_optimizer


def recorded_options(args: argparse.Namespace, optimizer: OptimizerChoice) -> dict[str, str]:
    """Return the text of every option by name; two command lines that ask for the same run have the same texts.

    Defaults are filled in, except those that depend on another option: a learning rate and a weight decay that are the
    optimizer's own are ``None``. What can be repeated is sorted.

    Parameters
    ----------
    args : Namespace
        The parsed command line.
    optimizer : OptimizerChoice
        The optimizer that it asks for.

    Raises
    ------
    UserError
        If the value of an option cannot be parsed.
    """
    values = {**vars(args), **_effective_training(args, optimizer)}
    if args.data is not None:
        values.update(_effective_groups(args))
    return {name: _text(name, value) for name, value in sorted(values.items())}


def _effective_training(args: argparse.Namespace, optimizer: OptimizerChoice) -> dict[str, Any]:
    own = parse_optimizer(args.optimizer, None, None)
    on_digits = args.data is None
    rate = optimizer.settings.get("learning_rate")
    own_rate = None if on_digits else default_rate(optimizer.name)  # the digits have a rate of their own
    return {
        "optimizer": optimizer.name,
        "lr": None if rate == own_rate else rate,
        "wd": None if optimizer.settings["wd"] == own.settings["wd"] else optimizer.settings["wd"],
        "epochs": args.epochs or (defaults.DEMO_EPOCHS if on_digits else defaults.EPOCHS),
        "batch_size": args.batch_size or (defaults.DEMO_BATCH_SIZE if on_digits else defaults.BATCH_SIZE),
    }


def _effective_groups(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the options that only a run on a folder of images has."""
    epochs = args.epochs or defaults.EPOCHS
    unfreezing = parse_unfreezing(args.unfreeze_at or [], epochs)
    bounds = args.discriminative
    model = args.model or defaults.MODEL
    return {
        "val_split": args.val_split or defaults.VAL_SPLIT,
        "model": model.lower(),
        "input_size": args.input_size or input_size(model),
        "lr_schedule": args.lr_schedule or "constant",
        "warmup": args.warmup or None,
        "accumulate": None if args.accumulate == 1 else args.accumulate,
        "label_smoothing": args.label_smoothing or None,
        "mixup": args.mixup or None,
        "class_weights": _effective_class_weights(args.class_weights or []),
        "lr_mult": [f"{path}={multiplier}" for path, multiplier in map(parse_multiplier, args.lr_mult or [])],
        "freeze": args.freeze or [],
        "unfreeze_at": [(f"{path}=" if path else "") + ",".join(map(str, each)) for path, each in unfreezing],
        "discriminative": None if bounds is None else "{}:{}".format(*parse_bounds(bounds)),
    }


def _effective_class_weights(texts: list[str]) -> list[str]:
    weights = parse_class_weights(texts)
    if weights is None:
        return [BALANCED]
    return [f"{name}={weight}" for name, weight in weights.items() if weight != 1]  # classes without one count once


def _text(name: str, value: Any) -> str:
    """Return what follows the name of an option on the command line."""
    if isinstance(value, list):
        return f" --{name.replace('_', '-')} ".join(sorted(map(str, value))) or "None"
    return str(value)
