"""What parameter servers know about the optimizer: it is pickled to them once, and no later change reaches them."""

from __future__ import annotations

import numbers
from collections import Counter
from typing import Any, Iterable, Mapping, Sequence

from mxnet.gluon import Parameter
from mxnet.optimizer import Optimizer

from .._mxnet import NOT_STATE
from ..groups import FIELDS
from ..groups.targets import Multiplier
from .name_table import FILLED_ATTRIBUTE

_CURE = (
    "let the workers update: a synchronous kvstore such as 'dist_sync', dense weights and gradients, "
    "update_on_kvstore=False"
)
_COMPARED_BY_VALUE = (numbers.Number, str, tuple)


class NoServers:
    """No parameter server holds the optimizer, so every change takes effect."""

    def check(self, field: str, multipliers: Mapping[Parameter, Multiplier]) -> None:
        """Raise a RuntimeError if a multiplier cannot reach the servers."""

    def check_schedules(self, schedules: Mapping[Parameter, Multiplier]) -> None:
        """Raise a RuntimeError if a multiplier is a schedule, whose values cannot reach the servers."""

    def check_learning_rate(self, lr: float) -> None:
        """Raise a RuntimeError if a learning rate cannot reach the servers."""

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Raise a RuntimeError if a setting of the optimizer differs from the one that the servers have."""

    def count_update(self, trained: Iterable[Parameter]) -> None:
        """Count an update in which the servers get the gradients of ``trained``."""


class ServerSnapshot(NoServers):
    """The multipliers and the settings that the servers got with the optimizer.

    Parameters
    ----------
    params : sequence of Parameter
        With the multipliers they have when the optimizer is sent.
    optimizer : Optimizer
        As it is sent.
    """

    def __init__(self, params: Sequence[Parameter], optimizer: Optimizer) -> None:
        self._sent = {field: {param: getattr(param, field) for param in params} for field in FIELDS}
        self._settings = _settings(optimizer)
        self._updates = 0
        self._pushed: Counter[Parameter] = Counter()

    def check(self, field: str, multipliers: Mapping[Parameter, Multiplier]) -> None:
        """Raise a RuntimeError if a multiplier cannot reach the servers. A frozen Parameter is not pushed: 0 can."""
        for param, value in multipliers.items():
            sent = self._sent[field][param]
            if not (value == sent or (field == "lr_mult" and value == 0)):
                raise _unreachable(f"{field} {value!r} of Parameter {param.name!r}", sent)

    def check_schedules(self, schedules: Mapping[Parameter, Multiplier]) -> None:
        """Raise a RuntimeError if a multiplier is a schedule, whose values cannot reach the servers."""
        for param, multiplier in schedules.items():
            if callable(multiplier):
                raise RuntimeError(
                    f"the schedule of Parameter {param.name!r} cannot act if parameter servers update: they got the "
                    f"optimizer once, before the first step. {_CURE[0].upper()}{_CURE[1:]}"
                )

    def check_learning_rate(self, lr: float) -> None:
        """Raise a RuntimeError if a learning rate differs from the one that the servers have."""
        if lr != self._settings["lr"]:
            raise _unreachable(f"lr {lr!r} of the optimizer", self._settings["lr"])

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Raise a RuntimeError if a setting of the optimizer differs from the one that the servers have."""
        now = _settings(optimizer)
        for name in {**self._settings, **now}:
            value, sent = now.get(name), self._settings.get(name)
            # An object, such as an lr_scheduler, counts as changed if it was replaced.
            if not (value is sent or (isinstance(value, _COMPARED_BY_VALUE) and value == sent)):
                raise _unreachable(f"{name} {value!r} of the optimizer", sent)

    def count_update(self, trained: Iterable[Parameter]) -> None:
        """Count an update in which the servers get the gradients of ``trained``.

        Raises
        ------
        RuntimeError
            If the servers' lr_scheduler would fall behind: it goes by the Parameter with the most updates, and the
            servers know of no others.
        """
        if self._settings["lr_scheduler"] is None:
            return
        pushed = self._pushed + Counter(trained)
        if max(pushed.values(), default=0) <= self._updates:
            raise RuntimeError(
                f"the lr_scheduler on the parameter servers would fall behind at update {self._updates + 1}: it counts "
                "the updates of single Parameters, and every one of them was frozen in some update. Let one Parameter "
                "train all the time, or let the workers update: update_on_kvstore=False"
            )
        self._updates, self._pushed = self._updates + 1, pushed


def _settings(optimizer: Optimizer) -> dict[str, Any]:
    ignored = (NOT_STATE - {"lr_scheduler"}) | {FILLED_ATTRIBUTE}
    return {name: value for name, value in vars(optimizer).items() if name not in ignored}


def _unreachable(what: str, sent: Any) -> RuntimeError:
    return RuntimeError(
        f"{what} cannot reach the parameter servers: they update, and got the optimizer before the first step, with "
        f"{sent!r}. Set it before that, or {_CURE}"
    )
