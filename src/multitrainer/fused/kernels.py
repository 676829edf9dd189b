"""The updates of SGD, NAG and Adam for all Parameters in one operation of MXNet's engine. Needs the extra ``fast``.

The operation runs in the engine's own thread and on the OpenMP team that MXNet's operators use. Like any operator of
MXNet it holds every array that it reads or writes while it runs, it owns all that it needs until then, and `launch`,
which hands it to the engine, does not wait for it.
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


# What is to be done, as an array of 64-bit numbers. First what kind of update of how many tensors, of how many arrays
# each (weight, gradient, states); then at which place of this array each of its parts begins; then C functions.
KIND, TENSORS, ARRAYS, HANDLES, POINTERS, FOREIGN, ENDS, RATES, DECAYS, SCALARS, CONTEXT, NAME = range(12)


ALLOCATE, FREE, DETACH, FREE_ARRAY, IS_FOREIGN, MAKE_PLAIN, GET_DATA, PUSH, GET_STATE, SET_STATE = range(12, 22)


PARALLEL, THREAD, THREADS, WORKER, UPDATE, RELEASE, HEADER = range(22, 29)


SGD, SGD_MOMENTUM, NAG_MOMENTUM, PLAIN, ADAM = range(5)


# Division by 0 gives inf, as in C++. Without fastmath, LLVM neither reorders nor contracts what is written here.
_OPTIONS = {"nogil": True, "error_model": "numpy"}


_log = logging.getLogger("multitrainer")


_failures: list[Exception] = []


def _compiled(compiler: Callable[..., Any], *signature: Any, **options: Any) -> Callable[[Any], Any]:
    """Return a decorator that compiles by one of numba's, and has numba keep the result in its cache if it can."""

    def compiled(function: Any) -> Any:
        try:
            return compiler(*signature, cache=True, **options)(function)
        except Exception as error:  # a damaged file raises whatever pickle does; there may be no place for one
            _failures.append(error)
        with contextlib.suppress(Exception):
            FunctionCache(function).flush()
            return compiler(*signature, cache=True, **options)(function)
        return compiler(*signature, **options)(function)

    return compiled


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
def _call_for_address(_: Any, function: Any, arguments: Any) -> Any:
    """Call the C function at an address with integers and pointers, and return the address that it returns."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = cgutils.unpack_tuple(builder, args[1])
        kind = cgutils.ir.FunctionType(cgutils.intp_t, [value.type for value in values])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)

    return types.int64(function, arguments), generate


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
def _nag_momentum(w, g, m, lr, wd, rescale, momentum, foreign):  # type: ignore[no-untyped-def]
    """NAGMomKernel, where the momentum gets the weight decay of the weight that was just updated.

    Of a weight in a layout of MKL-DNN's the operator gets a copy to read, and so the weight from before.
    """
    ahead = momentum + np.float32(1)
    for i in range(w.size):
        m[i] = momentum * m[i]
        gradient, before = rescale * g[i], w[i]
        w[i] = before - m[i] + ahead * (m[i] - lr * (gradient + wd * before))
        m[i] = m[i] - lr * (gradient + wd * (before if foreign else w[i]))


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
    kind, tensors, arrays, here = job[KIND], job[TENSORS], job[ARRAYS], job.ctypes.data
    pointers, ends = _numbers(here + job[POINTERS], tensors * arrays), _numbers(here + job[ENDS], tensors)
    rates, decays = _floats(here + job[RATES], tensors), _floats(here + job[DECAYS], tensors)
    scalars, foreign = _floats(here + job[SCALARS], 4), _numbers(here + job[FOREIGN], tensors)
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
                    _nag_momentum(w, g, m, rates[i], decays[i], scalars[0], scalars[1], foreign[i] != 0)
                else:
                    v = _floats(pointers[at + 3] + offset, count)
                    _adam(w, g, m, v, rates[i], decays[i], scalars[0], scalars[1], scalars[2], scalars[3])
        begin = ends[i]


@njit(**_OPTIONS)
def _locate(job):  # type: ignore[no-untyped-def]
    """Note where the memory of every array is, each in the plain layout."""
    count, here = job[TENSORS] * job[ARRAYS], job.ctypes.data
    handles, foreign = _numbers(here + job[HANDLES], count), _numbers(here + job[FOREIGN], job[TENSORS])
    for i in range(count):
        # A prediction leaves weights in a layout of MKL-DNN's. MXNDArrayGetData would have the engine put them back,
        # and wait for what waits for this operation.
        block = _numbers(handles[i], 1)[0]
        if job[IS_FOREIGN] != 0 and _call(job[IS_FOREIGN], (block,)) & 1:  # a bool of C++, which is one byte
            _call(job[MAKE_PLAIN], (block,))
            if i % job[ARRAYS] == 0:
                foreign[i // job[ARRAYS]] = 1
        _call(job[GET_DATA], (handles[i], here + job[POINTERS] + 8 * i))


@njit(**_OPTIONS)
def _release(address):  # type: ignore[no-untyped-def]
    job = _numbers(address, HEADER)
    for handle in _numbers(address + job[HANDLES], job[TENSORS] * job[ARRAYS]):
        if handle != 0:
            _call(job[FREE_ARRAY], (handle,))
    _call(job[FREE], (address,))


@_compiled(cfunc, types.void(types.voidptr))
def worker(parameter: Any) -> None:
    """Update the share of the calling thread of an OpenMP team."""
    job = carray(parameter, (HEADER,), np.int64)
    _share(job, np.int64(_call(job[THREAD], ())), np.int64(_call(job[THREADS], ())))


@_compiled(cfunc, types.void(types.voidptr, types.voidptr))
def update(_: Any, parameter: Any) -> None:
    """Make the whole update; an operation of the engine (``EngineSyncFunc`` in include/mxnet/c_api.h)."""
    job = carray(parameter, (HEADER,), np.int64)
    _locate(job)
    if job[PARALLEL] != 0:
        _call(job[PARALLEL], (job[WORKER], _address(parameter), np.int32(0), np.int32(0)))
    else:
        _share(job, np.int64(0), np.int64(1))


@_compiled(cfunc, types.void(types.voidptr))
def release(parameter: Any) -> None:
    """Free what an operation owned, whether it ran or not (``EngineFuncParamDeleter``)."""
    _release(_address(parameter))


@_compiled(njit, types.boolean(types.int64[::1], types.int64[::1]), **_OPTIONS)
def all_fresh(orders, handles):  # type: ignore[no-untyped-def]
    """Whether a backward pass has written the gradient of every weight since the last update of it."""
    state = np.zeros(1, np.int32)
    for i in range(0, handles.size, orders[ARRAYS]):
        _call(orders[GET_STATE], (handles[i], state.ctypes.data))
        if state[0] == 0:
            return False
    return True


@_compiled(njit, types.int32(types.int64[::1], types.int64[::1]), **_OPTIONS)
def launch(orders, handles):  # type: ignore[no-untyped-def]
    """Hand an update of these arrays to the engine, and note that the gradients were used; return MXNet's error code.

    For Python this is one call, which nothing interrupts.
    """
    address = _call_for_address(orders[ALLOCATE], (8 * orders.size,))
    _numbers(address, orders.size)[:] = orders
    own = address + orders[HANDLES]
    for i in range(handles.size):
        code = _call(orders[DETACH], (handles[i], own + 8 * i))
        if code != 0:
            _release(address)
            return code
    null, zero = np.int64(0), np.int32(0)
    operation = orders[UPDATE], address, orders[RELEASE], orders.ctypes.data + orders[CONTEXT]
    arrays = null, zero, own, np.int32(handles.size)  # all are written: a gradient, too, may have to change its layout
    code = _call(orders[PUSH], operation + arrays + (null, zero, orders.ctypes.data + orders[NAME]))
    if code == 0:
        for i in range(0, handles.size, orders[ARRAYS]):
            _call(orders[SET_STATE], (handles[i], zero))
    return code


if _failures:
    _log.warning("compiled the fast update again, since numba's cache could not be used: %r", _failures[0])


atexit.register(nd.waitall)  # before numba, which was imported earlier, frees the code that an operation runs
