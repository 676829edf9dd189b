"""Processes that each train on one core, so that independent runs use all of them and always give the same figures."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from typing import Any, Callable, Generator, Iterable, Iterator

from multitrainer import cores

from ..errors import UserError, require

# One thread for each process, no progress bars that would mix, and no message for every graph.
ENVIRONMENT = {
    **dict.fromkeys(cores.VARIABLES, "1"),  # both: with one of them, some operators go by the other
    **{"TQDM_DISABLE": "1", "MXNET_SUBGRAPH_VERBOSE": "0"},
}
MOST = 16  # more would only wait for the memory


class TrainingProcesses:
    """A pool of processes, which Ctrl-C does not reach and which end with this one.

    Parameters
    ----------
    count : int
        How many there are.

    Examples
    --------
    >>> with TrainingProcesses(2) as processes:
    ...     list(processes.map(abs, [-1, 2]))
    [1, 2]
    """

    def __init__(self, count: int) -> None:
        spawned = multiprocessing.get_context("spawn")  # MXNet does not survive a fork
        self._pool = concurrent.futures.ProcessPoolExecutor(count, spawned, _start)

    def __enter__(self) -> TrainingProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Generator[Any, None, None]:
        """Call a function with each item, in some process, and yield the results in the order of the items."""
        with _inherited_by_processes():  # the pool starts processes when it is given work
            futures = [self._pool.submit(function, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                "a process that trained was ended by something else (is there enough memory?); add --resume to go on"
            ) from error
        finally:
            for future in futures:
                future.cancel()


def count_cores() -> int:
    """Return the number of physical cores that this process may use, at most `MOST`.

    Raises
    ------
    UserError
        If they cannot be counted.
    """
    require("joblib")
    try:
        return min(MOST, cores.count_cores())
    except ValueError as error:
        raise UserError(str(error)) from error


@contextlib.contextmanager
def _inherited_by_processes() -> Iterator[None]:
    """Set the environment of new processes, and keep Ctrl-C from them until they ignore it."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start() -> None:
    """Prepare a new process: ignore Ctrl-C, and end when the parent has ended, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
