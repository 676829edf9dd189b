"""Copy and compare what optimizers and schedules keep in their attributes."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import types
from typing import Any, Mapping

import numpy as np
from mxnet.context import Context
from mxnet.lr_scheduler import FactorScheduler
from mxnet.ndarray import NDArray
from mxnet.ndarray.sparse import RowSparseNDArray

OURS = "_multitrainer_asked"  # an attribute of schedules that are multipliers; see `rewinding`


_MOST_TURNS = 4_000_000


_RATES = ("lr", "wd")


def class_name(value: Any) -> str:
    """Return the name of the class of `value`, without its module: a class that was moved is still the same."""
    return type(value).__name__


def attributes_of(thing: Any) -> dict[str, Any]:
    """Return the attributes of an object, all of which are in its ``__dict__``.

    Raises
    ------
    TypeError
        If it has no ``__dict__``, or keeps others elsewhere.
    """
    names = (slot for kind in type(thing).__mro__ for slot in _slots(kind))
    elsewhere = [name for name in names if hasattr(thing, name)]
    if elsewhere:
        raise TypeError(f"{class_name(thing)} keeps {elsewhere[0]!r} in __slots__")
    return {name: value for name, value in vars(thing).items() if name != OURS}


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    return [slot for slot in ([slots] if isinstance(slots, str) else slots) if slot not in ("__dict__", "__weakref__")]


@functools.lru_cache(maxsize=None)
def settings_of(kind: type) -> frozenset[str]:
    """Return the attributes of an object that its class is given when it is made, by their names."""
    names = {*_RATES}
    for each in kind.__mro__:
        made = vars(each).get("__init__")
        if isinstance(made, types.FunctionType):
            names.update(inspect.signature(made).parameters)
    return frozenset(names)


def check_settings(kind: type, attributes: Mapping[str, Any]) -> None:
    """Raise a ValueError if what an object of class `kind` is to go by is not a number."""
    for name in settings_of(kind).intersection(attributes):
        value = attributes[name]
        if isinstance(value, (float, np.floating)) and (
            math.isnan(value) or (name in _RATES and not math.isfinite(value))
        ):
            raise ValueError(f"{name} of {kind.__name__} is {value}, which no training can go on with")


def copied(value: Any, context: Context | None = None, memo: dict[int, Any] | None = None) -> Any:
    """Return a copy, with its arrays on `context`, of arrays, lists, dicts and tuples; all else in it stays itself.

    What is one object in two places is one in the copy, as it is in all copies with the same `memo`.
    """
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)][1]
    if isinstance(value, NDArray):
        made = value.copyto(value.context if context is None else context)
    elif isinstance(value, np.ndarray):
        made = value.copy()
    elif isinstance(value, dict):
        made = of_type(value, {name: copied(part, context, memo) for name, part in value.items()})
    elif isinstance(value, tuple):
        made = of_type(value, tuple(copied(part, context, memo) for part in value))
    elif isinstance(value, list):
        made = [copied(part, context, memo) for part in value]
    else:
        return value
    memo[id(value)] = value, made  # the value too, for an id is of use as long as its object is there
    return made


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal in every bit and every type."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, (NDArray, np.ndarray)):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if isinstance(one, RowSparseNDArray):  # as a dense array it might not fit into memory
            return same(one.indices, other.indices) and same(one.data, other.data)
        one, other = (each.asnumpy() if isinstance(each, NDArray) else each for each in (one, other))
        return bool(one.tobytes() == other.tobytes())
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one != one and other != other)


def of_type(like: Any, value: Any) -> Any:
    """Return `value` as the kind of dict or of tuple that `like` is."""
    if isinstance(like, tuple) and isinstance(value, tuple) and hasattr(like, "_make"):
        return like._make(value)
    if isinstance(like, dict) and isinstance(value, dict) and type(like) is not dict:
        made = copy.copy(like)
        made.clear()
        made.update(value)
        return made
    return value


def check_turns(thing: Any, attributes: Mapping[str, Any], num_update: int) -> None:
    """Raise a ValueError if MXNet's FactorScheduler, with those attributes, would not come to `num_update` in time.

    It goes there from update to update that changes its rate, and for ever if these do not lead there.
    """
    if isinstance(thing, FactorScheduler):
        step: Any = attributes.get("step")
        count: Any = attributes.get("count")
        # Counts that large do not grow any more when the step is added to them.
        turns = all(isinstance(n, (int, float, np.number)) and abs(float(n)) < 2**53 for n in (step, count))
        if not (turns and step >= 1 and num_update - count <= _MOST_TURNS * step):
            raise ValueError(
                f"{class_name(thing)} with step={step!r} takes more than {_MOST_TURNS:,} turns of its loop from update "
                f"{count!r} to update {num_update}. If it has come so far indeed, use a function of the update instead"
            )
