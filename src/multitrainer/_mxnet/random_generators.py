"""The random generators of MXNet on the CPU: reading and writing their states, which MXNet itself only seeds."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import nd
from mxnet.base import _LIB

# Operators draw from one engine (`mshadow::Random`) or from an array of them (`RandGenerator`), of which every thread
# that calls operators has its own: mxnet/include/mxnet/resource.h and random_generator.h in the wheel.
_ENGINE, _ENGINE_ARRAY = 0, 2  # ResourceRequest::Type
_ENGINES = {_ENGINE: 1, _ENGINE_ARRAY: 1024}
_WORDS = 624  # of std::mt19937; then follows the position of the next one
_GET_MANAGER = "_ZN5mxnet15ResourceManager3GetEv"


class _Context(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int32))


class _Resource(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("var", ctypes.c_void_p),
        ("id", ctypes.c_int32),
        ("generator", ctypes.c_void_p),
    )


def cpu_generators() -> list[np.ndarray] | None:
    """Return the memory that holds the states of this thread's generators on the CPU, or None if it is not found.

    Call ``nd.waitall`` before reading or writing it.
    """
    if not _layout_is_known():
        return None
    addresses = {kind: _generator(kind) for kind in _ENGINES}
    nd.waitall()  # the engine allocates the states of a thread after their first request
    found = [_states(kind, address) for kind, address in addresses.items()]
    if all(map(_is_plausible, found)) and _predicts_draws(found):
        return found
    return None


def _layout_is_known() -> bool:
    # With more copies of the array, every request gives the next one.
    return (
        mx.__version__ == "1.9.1"
        and platform.machine() == "x86_64"
        and hasattr(_LIB, _GET_MANAGER)
        and os.environ.get("MXNET_CPU_PARALLEL_RAND_COPY", "1") == "1"
    )


def _generator(kind: int) -> int:
    """Return the address of a generator of this thread."""
    get_manager = getattr(_LIB, _GET_MANAGER)
    get_manager.restype = ctypes.c_void_p
    manager = get_manager()
    functions = ctypes.c_void_p.from_address(manager).value or 0
    request = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, _Context, ctypes.c_void_p)(
        ctypes.c_void_p.from_address(functions).value or 0  # ResourceManager::Request is its first virtual function
    )
    resource, wanted = _Resource(), ctypes.c_int(kind)
    request(ctypes.addressof(resource), manager, _Context(1, 0), ctypes.addressof(wanted))
    return (resource.generator or 0) if resource.type == kind else 0


def _states(kind: int, generator: int) -> np.ndarray:
    """Return the memory of the states; without rows if there is none."""
    address = ctypes.c_void_p.from_address(generator).value if generator and kind == _ENGINE_ARRAY else generator
    rows = _ENGINES[kind] if address else 0
    words = (ctypes.c_uint64 * (rows * (_WORDS + 1))).from_address(address or 0)
    return np.ctypeslib.as_array(words).reshape(rows, _WORDS + 1)


def _is_plausible(states: Any) -> bool:
    return len(states) > 0 and bool((states[:, :_WORDS] < 2**32).all() and (states[:, _WORDS] <= _WORDS).all())


def _predicts_draws(generators: Any) -> bool:
    """Whether writing the states repeats what MXNet draws; the generators are left as they are."""
    saved, draws = [states.copy() for states in generators], []
    for _ in range(2):
        draws.append(np.concatenate([nd.random.uniform(shape=8).asnumpy(), nd.shuffle(nd.arange(8)).asnumpy()]))
        nd.waitall()
        moved = all((states != before).any() for states, before in zip(generators, saved))
        for states, before in zip(generators, saved):
            states[:] = before
    return moved and bool((draws[0] == draws[1]).all())
