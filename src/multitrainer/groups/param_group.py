"""`ParamGroup`: Parameters that share multipliers."""

from __future__ import annotations

from typing import Any

from mxnet.gluon import Block

from .targets import Multiplier, check_multiplier, describe

FIELDS = ("lr_mult", "wd_mult")


class ParamGroup:
    """Parameters that share multipliers.

    Parameters
    ----------
    params : target
        A Block, a ParameterDict, a dict of name to Parameter, a Parameter, or a list of these.
    lr_mult, wd_mult : float or callable, optional
        The factor of the learning rate and of the weight decay: a finite number >= 0, or a schedule, a callable
        ``num_update -> number``. None keeps the multiplier that each Parameter has.
    name : str, optional
        The name in tables and logs. By default it is made from the target.

    Raises
    ------
    TypeError, ValueError
        If a multiplier is not a finite number >= 0 or a schedule, or the name is not a str.

    Examples
    --------
    >>> from mxnet.gluon import nn
    >>> from multitrainer import ParamGroup
    >>> ParamGroup(nn.Dense(2, prefix='head_'), lr_mult=10, wd_mult=0, name='head')
    ParamGroup(Dense 'head', lr_mult=10.0, wd_mult=0.0, name='head')
    """

    __slots__ = ("lr_mult", "name", "params", "root", "wd_mult")

    def __init__(
        self,
        params: Any,
        lr_mult: Multiplier | None = None,
        wd_mult: Multiplier | None = None,
        name: str | None = None,
    ) -> None:
        if name is not None and not (isinstance(name, str) and name):
            raise TypeError(f"name of a ParamGroup must be a non-empty str, got {name!r}")
        where = f"ParamGroup({describe(params)})"
        self.params = params
        self.lr_mult = None if lr_mult is None else check_multiplier(lr_mult, f"lr_mult of {where}")
        self.wd_mult = None if wd_mult is None else check_multiplier(wd_mult, f"wd_mult of {where}")
        self.name = name
        self.root: Block | None = None

    @classmethod
    def _in_network(cls, root: Block | None, *args: Any, **kwargs: Any) -> ParamGroup:
        """Make a group of a part of ``root``, a network that the trainer then treats as if the user had named it."""
        group = cls(*args, **kwargs)
        group.root = root
        return group

    def __repr__(self) -> str:
        given = [f"{key}={getattr(self, key)!r}" for key in (*FIELDS, "name") if getattr(self, key) is not None]
        return f"ParamGroup({', '.join([describe(self.params), *given])})"
