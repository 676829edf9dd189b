"""`ParamGroup`: Parameters that share multipliers, and may have an optimizer of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mxnet.gluon import Block
from mxnet.optimizer import Optimizer

from .targets import Description, Multiplier, Where, check_multiplier, describe

FIELDS = ("lr_mult", "wd_mult")


class OptimizerChoice(NamedTuple):
    """The optimizer that a group asks for, as it was written."""

    optimizer: str | Optimizer | None  # None: the class of the trainer's own optimizer
    params: dict[str, Any]

    def __repr__(self) -> str:
        optimizer = type(self.optimizer).__name__ if isinstance(self.optimizer, Optimizer) else repr(self.optimizer)
        return f"{optimizer} with {self.params}" if self.params else optimizer


class ParamGroup:
    """Parameters that share multipliers, and may have an optimizer of their own.

    Parameters
    ----------
    params : target
        A Block, a ParameterDict, a dict of name to Parameter, a Parameter, or a list of these.
    lr_mult, wd_mult : float or callable, optional
        The factor of the learning rate and of the weight decay: a finite number >= 0, or a schedule, a callable
        ``num_update -> number``. None keeps the multiplier that each Parameter has.
    name : str, optional
        The name in tables and logs. By default it is made from the target.
    optimizer : str or mxnet.optimizer.Optimizer, optional
        An optimizer of the group's own, as `gluon.Trainer` takes it. None leaves the Parameters to the trainer's.
    optimizer_params : dict, optional
        The settings of the group's own optimizer. Without ``optimizer``, the group gets an optimizer of the trainer's
        class with the trainer's settings, of which these replace some.

    Raises
    ------
    TypeError, ValueError
        If a multiplier is not a finite number >= 0 or a schedule, the name is not a str, or ``optimizer`` and
        ``optimizer_params`` are not what `gluon.Trainer` takes.

    Examples
    --------
    >>> from mxnet.gluon import nn
    >>> from multitrainer import ParamGroup
    >>> ParamGroup(nn.Dense(2, prefix='head_'), lr_mult=10, wd_mult=0, name='head')
    ParamGroup(Dense 'head', lr_mult=10.0, wd_mult=0.0, name='head')
    >>> ParamGroup(nn.Dense(2, prefix='head_'), optimizer='adam', optimizer_params={'learning_rate': 0.001})
    ParamGroup(Dense 'head', optimizer='adam' with {'learning_rate': 0.001})
    """

    __slots__ = ("lr_mult", "name", "optimizer", "optimizer_params", "params", "root", "wd_mult")

    def __init__(
        self,
        params: Any,
        lr_mult: Multiplier | None = None,
        wd_mult: Multiplier | None = None,
        name: str | None = None,
        optimizer: str | Optimizer | None = None,
        optimizer_params: Mapping[str, Any] | None = None,
    ) -> None:
        if name is not None and not (isinstance(name, str) and name):
            raise TypeError(f"name of a ParamGroup must be a non-empty str, got {name!r}")
        where = Description("ParamGroup({})", params)
        self.params = params
        self.lr_mult = None if lr_mult is None else check_multiplier(lr_mult, where, "lr_mult of {}")
        self.wd_mult = None if wd_mult is None else check_multiplier(wd_mult, where, "wd_mult of {}")
        self.name = name
        _check_optimizer(optimizer, optimizer_params, where)
        self.optimizer = optimizer
        self.optimizer_params = None if optimizer_params is None else dict(optimizer_params)
        self.root: Block | None = None

    @property
    def optimizer_choice(self) -> OptimizerChoice | None:
        """The optimizer of the group's own, or None if it leaves its Parameters to the trainer's."""
        if self.optimizer is None and self.optimizer_params is None:
            return None
        optimizer = self.optimizer.lower() if isinstance(self.optimizer, str) else self.optimizer
        return OptimizerChoice(optimizer, self.optimizer_params or {})

    @classmethod
    def _in_network(cls, root: Block | None, *args: Any, **kwargs: Any) -> ParamGroup:
        """Make a group of a part of ``root``, a network that the trainer then treats as if the user had named it."""
        group = cls(*args, **kwargs)
        group.root = root
        return group

    def __repr__(self) -> str:
        given = [f"{key}={getattr(self, key)!r}" for key in (*FIELDS, "name") if getattr(self, key) is not None]
        if self.optimizer_choice is not None:
            given.append(f"optimizer={self.optimizer_choice!r}")
        return f"ParamGroup({', '.join([describe(self.params), *given])})"


def _check_optimizer(optimizer: Any, optimizer_params: Any, where: Where) -> None:
    """Raise a TypeError or ValueError if these are not what `gluon.Trainer` takes."""
    if not (optimizer is None or isinstance(optimizer, Optimizer) or (isinstance(optimizer, str) and optimizer)):
        raise TypeError(
            f"optimizer of {where} must be the name of an optimizer, such as 'adam', or an mxnet.optimizer.Optimizer, "
            f"got {optimizer!r}"
        )
    if optimizer_params is None:
        return
    if not (isinstance(optimizer_params, Mapping) and all(isinstance(key, str) for key in optimizer_params)):
        raise TypeError(f"optimizer_params of {where} must be a dict of setting to value, got {optimizer_params!r}")
    if isinstance(optimizer, Optimizer):
        raise ValueError(
            f"optimizer_params of {where}: its {type(optimizer).__name__} object has its settings already; give the "
            "name of the optimizer instead of an object, or set them on the object"
        )
