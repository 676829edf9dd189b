"""The counts, rates and states of optimizers and their Updaters."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any, Collection, Iterator, Sequence

from mxnet.context import Context
from mxnet.optimizer import Optimizer, Updater


class Counting:
    """One count of updates by an optimizer on one device, which stock can make once more: see `repeated`."""

    def __init__(self, optimizer: Optimizer, context: Context) -> None:
        optimizer._set_current_context(context.device_id)
        self._optimizer = optimizer
        self._counts, self._num_update = dict(optimizer._index_update_count), optimizer.num_update
        self._answers: list[tuple[Any, BaseException | None]] = []

    def count(self, indices: Sequence[int]) -> Iterator[tuple[Sequence[int], list[Any]]]:
        """Count one update of each index, as stock's Updater does; yield the indices of each operator and their rates.

        Raises
        ------
        SchedulerError
            If the lr_scheduler raised something, be it no ``Exception``.
        """
        optimizer = self._optimizer
        # A scheduler is asked for every operator, with what ``num_update`` is by then.
        together = len(indices) if optimizer.lr_scheduler is None else max(optimizer.aggregate_num, 1)
        for start in range(0, len(indices), together):
            part = indices[start : start + together]
            optimizer._update_count(part)
            answered = SimpleNamespace(**{**vars(optimizer), "lr": self._rate(), "lr_scheduler": None})
            yield part, Optimizer._get_lrs(answered, part)

    def _rate(self) -> Any:
        if self._optimizer.lr_scheduler is None:
            return self._optimizer.lr
        try:
            self._answers.append((self._optimizer.lr_scheduler(self._optimizer.num_update), None))
        except BaseException as error:
            self._answers.append((None, error))
            raise SchedulerError from error
        return self._answers[-1][0]

    def take_back(self) -> None:
        """Make the optimizer forget the updates counted since."""
        self._optimizer._index_update_count.clear()
        self._optimizer._index_update_count.update(self._counts)
        self._optimizer.num_update = self._num_update

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Take the count back for stock to make: what the lr_scheduler said or raised is repeated, not asked twice."""
        optimizer, scheduler = self._optimizer, self._optimizer.lr_scheduler
        answers = list(self._answers)

        def repeat(num_update: int) -> Any:
            if not answers:
                return scheduler(num_update)
            answer, error = answers.pop(0)
            if error is not None:
                raise error
            return answer

        self.take_back()
        try:
            if scheduler is not None:
                optimizer.lr_scheduler = repeat
            yield
        finally:
            if optimizer.lr_scheduler is repeat:
                optimizer.lr_scheduler = scheduler


class SchedulerError(Exception):
    """An lr_scheduler raised what is its cause."""


def weight_decays(optimizer: Optimizer, indices: Sequence[int]) -> list[Any]:
    """Return the weight decay of each index."""
    return optimizer._get_wds(indices)


def times_updated(optimizer: Optimizer, indices: Sequence[int]) -> list[int]:
    """Return how often each index was updated on the current device."""
    return [optimizer._index_update_count[index] for index in indices]


def updates_made(optimizer: Optimizer) -> int:
    """Return how many updates of single Parameters ``optimizer`` has made, on all devices together."""
    return sum(sum(counts.values()) for counts in optimizer._all_index_update_counts.values())


# Attributes of every Optimizer that its trainer makes anew, sets at each step, or saves in a way of its own.
NOT_STATE = frozenset(
    (
        *("param_dict", "idx2name", "sym_info", "lr_mult", "wd_mult", "lr_scheduler", "rescale_grad"),
        *("num_update", "_index_update_count", "_all_index_update_counts"),
        *("aggregate_num", "allow_np_array"),  # of the process, by its environment
    )
)


def update_counts(optimizer: Optimizer) -> dict[int, int]:
    """Return how often each index was updated; a kvstore keeps the count of one index on one device only."""
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


def updater_of(kvstore: Any) -> Updater:
    """Return the Updater of a kvstore that updates in this process."""
    return kvstore._updater


def set_states(updater: Updater, kept: Collection[int], states: dict[int, Any], in_place: bool) -> None:
    """Give an Updater new states; unless they are ``in_place``, it moves each to its weight when it is first used."""
    own = {index: state for index, state in updater.states.items() if index in kept}
    updater.states_synced = {**{i: updater.states_synced[i] for i in own}, **dict.fromkeys(states, in_place)}
    updater.states = {**own, **states}
