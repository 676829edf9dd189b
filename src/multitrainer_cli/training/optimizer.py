"""The optimizer that the options ask for."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import mxnet as mx

from multitrainer.groups.targets import closest_names

from ..errors import UserError

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
UNUSABLE = ("groupadagrad", "test")  # registered, but for sparse embeddings and for MXNet's own tests


class OptimizerChoice(NamedTuple):
    """The name of an optimizer and the settings to make it with."""

    name: str
    settings: dict[str, Any]


def parse_optimizer(name: str | None, lr: float | None, wd: float | None) -> OptimizerChoice:
    """Choose an optimizer, with momentum if it has one that is 0 by default, and a weight decay of its own if any."""
    registry = mx.optimizer.Optimizer.opt_registry
    name = (name or "sgd").lower()
    known = [each for each in registry if each not in UNUSABLE]
    if name not in known:
        closest = ", ".join(closest_names(name, known, 5))
        raise UserError(f"--optimizer {name}: MXNet has no such optimizer; closest: {closest}")
    if lr is not None and name == "adadelta":
        raise UserError(
            f"--lr {lr:g}: AdaDelta has no learning rate; leave the option out or choose another --optimizer"
        )
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


def default_rate(optimizer: str) -> float:
    """Return the learning rate of an optimizer that is given none."""
    parameter = inspect.signature(mx.optimizer.Optimizer.opt_registry[optimizer]).parameters.get("learning_rate")
    default = None if parameter is None else parameter.default
    return float(default) if isinstance(default, (int, float)) else 0.01  # mxnet/optimizer/optimizer.py
