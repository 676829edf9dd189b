"""Call schedules for any update in any order, although they may keep count of their calls.

MXNet's FactorScheduler and MultiFactorScheduler lower their rate from call to call and never raise it. A schedule that
is a multiplier is called for an earlier update if states are loaded into a trainer that trained longer, or if two
trainers share it. It is then rewound: its attributes become what they were before its first call. That happens only if
its calls alone explain its present attributes. Otherwise somebody else has changed it, and it is called as it is.
"""

from __future__ import annotations

import functools
import numbers
import types
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np
from mxnet.ndarray import NDArray

from .object_state import REWIND_RECORD, attributes_of, check_iterations, copy_arrays, identical

# Objects and their attributes. None stands for the schedule's own object, so that a copy of it needs no change.
_Snapshot = List[Tuple[Any, Dict[str, Any]]]
_STATELESS = (types.FunctionType, types.BuiltinFunctionType, type)
_VALUES = (numbers.Number, np.generic, str, type(None), NDArray, np.ndarray, *_STATELESS)


def call_at(schedule: Callable[[int], Any], num_update: int) -> Any:
    """Call a schedule for an update, which may be before or after the update of the last call."""
    target = _stateful_object(schedule)
    record = {} if isinstance(target, _STATELESS) else _rewind_record(target)
    if record:
        if num_update < record["last"]:
            _rewind(schedule, target, record)
        for saved, _ in record["given"]:
            part = target if saved is None else saved
            check_iterations(part, vars(part), num_update)
    value = schedule(num_update)
    if record:
        record["last"] = num_update
    return value


def _rewind_record(target: Any) -> dict[str, Any]:
    """Return the snapshot before the first call and the last update; empty if no snapshot can be taken.

    The object itself keeps the record, so that copies and pickles have it too.
    """
    record = getattr(target, "__dict__", {}).get(REWIND_RECORD)
    if record is None:
        try:
            record = {"given": _snapshot(target), "last": 0}
        except TypeError:
            record = {}
        if hasattr(target, "__dict__"):
            vars(target)[REWIND_RECORD] = record
    return record


def _rewind(schedule: Callable[[int], Any], target: Any, record: dict[str, Any]) -> None:
    """Restore the attributes from before the first call, unless something else than calls changed them."""
    for saved, attributes in record["given"]:
        check_iterations(target if saved is None else saved, attributes, record["last"])
    try:
        current = _snapshot(target)
    except TypeError:
        return  # it has an attribute by now that cannot be compared
    calls_explain_it = False
    try:
        _restore(target, record["given"])
        schedule(record["last"])
        calls_explain_it = _identical_snapshots(_snapshot(target), current)
    except Exception:
        pass  # the call that follows raises it again
    finally:
        _restore(target, record["given"] if calls_explain_it else current)


def _stateful_object(schedule: Any) -> Any:
    """Return the object that holds the state of a schedule, which may be a method or a partial."""
    while isinstance(schedule, (functools.partial, types.MethodType)):
        schedule = schedule.func if isinstance(schedule, functools.partial) else schedule.__self__
    return schedule


def _snapshot(target: Any) -> _Snapshot:
    """Copy the attributes of an object, and of the callable objects among them, to any depth.

    Raises
    ------
    TypeError
        If an attribute is an object of another kind, which might change.
    """
    found: dict[int, Any] = {id(target): target}
    objects = [target]
    for each in objects:  # which grows
        for part in map(_stateful_object, _flattened(attributes_of(each))):
            if not isinstance(part, _VALUES) and id(part) not in found:
                if not callable(part):
                    raise TypeError(f"{type(part).__name__} cannot be copied")
                found[id(part)] = part
                objects.append(part)
    memo: dict[int, Any] = {}
    return [(None if each is target else each, copy_arrays(attributes_of(each), memo=memo)) for each in objects]


def _flattened(value: Any) -> Iterator[Any]:
    """Yield the items of lists, tuples and dicts, to any depth."""
    if isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _flattened(part)
    else:
        yield value


def _restore(target: Any, snapshot: _Snapshot) -> None:
    memo: dict[int, Any] = {}
    for saved, attributes in snapshot:
        present = vars(target if saved is None else saved)
        for name in present.keys() - {REWIND_RECORD}:
            del present[name]
        present.update(copy_arrays(attributes, memo=memo))


def _identical_snapshots(one: _Snapshot, other: _Snapshot) -> bool:
    return len(one) == len(other) and all(a is b and identical(x, y) for (a, x), (b, y) in zip(one, other))
