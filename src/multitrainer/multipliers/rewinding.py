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
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np
from mxnet.ndarray import NDArray

from .object_state import OURS, attributes_of, check_turns, copied, same

_Snapshot = List[Tuple[Any, Dict[str, Any]]]  # objects and their attributes; None stands for the first one itself


_STATELESS = (types.FunctionType, types.BuiltinFunctionType, type)


_PLAIN = (numbers.Number, np.generic, str, type(None), NDArray, np.ndarray, *_STATELESS)


def ask(schedule: Callable[[int], Any], num_update: int) -> Any:
    """Return what a schedule says for an update, before or after the one that it was asked for last."""
    holder = _holder(schedule)
    record = {} if isinstance(holder, _STATELESS) else _record(holder)
    if record:
        if num_update < record["last"]:
            _rewind(schedule, holder, record)
        for thing, _ in record["given"]:
            thing = holder if thing is None else thing
            check_turns(thing, vars(thing), num_update)
    value = schedule(num_update)
    if record:
        record["last"] = num_update
    return value


def _record(holder: Any) -> dict[str, Any]:
    """Return what is known of an object that a schedule is made of; nothing if it cannot be copied and compared.

    It is kept in the object, so that copies and pickles have it too.
    """
    known = getattr(holder, "__dict__", {}).get(OURS)
    if known is None:
        try:
            known = {"given": _snapshot(holder), "last": 0}
        except TypeError:
            known = {}
        if hasattr(holder, "__dict__"):
            vars(holder)[OURS] = known
    return known


def _rewind(schedule: Callable[[int], Any], holder: Any, record: dict[str, Any]) -> None:
    """Put a schedule back to what it was when it was first asked, unless somebody else changed it."""
    for thing, attributes in record["given"]:
        check_turns(holder if thing is None else thing, attributes, record["last"])
    try:
        now = _snapshot(holder)
    except TypeError:
        return  # by now it keeps something that cannot be compared
    is_ours = False
    try:
        _restore(holder, record["given"])
        schedule(record["last"])
        is_ours = _equal(_snapshot(holder), now)
    except Exception:
        pass  # it is asked again, as it is
    finally:
        _restore(holder, record["given"] if is_ours else now)


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
    return [(None if thing is holder else thing, copied(attributes_of(thing), memo=memo)) for thing in waiting]


def _parts(value: Any) -> Iterator[Any]:
    """Yield what is in lists, tuples and dicts, to any depth."""
    if isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part)
    else:
        yield value


def _restore(holder: Any, snapshot: _Snapshot) -> None:
    memo: dict[int, Any] = {}
    for thing, attributes in snapshot:
        here = (holder if thing is None else thing).__dict__
        for name in here.keys() - {OURS}:
            del here[name]
        here.update(copied(attributes, memo=memo))


def _equal(one: _Snapshot, other: _Snapshot) -> bool:
    return len(one) == len(other) and all(a is b and same(x, y) for (a, x), (b, y) in zip(one, other))
