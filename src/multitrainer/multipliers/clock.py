"""Count updates, whichever Parameters take part in them."""

from __future__ import annotations

import contextlib
from typing import Iterator, Sequence

from .. import _mxnet
from ..optimizers.partition import Partition


class UpdateClock:
    """Makes ``num_update`` of a trainer's optimizers count updates once a Parameter has been left out of one.

    MXNet's own ``num_update`` is the largest count of any one Parameter. It stands still while that Parameter is
    frozen, and lags while a Parameter that was unfrozen late comes first in an update. The lr_scheduler and the
    schedules of multipliers use it.

    Parameters
    ----------
    partition : Partition
        The optimizers whose ``num_update`` is set.

    Attributes
    ----------
    counts_updates : bool
        Whether a Parameter was ever frozen, left out, or added after an update. Until then the count is MXNet's own.
    """

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self.counts_updates = False

    @property
    def has_updates(self) -> bool:
        """Whether an update was made."""
        return any(optimizer.num_update > optimizer.begin_num_update for optimizer in self._partition.optimizers)

    @property
    def next_update(self) -> int:
        """The number of the next update, by the trainer's own optimizer."""
        return self._partition.main.optimizer.num_update + 1

    @contextlib.contextmanager
    def update(self, trains: Sequence[bool]) -> Iterator[None]:
        """Surround one update; ``trains`` says of each optimizer whether any Parameter of its part takes part in it."""
        if not (self.counts_updates or self._partition.is_divided):
            yield
            return
        optimizers = self._partition.optimizers
        made, numbers = [_mxnet.updates_made(each) for each in optimizers], [each.num_update for each in optimizers]
        if self.counts_updates:
            for optimizer in optimizers:
                optimizer.num_update += 1
        is_complete = False
        try:
            yield
            is_complete = True
        finally:
            updated = [_mxnet.updates_made(optimizer) > before for optimizer, before in zip(optimizers, made)]
            is_update = any(updated) or not any(trains)  # if not, AMP skipped the update, or it failed
            # The gradients of a whole part can be stale. Its optimizer would not count by itself.
            self.counts_updates = self.counts_updates or (is_complete and is_update and not all(updated))
            if self.counts_updates:
                for optimizer, number, did, should in zip(optimizers, numbers, updated, trains):
                    counts = did or (is_update and (is_complete or not should))
                    optimizer.num_update = number + counts
