"""The share of an epoch's order that falls to one rank."""

from __future__ import annotations

from typing import Any, Callable, Iterator, Sequence

from mxnet import gluon


class ShareSampler(gluon.data.Sampler):
    """Samples this rank's share of an order that every rank draws alike.

    Parameters
    ----------
    length : int
        How many items the order has.
    draw_order : callable
        Returns the order of the next epoch. It must return the same one on every rank.
    share : callable
        Takes an order and returns the share of this rank: `Ranks.share` or `Ranks.even_share`.
    """

    def __init__(
        self, length: int, draw_order: Callable[[], Sequence[Any]], share: Callable[[Sequence[Any]], Sequence[Any]]
    ) -> None:
        self._length = length
        self._draw_order = draw_order
        self._share = share

    def __iter__(self) -> Iterator[Any]:
        return iter(self._share(self._draw_order()))

    def __len__(self) -> int:
        return len(self._share(range(self._length)))
