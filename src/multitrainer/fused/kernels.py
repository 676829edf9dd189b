"""The updates of SGD, NAG, Adam and AdamW for all Parameters in one engine operation. Needs the extra ``fast``.

The operation runs in the engine's thread and on the OpenMP team that MXNet's operators use. Like any operator of MXNet,
it locks every array that it reads or writes while it runs, and it owns what it needs. `launch` hands it to the engine
and does not wait for it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
from typing import Any, Callable

import numpy as np
from mxnet import nd
from numba import carray, cfunc, config, njit, types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

if config.DISABLE_JIT:
    raise ImportError("numba compiles nothing under NUMBA_DISABLE_JIT")


# The job descriptor: an array of 64-bit integers that describes one update. Its header says which kernel updates how
# many tensors, and how many arrays each tensor has (weight, gradient, states). Then come the offsets in bytes of the
# other fields, and the addresses of C functions. The fields follow the header.
KERNEL, TENSORS, ARRAYS_PER_TENSOR = range(3)
HANDLES, POINTERS, MKLDNN_LAYOUT, ENDS, LEARNING_RATES, WEIGHT_DECAYS, KEPT, EPSILONS = range(3, 11)
HYPERPARAMETERS, CONTEXT, NAME = range(11, 14)
ALLOCATE, FREE, DETACH, FREE_ARRAY, IS_MKLDNN_LAYOUT, MAKE_PLAIN, GET_DATA, PUSH, GET_FRESH, SET_FRESH = range(14, 24)
RUN_TEAM, THREAD_NUMBER, THREAD_COUNT, WORKER, UPDATE, RELEASE, HEADER_SIZE = range(24, 31)

SGD, SGD_MOMENTUM, NAG_MOMENTUM, NAG, ADAM, ADAMW = range(6)  # kernels


# Division by 0 gives inf, as in C++. Without fastmath, LLVM neither reorders nor contracts floating-point operations.
_OPTIONS = {"nogil": True, "error_model": "numpy"}

_log = logging.getLogger("multitrainer")
_failures: list[Exception] = []


def _compiled(compiler: Callable[..., Any], *signature: Any, **options: Any) -> Callable[[Any], Any]:
    """Return a decorator that compiles a function and keeps the result in numba's cache if possible."""

    def compile_function(function: Any) -> Any:
        try:
            return compiler(*signature, cache=True, **options)(function)
        except Exception as error:  # any error of pickle if a cache file is damaged; or the cache has no place
            _failures.append(error)
        with contextlib.suppress(Exception):
            FunctionCache(function).flush()
            return compiler(*signature, cache=True, **options)(function)
        return compiler(*signature, **options)(function)

    return compile_function


@intrinsic
def _to_pointer(_: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@intrinsic
def _to_address(_: Any, pointer: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], cgutils.intp_t)

    return types.int64(pointer), generate


def _generate_call(result: Any) -> Callable[..., Any]:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = cgutils.unpack_tuple(builder, args[1])
        function = cgutils.ir.FunctionType(result, [value.type for value in values])
        return builder.call(builder.inttoptr(args[0], function.as_pointer()), values)

    return generate


@intrinsic
def _call_for_address(_: Any, function: Any, arguments: Any) -> Any:
    """Call the C function at an address with integers and pointers, and return the address that it returns."""
    return types.int64(function, arguments), _generate_call(cgutils.intp_t)


@intrinsic
def _call(_: Any, function: Any, arguments: Any) -> Any:
    """Call the C function at an address with integers and pointers, and return its int."""
    return types.int32(function, arguments), _generate_call(cgutils.int32_t)


@njit(**_OPTIONS)
def _int64_array(address: int, count: int) -> Any:
    return carray(_to_pointer(address), (count,), np.int64)


@njit(**_OPTIONS)
def _float32_array(address: int, count: int) -> Any:
    return carray(_to_pointer(address), (count,), np.float32)


@njit(**_OPTIONS)
def _sgd(w, g, lr, wd, rescale):  # type: ignore[no-untyped-def]
    """MultiSGDKernel without momentum, with its order of operations (src/operator/optimizer_op-inl.h)."""
    decay, rate, zero = lr * wd, lr * rescale, np.float32(0)
    for i in range(w.size):
        w[i] = w[i] + (zero - decay * w[i] - rate * g[i])


