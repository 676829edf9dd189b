"""Notice the multipliers that users assign to Parameters or to the optimizer."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Collection, Dict, Iterable, Mapping, Sequence

from mxnet.gluon import Parameter
from mxnet.optimizer import Optimizer

from ..groups import FIELDS
from ..groups.targets import check_multiplier
from .name_table import NameTable

Numbers = Dict[Parameter, float]


class ChangeTracker:
    """What was assigned to multipliers since the last call of `remember`.

    Parameters
    ----------
    params : sequence of Parameter
        All Parameters of the trainer, in the order of the optimizer's indices.
    trainable : sequence of Parameter
        Those that a multiplier can move.
    optimizers : iterable of Optimizer
        Their tables of multipliers are kept equal to the Parameters'.
    """

    def __init__(
        self, params: Sequence[Parameter], trainable: Sequence[Parameter], optimizers: Iterable[Optimizer]
    ) -> None:
        self._trainable = trainable
        self._tables = [NameTable(params, optimizer) for optimizer in optimizers]
        self._record_numbers()

    def changes(self, overridden: Mapping[str, Collection[Parameter]]) -> dict[str, Numbers]:
        """Read what was assigned, field by field, to Parameters or by ``optimizer.set_lr_mult``.

        Parameters
        ----------
        overridden : dict of str to collection of Parameter
            Parameters that are about to get another multiplier, whatever was assigned to them. So an assignment that
            raises can be corrected by one with the trainer's own method.

        Raises
        ------
        TypeError, ValueError
            If an assigned value is not a multiplier, or a Parameter got two values.
        """
        in_tables = [table.read() for table in self._tables]
        changes = {}
        for field in FIELDS:
            found, skipped = self._assigned(field), overridden.get(field, ())
            for in_table in in_tables:
                _check_one_value(field, found, in_table.get(field, {}), skipped)
                found.update(in_table.get(field, {}))
            changes[field] = {param: value for param, value in found.items() if param not in skipped}
            for param, value in changes[field].items():
                check_multiplier(value, f"{field} of Parameter {param.name!r}")
        return changes

    def previous(self, field: str) -> Numbers:
        """Give the multipliers of all trainable Parameters at the last call of `remember`."""
        return dict(zip(self._trainable, self._previous[field]))

    def changed_parameters(self) -> list[Parameter]:
        """List the Parameters that have another multiplier now than at the last call of `remember`."""
        return [param for field in FIELDS for param in self._assigned(field)]

    def remember(self) -> None:
        """Take the multipliers as they are now for known, and write them to the optimizers' tables."""
        self._record_numbers()
        for table in self._tables:
            table.fill()

    def _assigned(self, field: str) -> dict[Parameter, Any]:
        now = list(map(attrgetter(field), self._trainable))
        if now == self._previous[field]:
            return {}
        return {param: new for param, old, new in zip(self._trainable, self._previous[field], now) if old != new}

    def _record_numbers(self) -> None:
        self._previous = {field: list(map(attrgetter(field), self._trainable)) for field in FIELDS}


def _check_one_value(
    field: str, on_params: Mapping[Parameter, Any], in_table: Mapping[Parameter, Any], skipped: Collection[Parameter]
) -> None:
    """Raise a ValueError if a Parameter and the optimizer's table were both changed: which was last is unknown."""
    for param in on_params.keys() & in_table.keys():
        if on_params[param] != in_table[param] and param not in skipped:
            raise ValueError(
                f"{field} of Parameter {param.name!r} was set to {on_params[param]!r} on the Parameter and to "
                f"{in_table[param]!r} by optimizer.set_{field} since the last step, and which came last is unknown: "
                f"set it once more with trainer.set_{field}"
            )
