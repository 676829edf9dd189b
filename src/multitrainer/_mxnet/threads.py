"""How many OpenMP threads MXNet computes with on a CPU."""

from __future__ import annotations

import ctypes
import queue

from mxnet.base import _LIB, check_call

_FIRST_CPU = (ctypes.c_int * 2)(1, 0)  # mxnet::Context: the type of the device, and its number
_BEFORE_OTHERS = ctypes.c_int(3)  # FnProperty::kCPUPrioritized: does not wait for operations that are under way

_answers: queue.SimpleQueue[int] = queue.SimpleQueue()


def worker_threads() -> int:
    """Return the number of threads that operators use on a CPU.

    It is asked of a thread of the engine, because MXNet gives each of them a number of its own. The environment only
    says what MXNet was told when it was loaded, and the number of the main thread is another one.
    """
    engine_call = (_answer, None, None, ctypes.byref(_FIRST_CPU), None, 0, None, 0)
    check_call(_LIB.MXEnginePushSync(*engine_call, ctypes.byref(_BEFORE_OTHERS), 0, b"worker_threads"))
    return _answers.get()


@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
def _answer(*_: object) -> None:
    _answers.put(int(_LIB.omp_get_max_threads()) if hasattr(_LIB, "omp_get_max_threads") else 1)
