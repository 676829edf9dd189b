"""How many of the cores MXNet uses: `use_all_cores`, and a note if a trainer finds some idle.

MXNet decides once, while it is imported, so nothing here may import it before a function needs it.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import re
import sys
import threading
from typing import Any, Iterable

# What MXNet reads (src/engine/openmp.cc); the first decides if both are set.
VARIABLES = ("OMP_NUM_THREADS", "MXNET_OMP_MAX_THREADS")
# What Horovod, Open MPI, MPICH and Intel MPI, and MVAPICH2 say about the ranks on this machine.
_LOCAL_SIZES = ("HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")

_log = logging.getLogger("multitrainer")
_not_noted_yet = threading.Lock()  # never released: it is acquired once in a process


def use_all_cores() -> int:
    """Let MXNet compute on every physical core that this process may use. Call it before ``import mxnet``.

    By itself, MXNet starts half as many threads as there are logical CPUs on x86, because it expects two of them on
    each core (``src/engine/openmp.cc``). Without hyper-threading, as on most virtual machines, half of the cores are
    idle.

    The function sets ``MXNET_OMP_MAX_THREADS``, which MXNet alone reads, and processes that are started later inherit.
    If it or ``OMP_NUM_THREADS`` is set, nothing is changed. Cores are counted by joblib, within the affinity of the
    process, the quota of its container and ``LOKY_MAX_CPU_COUNT``. Ranks that Horovod, MPI, Slurm or MXNet's
    parameter servers have started on the same CPUs share them.

    Returns
    -------
    int
        The number of threads that MXNet uses on a CPU; if there are several CPU contexts, on each.

    Raises
    ------
    RuntimeError
        If MXNet has been imported and uses another number of threads.
    ImportError
        If joblib is not installed, and none of the variables is set.
    ValueError
        If one of the variables is set to something other than a whole number of at least 1.

    Examples
    --------
    >>> import multitrainer
    >>> multitrainer.use_all_cores()  # doctest: +SKIP
    8
    >>> import mxnet as mx
    """
    chosen = chosen_threads()
    wanted = _count_cores() if chosen is None else chosen
    if sys.modules.get("mxnet") is not None:
        used = count_threads()
        if used != wanted:
            raise RuntimeError(
                f"MXNet has been imported and uses {used} threads, not {wanted}: call multitrainer.use_all_cores() "
                f"before `import mxnet`, or start the process with MXNET_OMP_MAX_THREADS={wanted}"
            )
    elif chosen is None:
        os.environ["MXNET_OMP_MAX_THREADS"] = str(wanted)
    return wanted


def count_threads() -> int:
    """Return the number of threads with which MXNet computes on a CPU in this process; MXNet is imported for that."""
    from . import _mxnet

    return _mxnet.worker_threads()


def chosen_threads() -> int | None:
    """Return the number of threads that the environment asks for, as MXNet reads it; None if it does not.

    Raises
    ------
    ValueError
        If it is not a whole number of at least 1. MXNet ends the process if it is not a number.
    """
    for name in VARIABLES:
        text = os.environ.get(name)
        if text:
            if not (text.strip().isdecimal() and int(text) > 0):
                raise ValueError(f"{name}={text}: expected a whole number of at least 1; unset it to use all cores")
            return int(text) if name == "OMP_NUM_THREADS" else min(int(text), len(os.sched_getaffinity(0)))
    return None


def note_idle_cores(contexts: Iterable[Any]) -> None:
    """Log once in a process how to use the cores that MXNet leaves idle, for a trainer on these contexts.

    Nothing is counted if the level of the logger ``multitrainer`` is above INFO, if the user has chosen the number of
    threads, or in a process of multiprocessing, because its parent may have others.
    """
    if not _log.isEnabledFor(logging.INFO) or any(os.environ.get(name) for name in VARIABLES):
        return
    on_cpu = any(context.device_type == "cpu" for context in contexts)
    if not on_cpu or multiprocessing.parent_process() is not None or not _not_noted_yet.acquire(blocking=False):
        return
    try:
        wanted = _count_cores()
    except ImportError:
        return
    used = count_threads()
    if used < wanted:
        _log.info(
            "MXNet computes with %d of the %d threads that this process has cores for; call "
            "multitrainer.use_all_cores() before `import mxnet`, or start it with MXNET_OMP_MAX_THREADS=%d",
            *(used, wanted, wanted),
        )


def _count_cores() -> int:
    """Return how many cores there are for this process."""
    try:
        import joblib
    except ImportError as error:
        raise ImportError(
            f"joblib, which counts the cores, cannot be imported ({error}): pip install 'multitrainer[fast]', or set "
            "MXNET_OMP_MAX_THREADS to the number of cores"
        ) from error
    return max(1, int(joblib.cpu_count(only_physical_cores=True)) // _count_ranks_on_cpus())


def _count_ranks_on_cpus() -> int:
    """Return how many ranks share the CPUs of this process.

    A launcher that binds each rank to CPUs of its own has more of them itself than the rank has.
    """
    own, of_launcher = (len(os.sched_getaffinity(process)) for process in (0, os.getppid()))
    return max(1, math.ceil(_count_local_ranks() * own / max(own, of_launcher)))


def _count_local_ranks() -> int:
    """Return how many ranks of this process's job run on this machine, as far as the launcher says it."""
    environment = os.environ
    for name in _LOCAL_SIZES:
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    if environment.get("SLURM_STEP_TASKS_PER_NODE"):
        return _slurm_tasks(environment["SLURM_STEP_TASKS_PER_NODE"], environment.get("SLURM_NODEID", "0"))
    address = environment.get("DMLC_PS_ROOT_URI", "")
    if environment.get("DMLC_ROLE") == "worker" and (address == "localhost" or address.startswith("127.")):
        return int(environment.get("DMLC_NUM_WORKER", "1"))  # nobody reaches that address from another machine
    return 1


def _slurm_tasks(text: str, node: str) -> int:
    """Return the tasks on a node of a list such as ``2(x3),1``: two on each of three nodes, one on the fourth."""
    tasks: list[int] = []
    for count, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        tasks += [int(count)] * int(nodes or 1)
    return tasks[int(node)]
