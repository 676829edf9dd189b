"""``num_update`` counts updates, whichever Parameters take part in them."""

from __future__ import annotations

import contextlib
from typing import Iterator

from mxnet.optimizer import Optimizer

from .. import _mxnet


class UpdateClock:
    """The number of updates of one optimizer.

    MXNet takes the largest count of any one Parameter. That stands still while the one with the largest is frozen, and
    lags while one that was unfrozen late comes first in an update; lr_scheduler and schedules go by it.

    Parameters
    ----------
    optimizer : Optimizer
        Its ``num_update`` is set.

    Attributes
    ----------
    counts_updates : bool
        Whether a Parameter was ever frozen or left out. Until then the count is MXNet's own.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.counts_updates = False

    @property
    def next_update(self) -> int:
        """The number of the update that comes."""
        return self.optimizer.num_update + 1

    @contextlib.contextmanager
    def update(self, trains: bool) -> Iterator[None]:
        """Surround one update, in which a Parameter ``trains`` or all are left out."""
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
