"""Update all Parameters of an optimizer with a single operation if that gives the bits that stock's operators give.

SGD, NAG, Adam and AdamW themselves are covered, on one CPU, with dense float32 arrays and without ``clip_gradient``.
All else is left to stock, and so is everything without the compiled kernels or with ``MULTITRAINER_FAST=0``.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import os
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np
from mxnet import autograd
from mxnet.base import check_call
from mxnet.gluon import Parameter
from mxnet.ndarray import NDArray
from mxnet.optimizer import NAG, SGD, Adam, Optimizer, Updater

from .. import _mxnet
from ..optimizers.adamw import AdamW, coefficients
from .float_parsing import parse_all, parse_field, parse_tuple_element
from .kernels import ARRAYS_PER_PARAMETER, Numbers, Plan, load_kernels, mxnet_functions

ENVIRONMENT_SWITCH = "MULTITRAINER_FAST"

SINGLE_THREAD_VALUES = 1 << 15  # up to so many, one thread is done before others have begun
OPERATION_NAME = b"multitrainer"  # for MXNet's profiler
ADAMS = ("ADAM", "ADAMW")
NUMBERS_PER_PARAMETER = ("learning_rates", "weight_decays", "kept", "epsilons")

_log = logging.getLogger("multitrainer")


class _Prepared(NamedTuple):
    """The operation for one set of arrays."""

    key: tuple[Any, ...]
    arrays: list[tuple[Any, ...]]  # keeps the arrays alive whose ids are in the key
    operation: _Operation | None  # None if stock has to update these arrays


class FusedUpdate:
    """The fused updates of one optimizer; it keeps the operation for as long as the arrays stay the same."""

    def __init__(self) -> None:
        self._prepared: _Prepared | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_prepared": None}  # a copy has arrays of its own

    def prepare(self, updater: Updater, params: Mapping[int, Parameter]) -> Callable[[], None] | None:
        """Return a function that updates ``params``, which are by index and request gradients; change nothing yet.

        None leaves the update to stock: the case is not covered, there are no states yet, or a gradient is stale.
        """
        if not params or os.environ.get(ENVIRONMENT_SWITCH) == "0" or autograd.is_recording():
            return None
        kernel = choose_kernel(updater)
        if kernel is None:
            return None
        operation = self._operation(kernel, updater, params)
        if operation is None or not operation.gradients_are_fresh():
            return None
        return functools.partial(operation.run, updater)

    def _operation(self, kernel: str, updater: Updater, params: Mapping[int, Parameter]) -> _Operation | None:
        indices = list(params)
        arrays = [(*_mxnet.single_array_and_gradient(params[i]), *_states(updater, i)) for i in indices]
        key = kernel, indices, [id(array) for row in arrays for array in row]
        if self._prepared is None or self._prepared.key != key:
            # Assigned when it is complete: after an interrupt the key does not match, and all is prepared again.
            self._prepared = _Prepared(key, arrays, _new_operation(kernel, indices, arrays))
        return self._prepared.operation


def _new_operation(kernel: str, indices: list[int], arrays: list[tuple[Any, ...]]) -> _Operation | None:
    library = load_kernels() if supports_arrays(kernel, arrays) else None
    if library is None or not disjoint([array for row in arrays for array in row]):
        return None
    _log.info("%s: one operation updates all %d Parameters", kernel, len(indices))
    return _Operation(library, kernel, indices, arrays)


class _Operation:
    """The engine operation that updates certain arrays.

    Parameters
    ----------
    library : ctypes.CDLL
        The compiled kernels.
    kernel : str
        The name of the one that updates.
    indices : list of int
        The optimizer's index of each Parameter.
    arrays : list of tuple of NDArray
        For each Parameter its weight, gradient and states.
    """

    def __init__(self, library: ctypes.CDLL, kernel: str, indices: list[int], arrays: list[tuple[Any, ...]]) -> None:
        self._library, self._kernel, self._indices, self._arrays = library, kernel, indices, arrays
        self._context = arrays[0][0].context
        self._handles = np.array([array.handle.value for row in arrays for array in row], np.uintp)
        self._ends = np.cumsum([row[0].size for row in arrays], dtype=np.int64)
        self._plan = Plan(
            mxnet_functions(several_threads=self._ends[-1] > SINGLE_THREAD_VALUES),
            list(ARRAYS_PER_PARAMETER).index(kernel),
            len(arrays),
            ARRAYS_PER_PARAMETER[kernel],
            (self._context.device_typeid, self._context.device_id),
            OPERATION_NAME,
            self._handles.ctypes.data,
            self._ends.ctypes.data,
        )

    def gradients_are_fresh(self) -> bool:
        """Whether a backward pass has written every gradient since the last update."""
        return bool(self._library.all_fresh(self._plan))

    def run(self, updater: Updater) -> None:
        """Make one update."""
        count = _mxnet.ReplayableCount(updater.optimizer, self._context)
        try:
            numbers = self._count_and_read_numbers(updater.optimizer, count)
        except Exception:  # includes a number that MXNet may parse otherwise, or not at all
            numbers = None
        except BaseException:
            count.roll_back()
            raise
        if numbers is None:
            self._leave_to_stock(updater, count)
        else:
            hyperparameters, arrays = numbers
            addresses = [array.ctypes.data for array in arrays]
            check_call(self._library.launch(self._plan, Numbers(*hyperparameters, *addresses)))

    def _count_and_read_numbers(
        self, optimizer: Optimizer, count: _mxnet.ReplayableCount
    ) -> tuple[list[float], list[np.ndarray]]:
        """Count the update; return the numbers that the optimizer has for it, as MXNet reads them."""
        momentum = [optimizer.beta1, optimizer.beta2] if self._kernel in ADAMS else [optimizer.momentum, 0]
        hyperparameters = [parse_field(str(value)) for value in (optimizer.rescale_grad, *momentum)]
        numbers: dict[str, list[float]] = {name: [] for name in NUMBERS_PER_PARAMETER}
        for indices, rates in count.advance(self._indices):
            for name, values in _numbers(self._kernel, optimizer, indices, rates).items():
                numbers[name].extend(values)
        unused = [0.0] * len(self._indices)
        return hyperparameters, [np.array(values or unused, np.float32) for values in numbers.values()]

    def _leave_to_stock(self, updater: Updater, count: _mxnet.ReplayableCount) -> None:
        """Update as `gluon.Trainer` does, with the answers that the lr_scheduler has given already."""
        weights, gradients = zip(*(row[:2] for row in self._arrays))
        with count.replayed():
            _mxnet.mark_gradients_used(weights)
            updater(tuple(self._indices), gradients, weights)


def choose_kernel(updater: Updater) -> str | None:
    """Return the name of the kernel that does what an Updater's optimizer does, or None if no kernel does."""
    optimizer = updater.optimizer
    kind = type(optimizer)  # a subclass may do anything
    if type(updater) is not Updater or kind not in (SGD, NAG, Adam, AdamW) or optimizer.clip_gradient:
        return None
    if any(callable(getattr(kind, name, None)) for name in vars(optimizer)):  # a method was replaced on this object
        return None
    if kind in (Adam, AdamW):
        return kind.__name__.upper()
    return {SGD: ("SGD", "SGD_MOMENTUM"), NAG: ("NAG", "NAG_MOMENTUM")}[kind][optimizer.momentum > 0]


