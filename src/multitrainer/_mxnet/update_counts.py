"""How often an Optimizer has updated each index, and its learning rates, which depend on that."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any, Iterator, Sequence

from mxnet.context import Context
from mxnet.optimizer import Optimizer


class SchedulerError(Exception):
    """An lr_scheduler raised the error that is the cause of this one."""


class ReplayableCount:
    """Counts one update on one device, in place of stock's Updater; stock can count the same update again.

    Parameters
    ----------
    optimizer : Optimizer
        The optimizer that counts.
    context : Context
        The device.
    """

    def __init__(self, optimizer: Optimizer, context: Context) -> None:
        optimizer._set_current_context(context.device_id)
        self._optimizer = optimizer
        self._counts, self._num_update = dict(optimizer._index_update_count), optimizer.num_update
        self._answers: list[tuple[Any, BaseException | None]] = []  # of the lr_scheduler

    def advance(self, indices: Sequence[int]) -> Iterator[tuple[Sequence[int], list[Any]]]:
        """Count one update of each index; yield the indices that stock updates with one operator, and their rates.

        Raises
        ------
        SchedulerError
            If the lr_scheduler raised anything, even if it is not an ``Exception``.
        """
        optimizer = self._optimizer
        # Stock asks a scheduler once for each operator, with what ``num_update`` is by then.
        size = len(indices) if optimizer.lr_scheduler is None else max(optimizer.aggregate_num, 1)
        for start in range(0, len(indices), size):
            chunk = indices[start : start + size]
            optimizer._update_count(chunk)
            answered = SimpleNamespace(**{**vars(optimizer), "lr": self._rate(), "lr_scheduler": None})
            yield chunk, Optimizer._get_lrs(answered, chunk)

    def _rate(self) -> Any:
        if self._optimizer.lr_scheduler is None:
            return self._optimizer.lr
        try:
            self._answers.append((self._optimizer.lr_scheduler(self._optimizer.num_update), None))
        except BaseException as error:
            self._answers.append((None, error))
            raise SchedulerError from error
        return self._answers[-1][0]

    def roll_back(self) -> None:
        """Restore the counts from before the update."""
        self._optimizer._index_update_count.clear()
        self._optimizer._index_update_count.update(self._counts)
        self._optimizer.num_update = self._num_update

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Roll back for stock to count the update; the lr_scheduler's answers and errors are replayed to it."""
        optimizer, scheduler = self._optimizer, self._optimizer.lr_scheduler
        answers = list(self._answers)

        def replay(num_update: int) -> Any:
            if not answers:
                return scheduler(num_update)
            answer, error = answers.pop(0)
            if error is not None:
                raise error
            return answer

        self.roll_back()
        try:
            if scheduler is not None:
                optimizer.lr_scheduler = replay
            yield
        finally:
            if optimizer.lr_scheduler is replay:
                optimizer.lr_scheduler = scheduler


def times_updated(optimizer: Optimizer, indices: Sequence[int]) -> list[int]:
    """Return how often each index was updated on the current device."""
    return [optimizer._index_update_count[index] for index in indices]


def updates_made(optimizer: Optimizer) -> int:
    """Return how many updates of single Parameters ``optimizer`` has made on all devices together."""
    return sum(sum(counts.values()) for counts in optimizer._all_index_update_counts.values())


def update_counts(optimizer: Optimizer) -> dict[int, int]:
    """Return how often each index was updated: the largest count of any device, for a kvstore counts on one only."""
    counts: dict[int, int] = {}
    for on_device in optimizer._all_index_update_counts.values():
        for index, count in on_device.items():
            counts[index] = max(count, counts.get(index, 0))
    return counts


def set_update_counts(optimizer: Optimizer, counts: dict[int, int], contexts: Sequence[Context]) -> None:
    """Give every device the same counts."""
    devices = {0, *optimizer._all_index_update_counts, *(context.device_id for context in contexts)}
    optimizer._all_index_update_counts = {device: dict(counts) for device in sorted(devices)}
    optimizer._set_current_context(contexts[0].device_id)
