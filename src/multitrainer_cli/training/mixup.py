"""Mixup: train on sums of two images, and compare with the same sums of their labels (Zhang et al., ICLR 2018)."""

from __future__ import annotations

import itertools
from typing import Iterator, NamedTuple

import mxnet as mx
import numpy as np


class Mixup(NamedTuple):
    """How images are mixed: with one share for each batch, as GluonCV's and timm's training scripts do by default.

    Parameters
    ----------
    alpha : float
        The share of each batch is drawn from the distribution Beta(alpha, alpha).
    epochs : int
        How many epochs mix images, counted from the first; in the ones after them, the share is 1.
    """

    alpha: float
    epochs: int

    def shares(self, seed: int, epoch: int) -> Iterator[float]:
        """Draw a share for each batch of an epoch, without end; the seed and the epoch alone decide them."""
        if epoch > self.epochs:
            return itertools.repeat(1.0)
        generator = np.random.RandomState([seed, epoch])
        return (float(generator.beta(self.alpha, self.alpha)) for _ in itertools.count())


def partners(batch: mx.nd.NDArray) -> mx.nd.NDArray:
    """Return the row that each row of a batch is mixed with: the one half a batch further on.

    The rows are in random order, so that this pairs images at random. If they are divided among ranks that take every
    n-th row, and each rank has an even number of them, the same images are paired as on one rank.
    """
    order = np.roll(np.arange(len(batch)), -(len(batch) // 2))
    return mx.nd.take(batch, mx.nd.array(order, ctx=batch.context))


def mix(batch: mx.nd.NDArray, share: float) -> mx.nd.NDArray:
    """Return ``share * batch + (1 - share) * partners(batch)``."""
    if share == 1:
        return batch
    mixed = partners(batch)
    mixed *= 1 - share  # in place: a batch of images takes long to allocate
    mixed += share * batch
    return mixed
