"""Update all Parameters of an optimizer with a single operation if that gives the bits that stock's operators give.

SGD, NAG, Adam and AdamW themselves are covered, on one CPU, with dense float32 arrays and without ``clip_gradient``.
All else is left to stock, and so is everything without numba (the extra ``fast``) or with ``MULTITRAINER_FAST=0``.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from types import ModuleType
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

ENVIRONMENT_SWITCH = "MULTITRAINER_FAST"

# It is faster at any size (benchmarks/loop.py), but numba takes a second to load, which toy networks never win back.
MIN_PARAMETERS, MIN_VALUES = 16, 1 << 16
SINGLE_THREAD_VALUES = 1 << 15  # up to so many, one thread is done before others have begun
OPERATION_NAME = b"multitrainer"  # for MXNet's profiler
C_FUNCTIONS = {
    "ALLOCATE": "malloc",
    "FREE": "free",
    "DETACH": "MXNDArrayDetach",
    "FREE_ARRAY": "MXNDArrayFree",
    "GET_DATA": "MXNDArrayGetData",
    "PUSH": "MXEnginePushSyncND",
    "GET_FRESH": "MXNDArrayGetGradState",
    "SET_FRESH": "MXNDArraySetGradState",
}
TEAM_FUNCTIONS = {
    "RUN_TEAM": "GOMP_parallel",
    "THREAD_NUMBER": "omp_get_thread_num",
    "THREAD_COUNT": "omp_get_num_threads",
}
ARRAYS_PER_PARAMETER = {"SGD": 2, "SGD_MOMENTUM": 3, "NAG": 2, "NAG_MOMENTUM": 3, "ADAM": 4, "ADAMW": 4}  # by kernel
ADAMS = ("ADAM", "ADAMW")

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
        kernel = choose_kernel(updater)
        if kernel is None or not params or os.environ.get(ENVIRONMENT_SWITCH) == "0" or autograd.is_recording():
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
    kernels = load_kernels() if supports_arrays(kernel, arrays) else None
    if kernels is None or not disjoint([array for row in arrays for array in row]):
        return None
    _log.info("%s: one operation updates all %d Parameters", kernel, len(indices))
    return _Operation(kernels, kernel, indices, arrays)


class _Operation:
    """The engine operation that updates certain arrays.

    Parameters
    ----------
    kernels : module
        The compiled kernels.
    kernel : str
        The name of the one that updates.
    indices : list of int
        The optimizer's index of each Parameter.
    arrays : list of tuple of NDArray
        For each Parameter its weight, gradient and states.
    """

    def __init__(self, kernels: ModuleType, kernel: str, indices: list[int], arrays: list[tuple[Any, ...]]) -> None:
        self._kernels, self._kernel, self._indices, self._arrays = kernels, kernel, indices, arrays
        self._context = arrays[0][0].context
        self._handles = np.array([array.handle.value for row in arrays for array in row], np.int64)
        self._template = self._job_descriptor()

    def gradients_are_fresh(self) -> bool:
        """Whether a backward pass has written every gradient since the last update."""
        return bool(self._kernels.all_fresh(self._template, self._handles))

    def run(self, updater: Updater) -> None:
        """Make one update."""
        count = _mxnet.ReplayableCount(updater.optimizer, self._context)
        try:
            job = self._count_and_describe(updater.optimizer, count)
        except Exception:  # includes a number that MXNet may parse otherwise, or not at all
            job = None
        except BaseException:
            count.roll_back()
            raise
        if job is None:
            self._leave_to_stock(updater, count)
        else:
            check_call(self._kernels.launch(job, self._handles))

    def _count_and_describe(self, optimizer: Optimizer, count: _mxnet.ReplayableCount) -> Any:
        """Count the update; return the job descriptor with the numbers that the optimizer has for it."""
        job = self._template.copy()
        hyper = [optimizer.beta1, optimizer.beta2] if self._kernel in ADAMS else [optimizer.momentum]
        hyper = [parse_field(str(value)) for value in (optimizer.rescale_grad, *hyper)]
        self._field(job, "HYPERPARAMETERS", len(hyper))[:] = hyper
        numbers: dict[str, list[float]] = {}
        for indices, rates in count.advance(self._indices):
            for name, values in _numbers(self._kernel, optimizer, indices, rates).items():
                numbers.setdefault(name, []).extend(values)
        for name, values in numbers.items():
            self._field(job, name, len(self._indices))[:] = values
        return job

    def _leave_to_stock(self, updater: Updater, count: _mxnet.ReplayableCount) -> None:
        """Update as `gluon.Trainer` does, with the answers that the lr_scheduler has given already."""
        weights, gradients = zip(*(row[:2] for row in self._arrays))
        with count.replayed():
            _mxnet.mark_gradients_used(weights)
            updater(tuple(self._indices), gradients, weights)

    def _field(self, job: Any, name: str, count: int, dtype: Any = np.float32) -> Any:
        """Return a view of the first ``count`` values of a field of the job descriptor."""
        begin = job[getattr(self._kernels, name)] // job.itemsize
        return job[begin:].view(dtype)[:count]

    def _job_descriptor(self) -> Any:
        """Return a job descriptor without the numbers that change from update to update."""
        kernels, tensors, arrays = self._kernels, len(self._arrays), len(self._arrays[0])
        sizes = {"HANDLES": tensors * arrays, "POINTERS": tensors * arrays, "MKLDNN_LAYOUT": tensors, "ENDS": tensors}
        sizes.update(dict.fromkeys(("LEARNING_RATES", "WEIGHT_DECAYS", "KEPT", "EPSILONS"), tensors))
        sizes.update({"HYPERPARAMETERS": 3, "CONTEXT": 1, "NAME": 2})
        job = np.zeros(kernels.HEADER_SIZE + sum(sizes.values()), np.int64)
        begins = kernels.HEADER_SIZE + np.cumsum([0, *sizes.values()])
        for name, begin in zip(sizes, begins):
            job[getattr(kernels, name)] = begin * job.itemsize
        job[kernels.KERNEL] = getattr(kernels, self._kernel)
        job[kernels.TENSORS], job[kernels.ARRAYS_PER_TENSOR] = tensors, arrays
        ends = np.cumsum([row[0].size for row in self._arrays])
        self._field(job, "ENDS", tensors, np.int64)[:] = ends
        self._field(job, "CONTEXT", 2, np.int32)[:] = self._context.device_typeid, self._context.device_id
        self._field(job, "NAME", len(OPERATION_NAME), np.int8)[:] = list(OPERATION_NAME)
        functions = {name: _mxnet.function_address(function) for name, function in C_FUNCTIONS.items()}
        functions["IS_MKLDNN_LAYOUT"], functions["MAKE_PLAIN"] = _mxnet.layout_functions() or (0, 0)
        functions.update({name: getattr(kernels, name.lower()).address for name in ("WORKER", "UPDATE", "RELEASE")})
        team = {name: _mxnet.function_address(function) for name, function in TEAM_FUNCTIONS.items()}
        if ends[-1] > SINGLE_THREAD_VALUES and all(team.values()):  # MXNet may be built without OpenMP
            functions.update(team)
        for name, address in functions.items():
            job[getattr(kernels, name)] = address
        return job


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
    """Whether a kernel can update these arrays, and they are worth it.

    Each tuple has the weight, the gradient and the states of one Parameter.
    """
    for row in arrays:
        if len(row) != ARRAYS_PER_PARAMETER[kernel] or any(type(array) is not NDArray for array in row):
            return False
    if len(arrays) < MIN_PARAMETERS and sum(row[0].size for row in arrays) < MIN_VALUES:
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
    """Return the numbers that an update has for each index, as MXNet's operators read them, by field of the job."""
    decays = _mxnet.weight_decays(optimizer, indices)
    if kernel not in ADAMS:
        # Only the operators of SGD take tuples of rates and decays.
        parse = parse_tuple_element if kernel in ("SGD", "SGD_MOMENTUM") else parse_field
        return {"LEARNING_RATES": parse_all(parse, rates), "WEIGHT_DECAYS": parse_all(parse, decays)}
    calculate = _adamw_numbers if kernel == "ADAMW" else _adam_numbers
    cases = list(zip(rates, decays, _mxnet.times_updated(optimizer, indices)))
    found = {case: calculate(optimizer, *case) for case in set(cases)}
    rates, decays, kept, epsilons = map(list, zip(*(found[case] for case in cases)))
    return {
        "LEARNING_RATES": parse_all(parse_field, rates),
        "WEIGHT_DECAYS": parse_all(parse_field, decays),
        "KEPT": parse_all(parse_tuple_element, kept),
        "EPSILONS": parse_all(parse_field, epsilons),
    }


