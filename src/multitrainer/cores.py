"""How many of the cores MXNet uses: `use_all_cores`, and a note if a trainer finds some idle.

MXNet decides once, while it is imported, so nothing here may import it before a function needs it.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any, Iterable

# What MXNet reads (src/engine/openmp.cc); the first decides if both are set.
VARIABLES = ("OMP_NUM_THREADS", "MXNET_OMP_MAX_THREADS")
# What Horovod, Open MPI, MPICH and Intel MPI, and MVAPICH2 say about the ranks on this machine.
_LOCAL_SIZES = ("HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")

_CPUS = Path("/sys/devices/system/cpu")
_DIGITS = re.compile("[0-9]{1,10}")
_MOST_THREADS = 2**31 - 1  # MXNet reads an int

_log = logging.getLogger("multitrainer")
_not_noted_yet = threading.Lock()  # never released: it is acquired once in a process
# In a fork of the process that imported MXNet, it has one thread, and the cure in the note would not help.
os.register_at_fork(after_in_child=lambda: "mxnet" in sys.modules and _not_noted_yet.acquire(blocking=False))


def use_all_cores() -> int:
    """Let MXNet compute on every physical core that this process may use. Call it before ``import mxnet``.

    By itself, MXNet starts half as many threads as there are logical CPUs on x86, because it expects two of them on
    each core (``src/engine/openmp.cc``). Without hyper-threading, as on most virtual machines, half of the cores are
    idle.

    The function sets ``MXNET_OMP_MAX_THREADS``, which MXNet alone reads, and processes that are started later inherit.
    If it or ``OMP_NUM_THREADS`` is set, nothing is changed. Cores are counted with joblib, within the affinity of the
    process, the quota of its container and ``LOKY_MAX_CPU_COUNT``. The ranks that Horovod, MPI, Slurm or MXNet's
    parameter servers have started on this machine share them, except those that the launcher has bound to other CPUs.

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
        If one of the variables, or ``LOKY_MAX_CPU_COUNT``, is set to something that cannot be read as a number.

    Examples
    --------
    >>> import multitrainer
    >>> multitrainer.use_all_cores()  # doctest: +SKIP
    8
    >>> import mxnet as mx
    """
    chosen = chosen_threads()
    wanted = _count_share() if chosen is None else chosen
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
        If one of the variables is not a whole number that MXNet can read: it would end the process.
    """
    numbers: dict[str, int] = {}
    for name in VARIABLES:  # both, because MXNet reads the second even if the first decides
        text = os.environ.get(name)
        if text:
            number = _positive(text.strip())
            if number is None:
                expected = f"expected a whole number from 1 to {_MOST_THREADS}"
                raise ValueError(f"{name}={text}: {expected}; unset it to use all cores")
            numbers[name] = number
    if "OMP_NUM_THREADS" in numbers:
        return numbers["OMP_NUM_THREADS"]
    return min(numbers["MXNET_OMP_MAX_THREADS"], len(os.sched_getaffinity(0))) if numbers else None


def count_cores() -> int:
    """Return the number of physical cores that this process may use, with all of its ranks.

    Raises
    ------
    ImportError
        If joblib is not installed.
    ValueError
        If ``LOKY_MAX_CPU_COUNT`` is not a number.
    """
    try:
        import joblib
    except ImportError as error:
        raise ImportError(
            f"joblib, which counts the cores, cannot be imported ({error}): pip install 'multitrainer[fast]', or set "
            "MXNET_OMP_MAX_THREADS to the number of cores"
        ) from error
    limit = os.environ.get("LOKY_MAX_CPU_COUNT", "1")
    try:
        int(limit)
    except ValueError:
        raise ValueError(f"LOKY_MAX_CPU_COUNT={limit}: expected a whole number; unset it to use all cores") from None
    # Under an affinity or a quota, joblib counts logical CPUs.
    return max(1, min(int(joblib.cpu_count(only_physical_cores=True)), _count_cores_of(os.sched_getaffinity(0))))


