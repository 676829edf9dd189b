"""scikit-learn's handwritten digits, five classes at a time, in the size that the network takes."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import mxnet as mx
import numpy as np
from mxnet import gluon

from ..data.loader import Loader, RankSampler
from ..errors import require
from ..ranks.exchange import Ranks

SIZE = 32  # pixels a side
CLASSES = 5


class LabelledImages(NamedTuple):
    """Images as the network takes them, and labels from 0."""

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

    def loader(self, batch_size: int, ranks: Ranks, shuffle: bool = False) -> Loader:
        """Return batches of this rank's share; if shuffled, by NumPy's generator and all of one size."""
        sampler = RankSampler(len(self.labels), ranks, np.random.shuffle if shuffle else None)
        batches = gluon.data.BatchSampler(sampler, batch_size, "rollover" if shuffle else "keep")
        return Loader(gluon.data.ArrayDataset(self.images, self.labels), batches)


def load(first: int) -> LabelledImages:
    """Load the scans of five digits, beginning with `first`."""
    scans = require("sklearn.datasets").load_digits()
    chosen = (scans.target >= first) & (scans.target < first + CLASSES)
    return LabelledImages(resize(scans.images[chosen] / 8 - 1), scans.target[chosen].astype(np.int32) - first)


def resize(pixels: np.ndarray) -> np.ndarray:
    """Scale gray images to `SIZE` pixels a side and repeat them as three channels."""
    large = mx.nd.contrib.BilinearResize2D(mx.nd.array(pixels[:, None]), height=SIZE, width=SIZE)
    return np.asarray(mx.nd.broadcast_axes(large, axis=1, size=3).asnumpy())
