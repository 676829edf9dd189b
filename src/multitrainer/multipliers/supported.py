"""Refuse multipliers that the optimizer would not apply."""

from __future__ import annotations

from typing import Mapping

from mxnet.gluon import Parameter

from .._mxnet import supports_multiplier
from ..groups.targets import Multiplier


def check_supported(
    optimizer: type, field: str, multipliers: Mapping[Parameter, Multiplier], group: str | None = None
) -> None:
    """Raise a ValueError if the class ``optimizer``, the trainer's or a group's, never reads a multiplier.

    0 and 1 need no support: 0 freezes, and 1 changes nothing. A schedule is checked update by update.
    """
    if supports_multiplier(optimizer, field):
        return
    for param, value in multipliers.items():
        if not (callable(value) or value in (0, 1)):
            owner = "" if group is None else f", the optimizer of group {group!r},"
            raise ValueError(
                f"{field} {value!r} of Parameter {param.name!r} would have no effect: {optimizer.__name__}{owner} "
                "never asks for it. Use 0 or 1, or another optimizer"
            )
