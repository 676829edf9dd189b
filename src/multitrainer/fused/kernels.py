"""The compiled kernels of kernels.c: its structures for ctypes, and how it is loaded.

They are compiled when the package is built, if there is a C compiler, into a shared library beside this file. It is no
module of Python, so that one file serves every version of Python.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
from pathlib import Path

from .. import _mxnet

# The arrays of each Parameter: weight, gradient and states. In the order of `enum kernel`.
ARRAYS_PER_PARAMETER = {"SGD": 2, "SGD_MOMENTUM": 3, "NAG": 2, "NAG_MOMENTUM": 3, "ADAM": 4, "ADAMW": 4}

VERSION = 1  # of kernels.c
LIBRARY = "_kernels.abi3.so"

FUNCTIONS = {
    "detach": "MXNDArrayDetach",
    "free_array": "MXNDArrayFree",
    "get_data": "MXNDArrayGetData",
    "get_fresh": "MXNDArrayGetGradState",
    "set_fresh": "MXNDArraySetGradState",
    "push": "MXEnginePushSyncND",
}
# The first two give the number of threads that MXNet's operators use: one in a forked process, in which a team hangs.
TEAM_FUNCTIONS = {
    "openmp": "_ZN5mxnet6engine6OpenMP3GetEv",
    "recommended_threads": "_ZNK5mxnet6engine6OpenMP28GetRecommendedOMPThreadCountEb",
    "run_team": "GOMP_parallel",
    "thread_number": "omp_get_thread_num",
    "thread_count": "omp_get_num_threads",
}

_CURE = "with a C compiler, `pip install --force-reinstall --no-deps --no-cache-dir multitrainer` compiles it"

_log = logging.getLogger("multitrainer")


class Functions(ctypes.Structure):
    """``struct functions``: addresses of functions of MXNet, 0 for one that is not needed."""

    _fields_ = [(name, ctypes.c_void_p) for name in (*FUNCTIONS, "is_mkldnn_layout", "make_plain", *TEAM_FUNCTIONS)]


class Plan(ctypes.Structure):
    """``struct plan``: what stays the same from update to update."""

    _fields_ = [
        ("mxnet", Functions),
        ("kernel", ctypes.c_int32),
        ("tensors", ctypes.c_int32),
        ("arrays", ctypes.c_int32),
        ("context", ctypes.c_int32 * 2),
        ("name", ctypes.c_char_p),
        ("handles", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
    ]


class Numbers(ctypes.Structure):
    """``struct numbers``: the numbers of one update."""

    _fields_ = [
        ("rescale", ctypes.c_float),
        ("momentum", ctypes.c_float),
        ("beta2", ctypes.c_float),
        ("learning_rates", ctypes.c_void_p),
        ("weight_decays", ctypes.c_void_p),
        ("kept", ctypes.c_void_p),
        ("epsilons", ctypes.c_void_p),
    ]


def mxnet_functions(several_threads: bool) -> Functions:
    """Return the functions of MXNet that an update calls, with those of an OpenMP team if it is to use one."""
    functions = {field: _mxnet.function_address(name) for field, name in FUNCTIONS.items()}
    functions["is_mkldnn_layout"], functions["make_plain"] = _mxnet.layout_functions() or (0, 0)
    team = {field: _mxnet.function_address(name) for field, name in TEAM_FUNCTIONS.items()}
    if several_threads and all(team.values()):  # MXNet may be built without OpenMP
        functions.update(team)
    return Functions(**functions)


@functools.lru_cache(maxsize=None)
def load_kernels() -> ctypes.CDLL | None:
    """Return the library of the compiled kernels, or None if the update is left to stock; the log says why."""
    reason = _why_not()
    if reason is not None:
        _log.info("the fast update is off: %s", reason)
        return None
    try:
        library = ctypes.CDLL(str(Path(__file__).with_name(LIBRARY)))
        library.launch.argtypes = [ctypes.POINTER(Plan), ctypes.POINTER(Numbers)]
        library.all_fresh.argtypes = [ctypes.POINTER(Plan)]
        found = list((ctypes.c_int64 * 3).in_dll(library, "abi"))
    except (OSError, AttributeError, ValueError) as error:  # compiled for another machine, or damaged
        found = [error]
    if found != [VERSION, ctypes.sizeof(Plan), ctypes.sizeof(Numbers)]:
        _log.warning("the fast update is off: %s is of another version, or cannot be loaded; %s", LIBRARY, _CURE)
        return None
    return library


def _why_not() -> str | None:
    if platform.machine() != "x86_64":
        return "its bits were compared with MXNet's on x86-64 alone"
    if _mxnet.layout_functions() is None:
        return "this build of MXNet hides what it needs"
    if not Path(__file__).with_name(LIBRARY).exists():
        return f"there was no C compiler when multitrainer was installed; {_CURE}"
    return None