def _adam_numbers(optimizer: Adam, lr: float, wd: float, times: int) -> tuple[float, float, float, float]:
    """Return learning rate, weight decay, what is kept of the weight, and epsilon, as ``Adam.update`` has them."""
    return lr * (math.sqrt(1.0 - optimizer.beta2**times) / (1.0 - optimizer.beta1**times)), wd, 1.0, optimizer.epsilon


def _adamw_numbers(optimizer: AdamW, lr: float, wd: float, times: int) -> tuple[float, float, float, float]:
    """Return the same numbers as ``AdamW.update`` has them."""
    kept, rate, epsilon = coefficients(optimizer, lr, wd, times)
    return rate, 0.0, kept, epsilon


@functools.lru_cache(maxsize=None)
def load_kernels() -> ModuleType | None:
    """Return the compiled kernels, or None if they are not available; they are compiled once on each machine."""
    try:
        from . import kernels
    except ImportError:  # numba is not installed, or told to compile nothing
        return None
    except Exception as error:  # numba's cache has no place, or the compiler fails
        _log.warning("the fast update is off, for its kernels could not be compiled: %r", error)
        return None
    if _mxnet.layout_functions() is None:
        _log.info("the fast update is off, for this build of MXNet hides what it needs")
        return None
    if not kernels.update.cache_hits:
        _log.info("the kernels of the fast update were compiled")
    return kernels
