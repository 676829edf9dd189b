"""Refuse multipliers that the optimizer would not apply."""

from __future__ import annotations

from typing import Any, Mapping

from mxnet.gluon import Parameter
from mxnet.optimizer import Optimizer

from .._mxnet import supports_multiplier
from ..groups.targets import Multiplier


def optimizer_class(optimizer: Any) -> type:
    """Give the class of an optimizer written as `gluon.Trainer` takes it; MXNet itself refuses unknown names."""
    if isinstance(optimizer, Optimizer):
        return type(optimizer)
    return Optimizer.opt_registry.get(str(optimizer).lower(), Optimizer)


def check_supported(optimizer: type, field: str, multipliers: Mapping[Parameter, Multiplier]) -> None:
    """Raise a ValueError if the class ``optimizer`` never reads a multiplier that would have to act.

    0 and 1 need no support: 0 freezes, and 1 changes nothing. A schedule is checked update by update.
    """
    if supports_multiplier(optimizer, field):
        return
    for param, value in multipliers.items():
        if not (callable(value) or value in (0, 1)):
            raise ValueError(
                f"{field} {value!r} of Parameter {param.name!r} would have no effect: {optimizer.__name__} never asks "
                "for it. Use 0 or 1, or another optimizer"
            )
