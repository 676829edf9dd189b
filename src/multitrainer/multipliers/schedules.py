"""Multipliers that are functions of the number of the update."""

from __future__ import annotations

import itertools
import weakref
from typing import Container, Iterable, Mapping

from mxnet.gluon import Parameter

from ..groups import FIELDS
from ..groups.targets import Multiplier, check_multiplier
from .rewinding import call_at

# The Schedules object, among those of all trainers, that was last given a schedule for a Parameter.
_owners: dict[str, weakref.WeakKeyDictionary[Parameter, weakref.ref[Schedules]]] = {
    field: weakref.WeakKeyDictionary() for field in FIELDS
}
_assignments = itertools.count(1)
_last_assignment = 0


class Schedules:
    """The schedules of one trainer.

    Attributes
    ----------
    acting : dict of str to dict of Parameter to callable
        The schedules in force, by field.
    ended : dict of str to set of Parameter
        The Parameters whose schedule was ended by another multiplier, by field.
    evaluated_for : int or None
        The number of the update that the multipliers were evaluated for; None if they are to be evaluated again.
    """

    def __init__(self) -> None:
        self.acting: dict[str, dict[Parameter, Multiplier]] = {field: {} for field in FIELDS}
        self.ended: dict[str, set[Parameter]] = {field: set() for field in FIELDS}
        self.evaluated_for: int | None = None
        self._owned_at = 0  # the last assignment of any trainer at which all Parameters here were still ours

    def __bool__(self) -> bool:
        return any(self.acting.values())

    def assign(self, field: str, multipliers: Mapping[Parameter, Multiplier]) -> None:
        """Let those ``multipliers`` that are schedules act; end the earlier schedules of the same Parameters."""
        self.end(field, multipliers)
        schedules = {param: multiplier for param, multiplier in multipliers.items() if callable(multiplier)}
        self.acting = {**self.acting, field: {**self.acting[field], **schedules}}
        self.ended = {**self.ended, field: self.ended[field].difference(schedules)}
        if schedules:
            global _last_assignment
            _last_assignment = next(_assignments)
        for param in schedules:
            _owners[field][param] = weakref.ref(self)

    def end(self, field: str, params: Container[Parameter]) -> None:
        """End the schedules of some Parameters."""
        ended = {param for param in self.acting[field] if param in params}
        remaining = {param: multiplier for param, multiplier in self.acting[field].items() if param not in ended}
        self.acting = {**self.acting, field: remaining}
        self.ended = {**self.ended, field: self.ended[field] | ended}

    def evaluate(self, num_update: int) -> dict[str, dict[Parameter, float]]:
        """Evaluate all schedules for one update, by field and Parameter."""
        return {field: evaluate(acting, field, num_update) for field, acting in self.acting.items()}

    def check_owned(self, overridden: Mapping[str, Iterable[Parameter]]) -> None:
        """Raise a RuntimeError if another trainer was given a schedule for a Parameter since.

        ``overridden`` are Parameters that are about to get another multiplier here, by field.
        """
        if self._owned_at == _last_assignment:
            return
        for field, acting in self.acting.items():
            for param in acting.keys() - set(overridden.get(field, ())):
                reference = _owners[field].get(param)
                other = self if reference is None else reference()
                if other is not self and other is not None and param in other.acting[field]:
                    raise RuntimeError(
                        f"{field} of Parameter {param.name!r} has a schedule in this trainer, and was given another "
                        f"one by a second trainer since. Only one can act: set a number in one of the trainers, with "
                        f"set_{field}, or give the Parameter to one of them only"
                    )
        if not overridden:
            self._owned_at = _last_assignment


def evaluate(multipliers: Mapping[Parameter, Multiplier], field: str, num_update: int) -> dict[Parameter, float]:
    """Evaluate each multiplier for update ``num_update``; a schedule that several Parameters share is asked once.

    Raises
    ------
    RuntimeError
        If a schedule raises an exception.
    TypeError, ValueError
        If a schedule gives something that is not a finite number >= 0.
    """
    if not any(map(callable, multipliers.values())):
        return dict(multipliers)
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
    return {param: values[id(value)] if callable(value) else value for param, value in multipliers.items()}
