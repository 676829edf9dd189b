"""What parameter servers know about the optimizer."""

from __future__ import annotations

import numbers
from collections import Counter
from typing import Any, Iterable, Mapping, Sequence

from mxnet.gluon import Parameter
from mxnet.optimizer import Optimizer

from .._mxnet import NOT_STATE
from ..groups.param_group import FIELDS
from ..groups.targets import Multiplier
from .name_table import _FILLED


class ServerSnapshot:
    """What parameter servers were told: the optimizer was pickled to them once, and no later change follows it.

    Parameters
    ----------
    params : sequence of Parameter
        As they were then.
    optimizer : Optimizer
        As it was shipped.
    """

    def __init__(self, params: Sequence[Parameter], optimizer: Optimizer) -> None:
        self._told = {field: {param: getattr(param, field) for param in params} for field in FIELDS}
        self._settings = _settings(optimizer)
        self._updates = 0
        self._pushed: Counter[Parameter] = Counter()

    def check(self, field: str, multipliers: Mapping[Parameter, Multiplier]) -> None:
        """Raise a RuntimeError if a multiplier cannot reach the servers. A frozen Parameter is not pushed: 0 can."""
        for param, value in multipliers.items():
            told = self._told[field][param]
            if not (value == told or (field == "lr_mult" and value == 0)):
                raise _unreachable(f"{field} {value!r} of Parameter {param.name!r}", told)

    def check_learning_rate(self, lr: float) -> None:
        """Raise a RuntimeError if a learning rate is another than the servers have."""
        if lr != self._settings["lr"]:
            raise _unreachable(f"lr {lr!r} of the optimizer", self._settings["lr"])

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Raise a RuntimeError if a setting of the optimizer is another than the servers have."""
        now = _settings(optimizer)
        for name in {**self._settings, **now}:
            value, told = now.get(name), self._settings.get(name)
            # Settings that are objects, as lr_scheduler, count as changed if they were replaced.
            if not (value is told or (isinstance(value, _PLAIN) and value == told)):
                raise _unreachable(f"{name} {value!r} of the optimizer", told)

    def count_update(self, trained: Iterable[Parameter]) -> None:
        """Count an update, in which servers get the gradients of ``trained``.

        Raises
        ------
        RuntimeError
            If the servers' lr_scheduler would fall behind: it goes by the Parameter with the most updates, and they
            know of no others.
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


_PLAIN = (numbers.Number, str, tuple)


def _settings(optimizer: Optimizer) -> dict[str, Any]:
    kept_by_servers = NOT_STATE - {"lr_scheduler"}
    return {name: value for name, value in vars(optimizer).items() if name not in kept_by_servers | {_FILLED}}


def _unreachable(what: str, told: Any) -> RuntimeError:
    return RuntimeError(
        f"{what} cannot reach the parameter servers: they update, and got the optimizer before the first step, with "
        f"{told!r}. Set it before that, or let the workers update: a synchronous kvstore such as 'dist_sync', dense "
        "weights and gradients, update_on_kvstore=False"
    )
