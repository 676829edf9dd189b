"""Refuse a multiplier that the optimizer would not apply."""

from __future__ import annotations

from typing import Any, Mapping

from mxnet.gluon import Parameter
from mxnet.optimizer import Optimizer

from .._mxnet.multiplier_support import supports_multiplier
from ..groups.targets import Multiplier


def optimizer_class(optimizer: Any) -> type:
    """Return the class of an optimizer given as `gluon.Trainer` takes it; unknown names are left to MXNet's error."""
    if isinstance(optimizer, Optimizer):
        return type(optimizer)
    return Optimizer.opt_registry.get(str(optimizer).lower(), Optimizer)


def updates_before(optimizer: Any, optimizer_params: Mapping[str, Any] | None) -> int:
    """Return ``num_update`` of an optimizer that may not have been made yet."""
    if isinstance(optimizer, Optimizer):
        return optimizer.num_update
    return (optimizer_params or {}).get("begin_num_update", 0)


def check_supported(optimizer: type, field: str, multipliers: Mapping[Parameter, Multiplier]) -> None:
    """Raise a ValueError if the class ``optimizer`` never asks for a multiplier that would have to act.

    0 asks nothing of it, for that freezes, nor does 1; a schedule is looked at update by update.
    """
    for param, value in multipliers.items() if not supports_multiplier(optimizer, field) else ():
        if not (callable(value) or value in (0, 1)):
            raise ValueError(
                f"{field} {value!r} of Parameter {param.name!r} would have no effect: {optimizer.__name__} never asks "
                "for it. Use 0 or 1, or another optimizer"
            )
