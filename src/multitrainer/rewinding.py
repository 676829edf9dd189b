"""Ask schedules in any order of updates, though they may keep count of what they were asked.

MXNet's FactorScheduler and MultiFactorScheduler lower their rate as they are asked, and never raise it. A schedule that
is a multiplier is asked for an earlier update when a file of states is loaded into a trainer that went further, or when
two trainers share it. It is then put back to what it was when it was first asked, if it is now what having been asked
makes of that. If it is not, somebody else changed it too, and it is asked as it is.
"""

from __future__ import annotations

import functools
import numbers
import types
import weakref
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
from mxnet.ndarray import NDArray

from .values import attributes_of, check_turns, copied, same

_Snapshot = List[Tuple[Any, Dict[str, Any]]]  # objects and their attributes; None stands for the first one itself
_STATELESS = (types.FunctionType, types.BuiltinFunctionType, type)
_PLAIN = (numbers.Number, np.generic, str, type(None), NDArray, np.ndarray, *_STATELESS)


def ask(schedule: Callable[[int], Any], num_update: int) -> Any:
    """Return what a schedule says for an update, before or after the one that it was asked for last."""
    holder = _holder(schedule)
    record = None if isinstance(holder, _STATELESS) else _record(holder)
    if record is None:
        return schedule(num_update)
    if num_update < record.last:
        record.rewind(schedule, holder)
    record.check(holder, num_update)
    record.last = num_update
    return schedule(num_update)


class _Record:
    """What is known of a schedule that keeps something."""

    def __init__(self, holder: Any) -> None:
        self._given = _snapshot(holder)
        self.last = 0

    def rewind(self, schedule: Callable[[int], Any], holder: Any) -> None:
        """Put the schedule back to what it was when it was given, unless it is not the asking that changed it."""
        now = _snapshot(holder)
        _restore(holder, self._given)
        is_ours = False
        try:
            self.check(holder, self.last)
            schedule(self.last)
            is_ours = _equal(_snapshot(holder), now)
        finally:
            _restore(holder, self._given if is_ours else now)

    def check(self, holder: Any, num_update: int) -> None:
        """Raise a ValueError if it would take for ever to ask it."""
        for thing, _ in self._given:
            thing = holder if thing is None else thing
            check_turns(thing, vars(thing), num_update)


_records: dict[int, tuple[weakref.ref[Any], _Record | None]] = {}


def _record(holder: Any) -> _Record | None:
    """Return the record of what a schedule is made of; None if that cannot be copied and compared."""
    known = _records.get(id(holder))
    if known is not None and known[0]() is holder:
        return known[1]
    try:
        reference = weakref.ref(holder, functools.partial(_forget, id(holder)))
        record = _Record(holder)
    except TypeError:
        record = None
    else:
        _records[id(holder)] = reference, record
    return record


def _forget(number: int, reference: weakref.ref[Any]) -> None:
    if _records.get(number, (None,))[0] is reference:
        del _records[number]


def _holder(schedule: Any) -> Any:
    """Return the object that keeps what a schedule keeps, if anything does."""
    while isinstance(schedule, (functools.partial, types.MethodType)):
        schedule = schedule.func if isinstance(schedule, functools.partial) else schedule.__self__
    return schedule


def _snapshot(holder: Any) -> _Snapshot:
    """Return copies of the attributes of an object, and of those that can be called and that it keeps.

    Raises
    ------
    TypeError
        If it keeps something else that might change.
    """
    found: dict[int, Any] = {id(holder): holder}
    waiting = [holder]
    for thing in waiting:
        for part in _parts(attributes_of(thing)):
            part = _holder(part)
            if not isinstance(part, _PLAIN) and id(part) not in found:
                if not callable(part):
                    raise TypeError(f"{type(part).__name__} cannot be copied")
                found[id(part)] = part
                waiting.append(part)
    memo: dict[int, Any] = {}
    return [(None if thing is holder else thing, copied(vars(thing), memo=memo)) for thing in waiting]


def _parts(value: Any) -> Any:
    """Yield what is in lists, tuples and dicts, to any depth."""
    if isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part)
    else:
        yield value


def _restore(holder: Any, snapshot: _Snapshot) -> None:
    memo: dict[int, Any] = {}
    for thing, attributes in snapshot:
        here = vars(holder if thing is None else thing)
        made = copied(attributes, memo=memo)
        here.clear()
        here.update(made)


def _equal(one: _Snapshot, other: _Snapshot) -> bool:
    return len(one) == len(other) and all(a is b and same(x, y) for (a, x), (b, y) in zip(one, other))