def note_idle_cores(contexts: Iterable[Any]) -> None:
    """Log once in a process how to use the cores that MXNet leaves idle, for a trainer on these contexts.

    Nothing is counted if the level of the logger ``multitrainer`` is above INFO, if the user has chosen the number of
    threads, in a process of multiprocessing, because its parent may have others, or in any other fork of the process
    that imported MXNet, because MXNet has one thread there. What hinders counting is not raised: a note may not stop
    a training.
    """
    if not _log.isEnabledFor(logging.INFO) or any(os.environ.get(name) for name in VARIABLES):
        return
    on_cpu = any(context.device_type == "cpu" for context in contexts)
    if not on_cpu or multiprocessing.parent_process() is not None or not _not_noted_yet.acquire(blocking=False):
        return
    try:
        wanted = _count_share()
        used = count_threads()
    except Exception:
        _log.debug("the cores cannot be counted", exc_info=True)
        return
    if used < wanted:
        _log.info(
            "MXNet computes with %d of the %d threads that this process has cores for; call "
            "multitrainer.use_all_cores() before `import mxnet`, or start it with MXNET_OMP_MAX_THREADS=%d",
            *(used, wanted, wanted),
        )


def _count_cores_of(cpus: set[int]) -> int:
    """Return on how many cores these logical CPUs are; without Linux's files about them, each counts as one."""
    try:
        return len({(_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in cpus})
    except OSError:
        return len(cpus)


def _count_share() -> int:
    """Return how many cores there are for this process, if it shares them with other ranks."""
    variable, ranks = _local_ranks()
    elsewhere = _count_siblings_elsewhere(variable) if ranks > 1 else 0
    return max(1, count_cores() // max(1, ranks - elsewhere))


def _count_siblings_elsewhere(variable: str) -> int:
    """Return how many processes of the launcher, which sets this variable, have no CPU in common with this one.

    The launcher is the nearest ancestor without the variable, since a script that starts a rank has it, too. What it
    starts is bound before it runs. What cannot be seen, as in a container of its own, is not elsewhere.
    """
    own = os.sched_getaffinity(0)
    elsewhere = 0
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{_find_launcher(variable)}/task").glob("*/children"):
            for child in children.read_text().split():
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    elsewhere += own.isdisjoint(os.sched_getaffinity(int(child)))
    return elsewhere


def _find_launcher(variable: str) -> int:
    process = os.getppid()
    with contextlib.suppress(OSError):  # a launcher of another user, such as Slurm's
        while f"\0{variable}=".encode() in b"\0" + Path(f"/proc/{process}/environ").read_bytes():
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return process


def _local_ranks() -> tuple[str, int]:
    """Return how many ranks of this process's job run on this machine, and the variable in which a launcher says so.

    What cannot be read counts as not said.
    """
    environment = os.environ
    for name in _LOCAL_SIZES:
        ranks = _positive(environment.get(name, ""))
        if ranks is not None:
            return name, ranks
    ranks = _slurm_tasks(environment.get("SLURM_STEP_TASKS_PER_NODE", ""), environment.get("SLURM_NODEID", "0"))
    if ranks is not None:
        return "SLURM_STEP_TASKS_PER_NODE", ranks
    address = environment.get("DMLC_PS_ROOT_URI", "")
    if environment.get("DMLC_ROLE") == "worker" and (address == "localhost" or address.startswith("127.")):
        # Nobody reaches that address from another machine.
        return "DMLC_NUM_WORKER", _positive(environment.get("DMLC_NUM_WORKER", "")) or 1
    return "", 1


def _slurm_tasks(text: str, node: str) -> int | None:
    """Return the tasks on a node of a list such as ``2(x3),1``: two on each of three nodes, one on the fourth."""
    if not _DIGITS.fullmatch(node):
        return None
    number = int(node)
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part)
        tasks, nodes = (_positive(found[1]), _positive(found[2] or "1")) if found else (None, None)
        if tasks is None or nodes is None:
            return None
        if number < nodes:
            return tasks
        number -= nodes
    return None


def _positive(text: str) -> int | None:
    """Return a whole number from 1 to what an int of C holds; None if the text is anything else."""
    number = int(text) if _DIGITS.fullmatch(text) else 0
    return number if 1 <= number <= _MOST_THREADS else None
