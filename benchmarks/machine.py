"""What a benchmark asks of the machine and of its own process: threads, and the memory that it has used. Linux only.

It imports neither MXNet nor PyTorch, because the number of threads has to be chosen before they are imported, nor
multitrainer before a function needs it, because MXNet's servers begin to serve in its import.
"""

from __future__ import annotations

import os
from pathlib import Path


def threads():
    """Return how many threads MXNet and PyTorch use in this process and in those that it starts; None if not chosen."""
    import multitrainer.cores

    return multitrainer.cores.chosen_threads()


def cores():
    """Return the number of physical cores that this process may use."""
    import multitrainer.cores

    return multitrainer.cores.count_cores()


def use_all_cores():
    """Let MXNet use every physical core; call it before MXNet is imported. Processes started later inherit it."""
    import multitrainer

    multitrainer.use_all_cores()


def use_one_thread():
    """Let the processes that are started later use one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"


def peak_memory():
    """Return the most memory that this process has used, in MB, imports included."""
    return status("VmHWM")


def forget_peak_memory():
    """Let `peak_memory` begin at what this process uses now, and return that in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))
