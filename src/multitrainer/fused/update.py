"""One update of all Parameters as a single operation, where that gives the very bits that stock's operators give.

Covered are SGD, NAG and Adam themselves, on one CPU, with dense float32 arrays and without ``clip_gradient``; all else
goes the ordinary way, as everything does without numba (the extra ``fast``) or under ``MULTITRAINER_FAST=0``.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from types import ModuleType
from typing import Any, NamedTuple, Sequence

import numpy as np
from mxnet import autograd
from mxnet.base import check_call
from mxnet.gluon import Parameter
from mxnet.ndarray import NDArray
from mxnet.optimizer import NAG, SGD, Adam, Optimizer, Updater

from .. import _mxnet
from .float_parsing import each, from_stream, from_text

SWITCH = "MULTITRAINER_FAST"


# It wins at any size (benchmarks/loop.py), but numba takes a second to load, which toy networks would never win back.
MANY_ARRAYS, MANY_VALUES = 16, 1 << 16


ALONE = 1 << 15  # values, up to which one thread is done before others have begun


NAME = b"multitrainer"  # of the operation, for MXNet's profiler


FUNCTIONS = {
    "ALLOCATE": "malloc",
    "FREE": "free",
    "DETACH": "MXNDArrayDetach",
    "FREE_ARRAY": "MXNDArrayFree",
    "GET_DATA": "MXNDArrayGetData",
    "PUSH": "MXEnginePushSyncND",
    "GET_STATE": "MXNDArrayGetGradState",
    "SET_STATE": "MXNDArraySetGradState",
}


_log = logging.getLogger("multitrainer")


class _Prepared(NamedTuple):
    """What is known of one set of arrays."""

    known: tuple[Any, ...]
    rows: list[tuple[Any, ...]]  # keep the arrays whose ids are known
    operation: _Operation | None  # None if they are left to stock


class FusedUpdate:
    """The updates of one trainer; it remembers which arrays they are of, for these rarely change."""

    def __init__(self) -> None:
        self._prepared: _Prepared | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_prepared": None}  # a copy has arrays of its own

    def update(self, updater: Updater, params: Sequence[Parameter]) -> bool:
        """Make one update of those ``params`` that request a gradient, or change nothing and return False.

        ``params`` are in the order of the optimizer's indices.

        False leaves it to stock: a case that is not covered, states that are not there yet, a stale gradient.
        """
        rule = rule_of(updater)
        if rule is None or os.environ.get(SWITCH) == "0" or autograd.is_recording():
            return False
        operation = self._operation_for(rule, updater, params)
        return operation is not None and operation.run(updater)

    def _operation_for(self, rule: str, updater: Updater, params: Sequence[Parameter]) -> _Operation | None:
        indices = [i for i, param in enumerate(params) if param.grad_req != "null"]
        rows = [(*_mxnet.array_and_gradient(params[i]), *_states(updater, i)) for i in indices]
        known = rule, indices, [id(array) for row in rows for array in row]
        if self._prepared is None or self._prepared.known != known:
            # Assigned when it is complete: whatever interrupts this leaves what does not fit, and is prepared again.
            self._prepared = _Prepared(known, rows, _new_operation(rule, indices, rows))
        return self._prepared.operation


def _new_operation(rule: str, indices: list[int], rows: list[tuple[Any, ...]]) -> _Operation | None:
    kernels = load_kernels() if covers(rule, rows) else None
    if kernels is None or not apart([array for row in rows for array in row]):
        return None
    _log.info("%s: one operation updates all %d Parameters", rule, len(indices))
    return _Operation(kernels, rule, indices, rows)


class _Operation:
    """The operation that makes the update of these arrays, and what it is told."""

    def __init__(self, kernels: ModuleType, rule: str, indices: list[int], rows: list[tuple[Any, ...]]) -> None:
        self._kernels, self._rule, self._indices, self._rows = kernels, rule, indices, rows
        self._context = rows[0][0].context
        self._handles = np.array([array.handle.value for row in rows for array in row], np.int64)
        self._orders = self._job_descriptor()

    def run(self, updater: Updater) -> bool:
        """Make one update, or change nothing and return False."""
        if not self._kernels.all_fresh(self._orders, self._handles):
            return False
        counting = _mxnet.Counting(updater.optimizer, self._context)
        try:
            orders = self._filled_in(updater.optimizer, counting)
        except Exception:  # also a number that MXNet might read otherwise, or not at all
            orders = None
        except BaseException:
            counting.take_back()
            raise
        if orders is None:
            self._leave_to_stock(updater, counting)
        else:
            check_call(self._kernels.launch(orders, self._handles))
        return True

    def _filled_in(self, optimizer: Optimizer, counting: _mxnet.Counting) -> Any:
        """Count the update; return the orders with the optimizer's numbers."""
        orders, count, adam = self._orders.copy(), len(self._indices), self._rule == "ADAM"
        scalars = [optimizer.beta1, optimizer.beta2, optimizer.epsilon] if adam else [optimizer.momentum]
        scalars = [from_text(str(value)) for value in (optimizer.rescale_grad, *scalars)]
        read = from_stream if self._rule in ("SGD", "SGD_MOMENTUM") else from_text  # the others' are no tuples
        self._part(orders, "SCALARS", len(scalars))[:] = scalars
        self._part(orders, "DECAYS", count)[:] = each(read, _mxnet.weight_decays(optimizer, self._indices))
        found = []
        for part, rates in counting.count(self._indices):
            found += each(read, _corrected(optimizer, rates, part) if adam else rates)
        self._part(orders, "RATES", count)[:] = found
        return orders

    def _leave_to_stock(self, updater: Updater, counting: _mxnet.Counting) -> None:
        """Do what `gluon.Trainer` does from here on, with what the lr_scheduler was asked already."""
        weights, gradients = zip(*(row[:2] for row in self._rows))
        with counting.repeated():
            _mxnet.use_gradients(weights)
            updater(tuple(self._indices), gradients, weights)

    def _part(self, orders: Any, name: str, count: int, dtype: Any = np.float32) -> Any:
        begin = orders[getattr(self._kernels, name)] // orders.itemsize
        return orders[begin:].view(dtype)[:count]

    def _job_descriptor(self) -> Any:
        kernels, tensors, arrays = self._kernels, len(self._rows), len(self._rows[0])
        sizes = {"HANDLES": tensors * arrays, "POINTERS": tensors * arrays, "FOREIGN": tensors, "ENDS": tensors}
        sizes.update({"RATES": tensors, "DECAYS": tensors, "SCALARS": 4, "CONTEXT": 1, "NAME": 2})
        orders = np.zeros(kernels.HEADER + sum(sizes.values()), np.int64)
        begins = kernels.HEADER + np.cumsum([0, *sizes.values()])
        for name, begin in zip(sizes, begins):
            orders[getattr(kernels, name)] = begin * orders.itemsize
        orders[kernels.KIND] = getattr(kernels, self._rule)
        orders[kernels.TENSORS], orders[kernels.ARRAYS] = tensors, arrays
        self._part(orders, "ENDS", tensors, np.int64)[:] = np.cumsum([row[0].size for row in self._rows])
        self._part(orders, "CONTEXT", 2, np.int32)[:] = self._context.device_typeid, self._context.device_id
        self._part(orders, "NAME", len(NAME), np.int8)[:] = list(NAME)
        for name, function in FUNCTIONS.items():
            orders[getattr(kernels, name)] = _mxnet.address(function)
        orders[[kernels.IS_FOREIGN, kernels.MAKE_PLAIN]] = _mxnet.layout_functions()
        for name in ("worker", "update", "release"):
            orders[getattr(kernels, name.upper())] = getattr(kernels, name).address
        team = [_mxnet.address(f) for f in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")]
        if sum(row[0].size for row in self._rows) > ALONE and all(team):  # else MXNet was built without OpenMP
            orders[kernels.PARALLEL], orders[kernels.THREAD], orders[kernels.THREADS] = team
        return orders


def rule_of(updater: Updater) -> str | None:
    """Return the kernel that an Updater's optimizer asks for, or None if there is none for it."""
    optimizer = updater.optimizer
    kind = type(optimizer)  # a subclass may do anything
    if type(updater) is not Updater or kind not in (SGD, NAG, Adam) or optimizer.clip_gradient:
        return None
    if any(callable(getattr(kind, name, None)) for name in vars(optimizer)):  # a method was replaced on this object
        return None
    if kind is Adam:
        return "ADAM"
    return {SGD: ("SGD", "SGD_MOMENTUM"), NAG: ("PLAIN", "NAG_MOMENTUM")}[kind][optimizer.momentum > 0]


def covers(rule: str, rows: Sequence[tuple[Any, ...]]) -> bool:
    """Whether all arrays (weight, gradient, states; Parameter by Parameter) are what the kernels take."""
    width = {"SGD": 2, "PLAIN": 2, "ADAM": 4}.get(rule, 3)
    for row in rows:
        if len(row) != width or any(type(array) is not NDArray for array in row):
            return False
    if len(rows) < MANY_ARRAYS and sum(row[0].size for row in rows) < MANY_VALUES:
        return False
    context = rows[0][0].context
    for row in rows:
        for array in row:
            plain = array.stype == "default" and array.dtype is np.float32 and array.size == row[0].size > 0
            if not plain or array.context != context:
                return False
    return bool(context.device_type == "cpu")


def apart(arrays: Sequence[NDArray]) -> bool:
    """Whether no two arrays are parts of one, whose only lock the operation would ask for twice, and wait for ever."""
    return len({_mxnet.memory_block(array) for array in arrays}) == len(arrays)


def _states(updater: Updater, index: int) -> tuple[Any, ...]:
    if index not in updater.states or not updater.states_synced.get(index):
        return (None,)  # stock has to make it first, or to move it
    state = updater.states[index]
    return () if state is None else state if isinstance(state, tuple) else (state,)


def _corrected(optimizer: Adam, rates: Sequence[float], indices: Sequence[int]) -> list[float]:
    """Return the learning rates with Adam's correction of its biases, as its ``update`` computes it."""
    counts = _mxnet.times_updated(optimizer, indices)
    factors = {t: math.sqrt(1.0 - optimizer.beta2**t) / (1.0 - optimizer.beta1**t) for t in set(counts)}
    return [rate * factors[t] for rate, t in zip(rates, counts)]


@functools.lru_cache(maxsize=None)
def load_kernels() -> ModuleType | None:
    """Return the compiled kernels, or None without numba; the first time on a machine they are compiled."""
    try:
        from . import kernels
    except ImportError:  # also from kernels itself, where numba is told to compile nothing
        return None
    except Exception as error:  # numba finds no place for its cache, or fails in a way of its own
        _log.warning("the fast update is off, for its kernels could not be compiled: %r", error)
        return None
    if _mxnet.layout_functions() is None:
        _log.info("the fast update is off, for this build of MXNet hides what it needs")
        return None
    if not kernels.update.cache_hits:
        _log.info("the kernels of the fast update were compiled")
    return kernels
