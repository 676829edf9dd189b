"""Count updates, whichever Parameters take part in them."""

from __future__ import annotations

import contextlib
from typing import Iterator

from mxnet.optimizer import Optimizer

from .. import _mxnet


class UpdateClock:
    """Makes ``num_update`` of an optimizer count updates once a Parameter has been left out of one.

    MXNet's own ``num_update`` is the largest count of any one Parameter. It stands still while that Parameter is
    frozen, and lags while a Parameter that was unfrozen late comes first in an update. The lr_scheduler and the
    schedules of multipliers use it.

    Parameters
    ----------
    optimizer : Optimizer
        Its ``num_update`` is set.

    Attributes
    ----------
    counts_updates : bool
        Whether a Parameter was ever frozen, left out, or added after an update. Until then the count is MXNet's own.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.counts_updates = False

    @property
    def has_updates(self) -> bool:
        """Whether an update was made."""
        return self.optimizer.num_update > self.optimizer.begin_num_update

    @property
    def next_update(self) -> int:
        """The number of the next update."""
        return self.optimizer.num_update + 1

    @contextlib.contextmanager
    def update(self, trains: bool) -> Iterator[None]:
        """Surround one update; ``trains`` says whether any Parameter takes part in it."""
        if not self.counts_updates:
            yield
            return
        number, made = self.next_update, _mxnet.updates_made(self.optimizer)
        self.optimizer.num_update = number
        try:
            yield
        finally:
            if trains and made == _mxnet.updates_made(self.optimizer):
                self.optimizer.num_update = number - 1  # AMP skipped the update, or it failed