@njit(**_OPTIONS)
def _sgd_momentum(w, g, m, lr, wd, rescale, momentum):  # type: ignore[no-untyped-def]
    """MultiSGDKernel."""
    decay, rate = lr * wd, lr * rescale
    for i in range(w.size):
        m[i] = momentum * m[i] - decay * w[i] - rate * g[i]
        w[i] = w[i] + m[i]


@njit(**_OPTIONS)
def _nag_momentum(w, g, m, lr, wd, rescale, momentum, mkldnn_layout):  # type: ignore[no-untyped-def]
    """NAGMomKernel: the weight decay in the momentum is that of the updated weight.

    If the weight was in a layout of MKL-DNN, the operator reads a copy of it, and so the weight before the update.
    """
    ahead = momentum + np.float32(1)
    for i in range(w.size):
        m[i] = momentum * m[i]
        gradient, before = rescale * g[i], w[i]
        w[i] = before - m[i] + ahead * (m[i] - lr * (gradient + wd * before))
        m[i] = m[i] - lr * (gradient + wd * (before if mkldnn_layout else w[i]))


@njit(**_OPTIONS)
def _nag(w, g, lr, wd, rescale):  # type: ignore[no-untyped-def]
    """SGDKernel, which NAG without momentum runs."""
    keep, rate = np.float32(1) - lr * wd, lr * rescale
    for i in range(w.size):
        w[i] = keep * w[i] - rate * g[i]


@njit(**_OPTIONS)
def _adam(w, g, m, v, lr, wd, kept, rescale, beta1, beta2, epsilon):  # type: ignore[no-untyped-def]
    """AdamUpdateKernel, on ``kept * w`` in place of the weight.

    Adam keeps 1, which changes no bit. AdamW has a weight decay of 0 here, as in its call of MXNet's operator.
    """
    rest1, rest2 = np.float32(1) - beta1, np.float32(1) - beta2
    for i in range(w.size):
        weight = kept * w[i]
        gradient = g[i] * rescale + weight * wd
        m[i] = beta1 * m[i] + rest1 * gradient
        v[i] = beta2 * v[i] + rest2 * gradient * gradient
        w[i] = weight - lr * m[i] / (math.sqrt(v[i]) + epsilon)


@njit(**_OPTIONS)
def _update_share(job, thread, threads):  # type: ignore[no-untyped-def]
    """Update the values of one thread: an equal share of all values, whichever tensors they belong to."""
    kernel, tensors, arrays, base = job[KERNEL], job[TENSORS], job[ARRAYS_PER_TENSOR], job.ctypes.data
    pointers, ends = _int64_array(base + job[POINTERS], tensors * arrays), _int64_array(base + job[ENDS], tensors)
    rates = _float32_array(base + job[LEARNING_RATES], tensors)
    decays = _float32_array(base + job[WEIGHT_DECAYS], tensors)
    kept = _float32_array(base + job[KEPT], tensors)
    epsilons = _float32_array(base + job[EPSILONS], tensors)
    hyper = _float32_array(base + job[HYPERPARAMETERS], 3)
    mkldnn_layout = _int64_array(base + job[MKLDNN_LAYOUT], tensors)
    total = ends[tensors - 1]
    # Shares are multiples of 16 values, a cache line, so that no two threads write to the same one.
    first = total * thread // threads // 16 * 16
    last = total if thread == threads - 1 else total * (thread + 1) // threads // 16 * 16
    begin = np.int64(0)
    for i in range(tensors):
        low, high = max(first, begin), min(last, ends[i])
        if low < high:
            at, count, offset = i * arrays, high - low, 4 * (low - begin)
            w, g = _float32_array(pointers[at] + offset, count), _float32_array(pointers[at + 1] + offset, count)
            if kernel == SGD:
                _sgd(w, g, rates[i], decays[i], hyper[0])
            elif kernel == NAG:
                _nag(w, g, rates[i], decays[i], hyper[0])
            else:
                m = _float32_array(pointers[at + 2] + offset, count)
                if kernel == SGD_MOMENTUM:
                    _sgd_momentum(w, g, m, rates[i], decays[i], hyper[0], hyper[1])
                elif kernel == NAG_MOMENTUM:
                    _nag_momentum(w, g, m, rates[i], decays[i], hyper[0], hyper[1], mkldnn_layout[i] != 0)
                else:
                    v = _float32_array(pointers[at + 3] + offset, count)
                    _adam(w, g, m, v, rates[i], decays[i], kept[i], hyper[0], hyper[1], hyper[2], epsilons[i])
        begin = ends[i]