def supports_arrays(kernel: str, arrays: Sequence[tuple[Any, ...]]) -> bool:
    """Whether a kernel can update these arrays.

    Each tuple has the weight, the gradient and the states of one Parameter.
    """
    for row in arrays:
        if len(row) != ARRAYS_PER_PARAMETER[kernel] or any(type(array) is not NDArray for array in row):
            return False
    context = arrays[0][0].context
    for row in arrays:
        for array in row:
            plain = array.stype == "default" and array.dtype is np.float32 and array.size == row[0].size > 0
            if not plain or array.context != context:
                return False
    return bool(context.device_type == "cpu")


def disjoint(arrays: Sequence[NDArray]) -> bool:
    """Whether no two arrays are in one block of memory.

    The engine has one lock for a block. An operation that asked for it twice would hang.
    """
    return len({_mxnet.memory_block(array) for array in arrays}) == len(arrays)


def _states(updater: Updater, index: int) -> tuple[Any, ...]:
    """Return the states of one index; (None,) if stock has to create them or to move them to the weight's context."""
    if index not in updater.states or not updater.states_synced.get(index):
        return (None,)
    state = updater.states[index]
    return () if state is None else state if isinstance(state, tuple) else (state,)


def _numbers(kernel: str, optimizer: Any, indices: Sequence[int], rates: list[float]) -> dict[str, list[float]]:
    """Return the numbers that an update has for each index, as MXNet's operators read them, by field of `Numbers`."""
    decays = _mxnet.weight_decays(optimizer, indices)
    if kernel not in ADAMS:
        # Only the operators of SGD take tuples of rates and decays.
        parse = parse_tuple_element if kernel in ("SGD", "SGD_MOMENTUM") else parse_field
        return {"learning_rates": parse_all(parse, rates), "weight_decays": parse_all(parse, decays)}
    calculate = _adamw_numbers if kernel == "ADAMW" else _adam_numbers
    cases = list(zip(rates, decays, _mxnet.times_updated(optimizer, indices)))
    found = {case: calculate(optimizer, *case) for case in set(cases)}
    rates, decays, kept, epsilons = map(list, zip(*(found[case] for case in cases)))
    return {
        "learning_rates": parse_all(parse_field, rates),
        "weight_decays": parse_all(parse_field, decays),
        "kept": parse_all(parse_tuple_element, kept),
        "epsilons": parse_all(parse_field, epsilons),
    }


def _adam_numbers(optimizer: Adam, lr: float, wd: float, times: int) -> tuple[float, float, float, float]:
    """Return learning rate, weight decay, what is kept of the weight, and epsilon, as ``Adam.update`` has them."""
    return lr * (math.sqrt(1.0 - optimizer.beta2**times) / (1.0 - optimizer.beta1**times)), wd, 1.0, optimizer.epsilon


def _adamw_numbers(optimizer: AdamW, lr: float, wd: float, times: int) -> tuple[float, float, float, float]:
    """Return the same numbers as ``AdamW.update`` has them."""
    kept, rate, epsilon = coefficients(optimizer, lr, wd, times)
    return rate, 0.0, kept, epsilon
