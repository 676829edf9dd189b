"""Copy, compare and check the attributes of optimizers and schedules."""

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

REWIND_RECORD = "_multitrainer_asked"  # the attribute that `rewinding` adds to schedules
_MAX_ITERATIONS = 4_000_000
_RATES = ("lr", "wd")


def class_name(value: Any) -> str:
    """Return the name of the class of `value`, without its module, so that a class may move to another module."""
    return type(value).__name__


def attributes_of(target: Any) -> dict[str, Any]:
    """Return the attributes of an object, all of which must be in its ``__dict__``.

    Raises
    ------
    TypeError
        If the object has no ``__dict__``, or has attributes in ``__slots__``.
    """
    slots = (slot for kind in type(target).__mro__ for slot in _slots(kind))
    used = [name for name in slots if hasattr(target, name)]
    if used:
        raise TypeError(f"{class_name(target)} keeps {used[0]!r} in __slots__")
    return {name: value for name, value in vars(target).items() if name != REWIND_RECORD}


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    return [slot for slot in ([slots] if isinstance(slots, str) else slots) if slot not in ("__dict__", "__weakref__")]


@functools.lru_cache(maxsize=None)
def settings_of(kind: type) -> frozenset[str]:
    """Return the names of settings: the arguments of the constructors of a class and its bases, and the rates."""
    names = {*_RATES}
    for base in kind.__mro__:
        constructor = vars(base).get("__init__")
        if isinstance(constructor, types.FunctionType):
            names.update(inspect.signature(constructor).parameters)
    return frozenset(names)


def check_settings(kind: type, attributes: Mapping[str, Any]) -> None:
    """Raise a ValueError if a setting of an object of class `kind` is nan, or a rate is infinite."""
    for name in settings_of(kind).intersection(attributes):
        value = attributes[name]
        is_float = isinstance(value, (float, np.floating))
        if is_float and (math.isnan(value) or (name in _RATES and math.isinf(value))):
            raise ValueError(f"{name} of {kind.__name__} is {value}, and training cannot continue with that")


def copy_arrays(value: Any, context: Context | None = None, memo: dict[int, Any] | None = None) -> Any:
    """Copy arrays, and the lists, dicts and tuples that hold them; other objects are not copied.

    An object that occurs twice is copied once, also across calls with the same `memo`. MXNet's arrays go to `context`
    if one is given.
    """
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)][1]
    if isinstance(value, NDArray):
        result = value.copyto(value.context if context is None else context)
    elif isinstance(value, np.ndarray):
        result = value.copy()
    elif isinstance(value, dict):
        result = with_type_of(value, {key: copy_arrays(part, context, memo) for key, part in value.items()})
    elif isinstance(value, tuple):
        result = with_type_of(value, tuple(copy_arrays(part, context, memo) for part in value))
    elif isinstance(value, list):
        result = [copy_arrays(part, context, memo) for part in value]
    else:
        return value
    memo[id(value)] = value, result  # the value too: an id identifies an object only as long as it is alive
    return result


def identical(one: Any, other: Any) -> bool:
    """Whether two values are equal in every bit and every type; nan equals nan."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, (NDArray, np.ndarray)):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if isinstance(one, RowSparseNDArray):  # a dense copy might not fit into memory
            return identical(one.indices, other.indices) and identical(one.data, other.data)
        one, other = (array.asnumpy() if isinstance(array, NDArray) else array for array in (one, other))
        return bool(one.tobytes() == other.tobytes())
    if isinstance(one, dict):
        return list(one) == list(other) and all(identical(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(identical, one, other))
    return bool(one == other) or (one != one and other != other)


def with_type_of(template: Any, value: Any) -> Any:
    """Convert a dict or tuple to the class of `template`, if that is a subclass of dict or a namedtuple."""
    if isinstance(template, tuple) and isinstance(value, tuple) and hasattr(template, "_make"):
        return template._make(value)
    if isinstance(template, dict) and isinstance(value, dict) and type(template) is not dict:
        result = copy.copy(template)
        result.clear()
        result.update(value)
        return result
    return value


def check_iterations(schedule: Any, attributes: Mapping[str, Any], num_update: int) -> None:
    """Raise a ValueError if a FactorScheduler with these attributes would take too long to reach `num_update`.

    It loops over the updates that change its rate, and loops for ever if its step is not positive.
    """
    if isinstance(schedule, FactorScheduler):
        step: Any = attributes.get("step")
        count: Any = attributes.get("count")
        # A float of this size does not grow any more when the step is added to it.
        can_count = all(isinstance(n, (int, float, np.number)) and abs(float(n)) < 2**53 for n in (step, count))
        if not (can_count and step >= 1 and num_update - count <= _MAX_ITERATIONS * step):
            raise ValueError(
                f"{class_name(schedule)} with step={step!r} needs more than {_MAX_ITERATIONS:,} iterations from update "
                f"{count!r} to update {num_update}. If training has come that far, use a function of the update instead"
            )
