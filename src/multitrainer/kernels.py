"""The updates of SGD, NAG and Adam for all Parameters in one operation of MXNet's engine. Needs the extra ``fast``.

The operation runs in the engine's own thread and on the OpenMP team that MXNet's operators use. It holds every array
that it reads or writes while it runs, as any operator of MXNet does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray, cfunc, config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

if config.DISABLE_JIT:
    raise ImportError("numba compiles nothing under NUMBA_DISABLE_JIT")

# What is to be done, as 64-bit numbers in one array that C functions can be handed: see `_Operation` in fast.py.
KIND, TENSORS, ARRAYS, HANDLES, PLACES, ENDS, RATES, DECAYS, SCALARS, DONE, TO_DLPACK, DELETE, PARALLEL = range(13)
THREAD, THREADS, WORKER, LENGTH = range(13, 17)

NOTHING, SGD, SGD_MOMENTUM, NAG_MOMENTUM, PLAIN, ADAM = range(6)

# Division by 0 gives inf, as in C++. Without fastmath, LLVM neither reorders nor contracts what is written here.
_OPTIONS = {"nogil": True, "error_model": "numpy"}


@intrinsic
def _pointer(_: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@intrinsic
def _address(_: Any, pointer: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], cgutils.intp_t)

    return types.int64(pointer), generate


@intrinsic
def _call(_: Any, function: Any, arguments: Any) -> Any:
    """Call the C function at an address with integers and pointers, and return its int."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = cgutils.unpack_tuple(builder, args[1])
        kind = cgutils.ir.FunctionType(cgutils.int32_t, [value.type for value in values])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)

    return types.int32(function, arguments), generate


@njit(**_OPTIONS)
def _numbers(address: int, count: int) -> Any:
    return carray(_pointer(address), (count,), np.int64)


@njit(**_OPTIONS)
def _floats(address: int, count: int) -> Any:
    return carray(_pointer(address), (count,), np.float32)


@njit(**_OPTIONS)
def _sgd(w, g, lr, wd, rescale):  # type: ignore[no-untyped-def]
    """MultiSGDKernel without momentum, in its order of operations (src/operator/optimizer_op-inl.h)."""
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
def _nag_momentum(w, g, m, lr, wd, rescale, momentum):  # type: ignore[no-untyped-def]
    """NAGMomKernel, where the momentum gets the weight decay of the weight that was just updated."""
    ahead = momentum + np.float32(1)
    for i in range(w.size):
        m[i] = momentum * m[i]
        gradient = rescale * g[i]
        w[i] = w[i] - m[i] + ahead * (m[i] - lr * (gradient + wd * w[i]))
        m[i] = m[i] - lr * (gradient + wd * w[i])


@njit(**_OPTIONS)
def _plain(w, g, lr, wd, rescale):  # type: ignore[no-untyped-def]
    """SGDKernel, which NAG uses without momentum."""
    keep, rate = np.float32(1) - lr * wd, lr * rescale
    for i in range(w.size):
        w[i] = keep * w[i] - rate * g[i]


@njit(**_OPTIONS)
def _adam(w, g, m, v, lr, wd, rescale, beta1, beta2, epsilon):  # type: ignore[no-untyped-def]
    """AdamUpdateKernel."""
    rest1, rest2 = np.float32(1) - beta1, np.float32(1) - beta2
    for i in range(w.size):
        gradient = g[i] * rescale + w[i] * wd
        m[i] = beta1 * m[i] + rest1 * gradient
        v[i] = beta2 * v[i] + rest2 * gradient * gradient
        w[i] = w[i] - lr * m[i] / (math.sqrt(v[i]) + epsilon)


