"""Multipliers that are functions of the number of the update."""

from __future__ import annotations

import itertools
import weakref
from typing import Iterable, Mapping

from mxnet.gluon import Parameter

from ..groups.param_group import FIELDS
from ..groups.targets import Multiplier, check_multiplier
from .rewinding import call_at

# Which Schedules a Parameter's multiplier goes by, of all trainers; the last one that was given it.
_followed: dict[str, weakref.WeakKeyDictionary[Parameter, weakref.ref[Schedules]]] = {
    field: weakref.WeakKeyDictionary() for field in FIELDS
}


_assignments = itertools.count(1)


_last_assignment = 0


class Schedules:
    """The schedules of one trainer, by field and Parameter."""

    def __init__(self) -> None:
        self.acting: dict[str, dict[Parameter, Multiplier]] = {field: {} for field in FIELDS}
        self.ended: dict[str, set[Parameter]] = {field: set() for field in FIELDS}
        self.evaluated_for: int | None = None  # the number of the update that the multipliers are for
        self._checked_after = 0  # the assignment after which nobody had taken a Parameter over

    def __bool__(self) -> bool:
        return any(self.acting.values())

    def assign(self, field: str, multipliers: Mapping[Parameter, Multiplier]) -> None:
        """Let those ``multipliers`` that are schedules act, in the place of the Parameters' earlier ones."""
        self.end(field, multipliers)
        schedules = {param: multiplier for param, multiplier in multipliers.items() if callable(multiplier)}
        self.acting[field].update(schedules)
        self.ended[field].difference_update(schedules)
        if schedules:
            global _last_assignment
            _last_assignment = next(_assignments)
        for param in schedules:
            _followed[field][param] = weakref.ref(self)

    def end(self, field: str, params: Iterable[Parameter]) -> None:
        """End the schedules of some Parameters."""
        ended = self.acting[field].keys() & params
        for param in ended:
            del self.acting[field][param]
        self.ended[field] |= ended

    def evaluate(self, num_update: int) -> dict[str, dict[Parameter, float]]:
        """Return what all schedules say for one update, by field and Parameter."""
        return {field: evaluate(acting, field, num_update) for field, acting in self.acting.items()}

    def check_followed(self, except_for: Mapping[str, Iterable[Parameter]]) -> None:
        """Raise a RuntimeError if a Parameter goes by the schedule of another trainer since."""
        if self._checked_after == _last_assignment:
            return
        for field, acting in self.acting.items():
            for param in acting.keys() - set(except_for.get(field, ())):
                reference = _followed[field].get(param)
                other = self if reference is None else reference()
                if other is not self and other is not None and param in other.acting[field]:
                    raise RuntimeError(
                        f"{field} of Parameter {param.name!r} has a schedule in this trainer, and was given another "
                        f"one by a second trainer since. Only one can act: set a number in one of the trainers, with "
                        f"set_{field}, or give the Parameter to one of them only"
                    )
        if not except_for:
            self._checked_after = _last_assignment


def evaluate(multipliers: Mapping[Parameter, Multiplier], field: str, num_update: int) -> dict[Parameter, float]:
    """Return each multiplier as a number: a schedule as what it says for update ``num_update``, asked once."""
    values: dict[int, float] = {}
    for param, multiplier in multipliers.items():
        if callable(multiplier) and id(multiplier) not in values:
            where = f"{field} of Parameter {param.name!r}, from its schedule at update {num_update},"
            try:
                value = call_at(multiplier, num_update)
            except Exception as error:
                raise RuntimeError(f"{where} cannot be evaluated: {error!r}") from error
            number = check_multiplier(value, where)
            if callable(number):
                raise TypeError(f"{where} must be a number, got another schedule")
            values[id(multiplier)] = number
    if not values:
        return dict(multipliers)
    return {param: values[id(value)] if callable(value) else value for param, value in multipliers.items()}
