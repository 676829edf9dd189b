"""Ranks that are threads of one process: they exchange sums as the ranks of a cluster do, without one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from multitrainer_cli.errors import UserError
from multitrainer_cli.ranks.exchange import Ranks

PATIENCE = 60  # seconds that a rank waits for the others


class ThreadRanks(Ranks):
    """One of the ranks that `run_ranks` starts."""

    def __init__(self, rank, shared):
        super().__init__()
        self.rank, self.size = rank, shared["barrier"].parties
        self._shared = shared

    def sum(self, numbers):
        self._shared["arrays"][self.rank] = np.asarray(numbers, "float32")
        self._shared["barrier"].wait(PATIENCE)
        total = np.sum(self._shared["arrays"], axis=0, dtype="float32")
        self._shared["barrier"].wait(PATIENCE)
        return total


def run_ranks(size, work):
    """Call ``work(ranks)`` on every rank at once; return what each returned, or the error that it raised."""
    shared = {"barrier": threading.Barrier(size), "arrays": [None] * size}

    def run(rank):
        try:
            return work(ThreadRanks(rank, shared))
        except UserError as error:  # which all ranks raise, or the others wait in vain
            return error
        except Exception as error:
            shared["barrier"].abort()
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