@njit(**_OPTIONS)
def _share(job, thread, threads):  # type: ignore[no-untyped-def]
    """Update what falls to one thread: an equal share of all values, wherever tensors begin and end."""
    kind, tensors, arrays = job[KIND], job[TENSORS], job[ARRAYS]
    pointers, ends = _numbers(job[PLACES], tensors * arrays), _numbers(job[ENDS], tensors)
    rates, decays, scalars = _floats(job[RATES], tensors), _floats(job[DECAYS], tensors), _floats(job[SCALARS], 4)
    total = ends[tensors - 1]
    # In steps of 16 values, a cache line, so that two threads do not write to one.
    first = total * thread // threads // 16 * 16
    last = total if thread == threads - 1 else total * (thread + 1) // threads // 16 * 16
    begin = np.int64(0)
    for i in range(tensors):
        low, high = max(first, begin), min(last, ends[i])
        if low < high:
            at, count, offset = i * arrays, high - low, 4 * (low - begin)
            w, g = _floats(pointers[at] + offset, count), _floats(pointers[at + 1] + offset, count)
            if kind == SGD:
                _sgd(w, g, rates[i], decays[i], scalars[0])
            elif kind == PLAIN:
                _plain(w, g, rates[i], decays[i], scalars[0])
            else:
                m = _floats(pointers[at + 2] + offset, count)
                if kind == SGD_MOMENTUM:
                    _sgd_momentum(w, g, m, rates[i], decays[i], scalars[0], scalars[1])
                elif kind == NAG_MOMENTUM:
                    _nag_momentum(w, g, m, rates[i], decays[i], scalars[0], scalars[1])
                else:
                    v = _floats(pointers[at + 3] + offset, count)
                    _adam(w, g, m, v, rates[i], decays[i], scalars[0], scalars[1], scalars[2], scalars[3])
        begin = ends[i]


@njit(**_OPTIONS)
def _locate(job):  # type: ignore[no-untyped-def]
    """Note where the memory of every array is; whether all of them are in the plain layout."""
    count = job[TENSORS] * job[ARRAYS]
    handles, pointers = _numbers(job[HANDLES], count), _numbers(job[PLACES], count)
    for i in range(count):
        # MXNDArrayGetData would reorder an array of another layout by an operation that waits for this one. This
        # refuses such an array. It leaves a DLManagedTensor's address here, whose first field is the data's.
        place = job[PLACES] + 8 * i
        if _call(job[TO_DLPACK], (handles[i], place)) != 0:
            return False
        tensor = pointers[i]
        pointers[i] = _numbers(tensor, 1)[0]
        _call(job[DELETE], (tensor,))
    return True


@cfunc(types.void(types.voidptr), cache=True)
def worker(parameter: Any) -> None:
    """Update the share of the calling thread of an OpenMP team."""
    job = carray(parameter, (LENGTH,), np.int64)
    _share(job, np.int64(_call(job[THREAD], ())), np.int64(_call(job[THREADS], ())))


@cfunc(types.void(types.voidptr, types.voidptr), cache=True)
def update(_: Any, parameter: Any) -> None:
    """Make the whole update; an operation of the engine (``EngineSyncFunc`` in include/mxnet/c_api.h)."""
    job = carray(parameter, (LENGTH,), np.int64)
    if _locate(job):
        if job[KIND] == NOTHING:
            pass
        elif job[PARALLEL] != 0:
            _call(job[PARALLEL], (job[WORKER], _address(parameter), 0, 0))
        else:
            _share(job, np.int64(0), np.int64(1))
        job[DONE] = 1


@njit(types.boolean(types.int64, types.int64[::1]), cache=True, **_OPTIONS)
def all_fresh(function, handles):  # type: ignore[no-untyped-def]
    """Whether a backward pass has written the gradient of every array since the last update of it."""
    state = np.zeros(1, np.int32)
    for handle in handles:
        _call(function, (handle, state.ctypes.data))
        if state[0] == 0:
            return False
    return True


@njit(types.void(types.int64, types.int64[::1]), cache=True, **_OPTIONS)
def use_gradients(function, handles):  # type: ignore[no-untyped-def]
    """Note that the gradients of all arrays were used."""
    for handle in handles:
        _call(function, (handle, 0))
