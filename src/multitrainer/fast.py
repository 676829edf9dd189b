"""One update of all Parameters as a single operation, where that gives the very bits that stock's operators give.

Covered are SGD, NAG and Adam themselves, on one CPU, with dense float32 arrays and without ``clip_gradient``; all else
goes the ordinary way, as everything does without numba (the extra ``fast``) or under ``MULTITRAINER_FAST=0``.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
import math
import os
from types import ModuleType
from typing import Any, Sequence

import numpy as np
from mxnet import nd
from mxnet.gluon import Parameter
from mxnet.ndarray import NDArray
from mxnet.optimizer import NAG, SGD, Adam, Optimizer, Updater

from . import _mxnet
from .scalars import each, from_stream, from_text

SWITCH = "MULTITRAINER_FAST"
# It wins at any size (benchmarks/loop.py), but numba takes a second to load, which toy networks would never win back.
MANY_ARRAYS, MANY_VALUES = 16, 1 << 16
ALONE = 1 << 15  # values, up to which one thread is done before others have begun

_log = logging.getLogger("multitrainer")


class FusedUpdate:
    """The updates of one trainer; it remembers which arrays they are of, for these rarely change."""

    def __init__(self) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self._known: Any = None
        self._operation: _Operation | None = None

    def update(self, updater: Updater, params: Sequence[Parameter]) -> bool:
        """Make one update of those ``params`` that request a gradient, or change nothing and return False.

        ``params`` are in the order of the optimizer's indices.

        False leaves it to stock: a case that is not covered, states that are not there yet, a stale gradient.
        """
        rule = rule_of(updater)
        if rule is None or os.environ.get(SWITCH) == "0":
            return False
        operation = self._operation_for(rule, updater, params)
        return operation is not None and operation.run(updater.optimizer)

    def _operation_for(self, rule: str, updater: Updater, params: Sequence[Parameter]) -> _Operation | None:
        indices = [i for i, param in enumerate(params) if param.grad_req != "null"]
        rows = [(*_mxnet.array_and_gradient(params[i]), *_states(updater, i)) for i in indices]
        known = rule, indices, [id(array) for row in rows for array in row]
        if known != self._known:
            self._rows, self._known = rows, known  # the rows keep what has these ids
            self._operation = self._new_operation(rule, indices, rows)
        return self._operation

    def _new_operation(self, rule: str, indices: list[int], rows: list[tuple[Any, ...]]) -> _Operation | None:
        kernels = load_kernels() if covers(rule, rows) else None
        if kernels is None:
            return None
        operation = _Operation(kernels, rule, indices, rows)
        places = operation.places()
        if places is None:
            self._known = None  # look again at the next step
            return None
        if not apart(places):
            return None
        _log.info("%s: one operation updates all %d Parameters", rule, len(indices))
        return operation


class _Operation:
    """The operation that makes the update of these arrays, and what it is told."""

    def __init__(self, kernels: ModuleType, rule: str, indices: list[int], rows: list[tuple[Any, ...]]) -> None:
        self._kernels, self._rule, self._indices = kernels, rule, indices
        self._arrays = list(itertools.chain.from_iterable(rows))
        self._context = self._arrays[0].context
        self._finished = nd.zeros(1, ctx=self._context)
        shape = len(rows), len(rows[0])
        self._handles = np.array([array.handle.value for array in self._arrays], np.int64).reshape(shape)
        self._weights = self._handles[:, 0].copy()
        self._read = _pointers(self._handles[:, 1])
        self._written = _pointers([*np.delete(self._handles, 1, axis=1).ravel(), self._finished.handle.value])
        self._places = np.zeros(shape, np.int64)
        self._ends = np.cumsum([row[0].size for row in rows], dtype=np.int64)
        self._rates, self._decays = np.zeros(shape[0], np.float32), np.zeros(shape[0], np.float32)
        self._scalars = np.zeros(4, np.float32)
        self._orders = self._written_down()

    def places(self) -> list[tuple[int, int]] | None:
        """Return where the memory of each array begins and ends, or None if only MKL-DNN can read one of them."""
        self._orders[self._kernels.KIND] = self._kernels.NOTHING
        found = self._have_it_run(_pointers(self._handles.ravel()), _pointers([self._finished.handle.value]))
        self._orders[self._kernels.KIND] = getattr(self._kernels, self._rule)
        begins = self._places.ravel().tolist()
        return [(begin, begin + 4 * array.size) for begin, array in zip(begins, self._arrays)] if found else None

    def run(self, optimizer: Optimizer) -> bool:
        """Make one update, or change nothing and return False."""
        if not self._kernels.all_fresh(_mxnet.address("MXNDArrayGetGradState"), self._weights):
            return False
        counts = _mxnet.Counts(optimizer, self._context)
        if not (self._take_numbers(optimizer) and self._have_it_run(self._read, self._written)):
            counts.put_back()
            return False
        self._kernels.use_gradients(_mxnet.address("MXNDArraySetGradState"), self._weights)
        return True

    def _take_numbers(self, optimizer: Optimizer) -> bool:
        """Count the update and take over the optimizer's numbers; False if MXNet might read one otherwise."""
        rates, decays = _mxnet.count_updates(optimizer, self._indices)
        scalars = [optimizer.rescale_grad]
        if self._rule == "ADAM":
            rates = _corrected(optimizer, rates, _mxnet.times_updated(optimizer, self._indices))
            scalars += [optimizer.beta1, optimizer.beta2, optimizer.epsilon]
        else:
            scalars.append(optimizer.momentum)
        read = from_stream if self._rule in ("SGD", "SGD_MOMENTUM") else from_text  # the others' are no tuples
        try:
            self._scalars[: len(scalars)] = [from_text(str(value)) for value in scalars]
            self._rates[:], self._decays[:] = each(read, rates), each(read, decays)
        except (TypeError, ValueError):
            return False
        return True

    def _have_it_run(self, read: Any, written: Any) -> bool:
        """Wait until it has run; False if it found weights that only MKL-DNN can read."""
        self._orders[self._kernels.DONE] = 0
        try:
            _mxnet.push(self._kernels.update.address, self._orders.ctypes.data, read, written, self._context)
        finally:
            # A prediction since the backward pass, perhaps one still to run, leaves weights in a layout of MKL-DNN's.
            # From inside an operation nothing can put them back, so it does nothing, and until that is known nothing
            # may follow. Whatever interrupts, what it reads has to stay until it has run.
            self._finished.wait_to_read()
        return bool(self._orders[self._kernels.DONE])

    def _written_down(self) -> Any:
        kernels = self._kernels
        orders = np.zeros(kernels.LENGTH, np.int64)
        orders[kernels.KIND] = getattr(kernels, self._rule)
        orders[kernels.TENSORS], orders[kernels.ARRAYS] = self._handles.shape
        orders[kernels.HANDLES], orders[kernels.PLACES] = self._handles.ctypes.data, self._places.ctypes.data
        orders[kernels.ENDS], orders[kernels.SCALARS] = self._ends.ctypes.data, self._scalars.ctypes.data
        orders[kernels.RATES], orders[kernels.DECAYS] = self._rates.ctypes.data, self._decays.ctypes.data
        orders[kernels.TO_DLPACK] = _mxnet.address("MXNDArrayToDLPack")
        orders[kernels.DELETE] = _mxnet.address("MXNDArrayCallDLPackDeleter")
        orders[kernels.WORKER] = kernels.worker.address
        team = [_mxnet.address(f) for f in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")]
        if self._ends[-1] > ALONE and all(team):  # else MXNet was built without OpenMP
            orders[kernels.PARALLEL], orders[kernels.THREAD], orders[kernels.THREADS] = team
        return orders


def rule_of(updater: Updater) -> str | None:
    """Return the kernel that an Updater's optimizer asks for, or None if there is none for it."""
    optimizer = updater.optimizer
    kind = type(optimizer)  # a subclass may do anything
    if type(updater) is not Updater or kind not in (SGD, NAG, Adam) or optimizer.clip_gradient:
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


def apart(places: Sequence[tuple[int, int]]) -> bool:
    """Whether no two arrays are parts of one, which would make the operation wait for itself."""
    # Parts of one array lie end to end, which arrays of their own do not.
    ordered = sorted(places)
    return all(end < following for (_, end), (following, _) in zip(ordered, ordered[1:]))


def _states(updater: Updater, index: int) -> tuple[Any, ...]:
    if not updater.states_synced.get(index):
        return (None,)  # stock has to make it first, or to move it
    state = updater.states[index]
    return () if state is None else state if isinstance(state, tuple) else (state,)


def _pointers(handles: Any) -> Any:
    return (ctypes.c_void_p * len(handles))(*map(int, handles))


def _corrected(optimizer: Adam, rates: Sequence[float], counts: Sequence[int]) -> list[float]:
    """Return the learning rates with Adam's correction of its biases, as its ``update`` computes it."""
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
    if not kernels.update.cache_hits:
        _log.info("the kernels of the fast update were compiled, and are kept in numba's cache")
    return kernels
