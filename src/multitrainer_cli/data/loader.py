"""Batches for several ranks, in an order that a resumed run can take up where it stopped."""

from __future__ import annotations

import collections
from typing import Any, Callable, Iterator, Sequence

from mxnet import gluon

from ..ranks.exchange import Ranks


class Loader(gluon.data.DataLoader):
    """A DataLoader that can skip epochs without loading them.

    Parameters
    ----------
    dataset : Dataset
        The images and labels.
    batches : BatchSampler
        The indices of each batch of an epoch.
    **options
        Passed on to `gluon.data.DataLoader`.
    """

    def __init__(self, dataset: Any, batches: gluon.data.BatchSampler, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=batches, **options)
        self.batches = batches

    def skip(self, epochs: int) -> None:
        """Draw the order of some epochs without loading anything, as if they had been trained."""
        for _ in range(epochs):
            collections.deque(self.batches, maxlen=0)


class RankSampler(gluon.data.Sampler):
    """One rank's share of the positions of a dataset.

    All ranks draw the same order, and each takes every n-th position of it: together they see what one rank would see.

    Parameters
    ----------
    length : int
        The length of the dataset.
    ranks : Ranks
        The ranks that share the dataset.
    shuffle : callable, optional
        Shuffles a list in place, on all ranks in the same way; all ranks then get the same number of positions. By
        default the positions stay in order, and every position belongs to a rank.
    """

    def __init__(self, length: int, ranks: Ranks, shuffle: Callable[[list[int]], None] | None = None) -> None:
        self._length = length
        self._ranks = ranks
        self._shuffle = shuffle

    def __iter__(self) -> Iterator[Any]:
        return iter(self._share(self._draw_order()))

    def __len__(self) -> int:
        return len(self._share(range(self._length)))

    def _draw_order(self) -> list[Any]:
        order = list(range(self._length))
        if self._shuffle is not None:
            self._shuffle(order)
        return order

    def _share(self, order: Sequence[Any]) -> Sequence[Any]:
        return self._ranks.share(order) if self._shuffle is None else self._ranks.even_share(order)
