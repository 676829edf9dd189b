"""A ps-lite cluster of real processes on loopback: a scheduler, servers and workers, which end with the test."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time

import preloaded
from support import PATIENCE


class ClusterError(AssertionError):
    """A worker failed or the cluster took too long; the message holds the output of every process."""


def run(script, *arguments, workers=2, servers=1, timeout=PATIENCE, fresh=False):
    """Run ``script`` on every worker; return the output of each."""
    with start(script, *arguments, workers=workers, servers=servers, fresh=fresh) as processes:
        return _outputs(processes, time.monotonic() + timeout, pathlib.Path(script).name)


@contextlib.contextmanager
def start(script, *arguments, workers=2, servers=1, fresh=False):
    """Start a cluster; yield ``(role, process)`` of each process. All of them end with the block.

    With `fresh`, each process imports MXNet by itself, so that they reach the kvstore at different moments.
    """
    roles = [("scheduler", 0), *(("server", i) for i in range(servers)), *(("worker", i) for i in range(workers))]
    base = {
        **os.environ,
        "DMLC_PS_ROOT_URI": "127.0.0.1",
        "DMLC_PS_ROOT_PORT": str(_free_port()),
        "DMLC_NUM_SERVER": str(servers),
        "DMLC_NUM_WORKER": str(workers),
        "DMLC_INTERFACE": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    work = [str(script), *map(str, arguments)]
    processes = [
        (
            role,
            subprocess.Popen(
                _command(role, index, work, fresh),
                env={**base, "DMLC_ROLE": role, "WORKER_INDEX": str(index)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                universal_newlines=True,
            ),
        )
        for role, index in roles
    ]
    try:
        yield processes
    finally:
        for _, process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def _command(role, index, work, fresh):
    if fresh:
        return [sys.executable, "-W", "ignore", *(work if role == "worker" else ["-c", "import multitrainer"])]
    return (
        [*preloaded.command(f"worker{index}"), *work]
        if role == "worker"
        else preloaded.server_command(f"{role}{index}")
    )


def _outputs(processes, deadline, name):
    """Wait for all processes, or until one worker fails, because the others would wait for it forever."""
    while True:
        codes = [(role, process.poll()) for role, process in processes]
        if all(code is not None for _, code in codes):
            break
        if any(role == "worker" and code for role, code in codes) or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if any(code is None for _, code in codes):
        fail(processes, f"{name}: {'a worker failed' if any(code for _, code in codes) else 'timed out'}")
    if any(code for role, code in codes if role == "worker"):
        fail(processes, f"{name}: a worker failed")
    return [process.communicate()[0] for role, process in processes if role == "worker"]


def fail(processes, reason):
    """End all processes and raise an error with the output of each."""
    codes = [(role, process.poll()) for role, process in processes]
    time.sleep(0.5)  # for the last output of the others
    for _, process in processes:
        process.kill()
    logs = "\n".join(f"--- {role}\n{process.communicate()[0].strip()}" for role, process in processes)
    raise ClusterError(f"{reason}, exit codes {codes}\n{logs}")


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