@njit(**_OPTIONS)
def _locate(job):  # type: ignore[no-untyped-def]
    """Store the address of every array's memory, after bringing the array into the plain layout."""
    arrays, base = job[ARRAYS_PER_TENSOR], job.ctypes.data
    count = job[TENSORS] * arrays
    handles = _int64_array(base + job[HANDLES], count)
    mkldnn_layout = _int64_array(base + job[MKLDNN_LAYOUT], job[TENSORS])
    for i in range(count):
        # A prediction leaves weights in a layout of MKL-DNN. MXNDArrayGetData would ask the engine to restore the
        # plain one and wait for it, while the engine waits for this operation.
        block = _int64_array(handles[i], 1)[0]
        if job[IS_MKLDNN_LAYOUT] != 0 and _call(job[IS_MKLDNN_LAYOUT], (block,)) & 1:  # a bool of C++ is one byte
            _call(job[MAKE_PLAIN], (block,))
            if i % arrays == 0:
                mkldnn_layout[i // arrays] = 1
        _call(job[GET_DATA], (handles[i], base + job[POINTERS] + 8 * i))


@njit(**_OPTIONS)
def _release_job(address):  # type: ignore[no-untyped-def]
    job = _int64_array(address, HEADER_SIZE)
    for handle in _int64_array(address + job[HANDLES], job[TENSORS] * job[ARRAYS_PER_TENSOR]):
        if handle != 0:
            _call(job[FREE_ARRAY], (handle,))
    _call(job[FREE], (address,))


@_compiled(cfunc, types.void(types.voidptr))
def worker(parameter: Any) -> None:
    """Update the share of the calling thread of an OpenMP team."""
    job = carray(parameter, (HEADER_SIZE,), np.int64)
    _update_share(job, np.int64(_call(job[THREAD_NUMBER], ())), np.int64(_call(job[THREAD_COUNT], ())))


@_compiled(cfunc, types.void(types.voidptr, types.voidptr))
def update(_: Any, parameter: Any) -> None:
    """Make the whole update; the engine calls it as the operation (``EngineSyncFunc`` in include/mxnet/c_api.h)."""
    job = carray(parameter, (HEADER_SIZE,), np.int64)
    _locate(job)
    if job[RUN_TEAM] != 0:
        _call(job[RUN_TEAM], (job[WORKER], _to_address(parameter), np.int32(0), np.int32(0)))
    else:
        _update_share(job, np.int64(0), np.int64(1))


@_compiled(cfunc, types.void(types.voidptr))
def release(parameter: Any) -> None:
    """Free what an operation owns, whether it ran or not (``EngineFuncParamDeleter``)."""
    _release_job(_to_address(parameter))


@_compiled(njit, types.boolean(types.int64[::1], types.int64[::1]), **_OPTIONS)
def all_fresh(job, handles):  # type: ignore[no-untyped-def]
    """Whether a backward pass has written the gradient of every weight since its last update."""
    fresh = np.zeros(1, np.int32)
    for i in range(0, handles.size, job[ARRAYS_PER_TENSOR]):
        _call(job[GET_FRESH], (handles[i], fresh.ctypes.data))
        if fresh[0] == 0:
            return False
    return True


@_compiled(njit, types.int32(types.int64[::1], types.int64[::1]), **_OPTIONS)
def launch(job, handles):  # type: ignore[no-untyped-def]
    """Hand an update to the engine and mark the gradients as used; return MXNet's error code, 0 for success.

    For Python this is one call, which nothing can interrupt.
    """
    address = _call_for_address(job[ALLOCATE], (8 * job.size,))
    _int64_array(address, job.size)[:] = job
    own_handles = address + job[HANDLES]
    for i in range(handles.size):
        code = _call(job[DETACH], (handles[i], own_handles + 8 * i))
        if code != 0:
            _release_job(address)
            return code
    null, zero = np.int64(0), np.int32(0)
    operation = job[UPDATE], address, job[RELEASE], job.ctypes.data + job[CONTEXT]
    # All arrays count as written: the layout of a gradient may change, too.
    arrays = null, zero, own_handles, np.int32(handles.size)
    code = _call(job[PUSH], operation + arrays + (null, zero, job.ctypes.data + job[NAME]))
    if code == 0:
        for i in range(0, handles.size, job[ARRAYS_PER_TENSOR]):
            _call(job[SET_FRESH], (handles[i], zero))
    return code


if _failures:
    _log.warning("compiled the fast update again, since numba's cache could not be used: %r", _failures[0])


atexit.register(nd.waitall)  # runs before numba, imported earlier, frees the code that operations run
