"""What a training minimizes: the cross-entropy, with label smoothing, class weights and mixup."""

from __future__ import annotations

import sys
from typing import Any, Iterable, Iterator, NamedTuple, Sequence

import mxnet as mx
import numpy as np
from mxnet import gluon

from .mixup import Mixup, mix, partners


class Batch(NamedTuple):
    """Images, the labels that the accuracy counts, and the targets that the loss compares the outputs with."""

    images: mx.nd.NDArray
    labels: mx.nd.NDArray
    targets: mx.nd.NDArray


class SoftTargets:
    """Turns labels into one number for each class, the targets of `SoftmaxCrossEntropyLoss(sparse_label=False)`.

    Among K classes, the target of class k is ``weights[k] * label_smoothing / K``, plus ``weights[k] * (1 -
    label_smoothing)`` if k is the label. The loss of an image is then that of ``torch.nn.CrossEntropyLoss(weights,
    label_smoothing=label_smoothing, reduction="none")``.

    Parameters
    ----------
    classes : int
        The number of classes.
    label_smoothing : float
        The part of every label that is given to all classes evenly, at least 0 and below 1.
    weights : sequence of float, optional
        The weight of each class, by default 1.

    Examples
    --------
    >>> SoftTargets(2, label_smoothing=0.5, weights=[1, 2])(mx.nd.array([0, 1])).asnumpy()
    array([[0.75, 0.5 ],
           [0.25, 1.5 ]], dtype=float32)
    """

    def __init__(
        self, classes: int, label_smoothing: float = 0.0, weights: Sequence[float] | np.ndarray | None = None
    ) -> None:
        self.label_smoothing = label_smoothing
        self.weights = np.ones(classes) if weights is None else np.asarray(weights, float)

    def __call__(self, labels: mx.nd.NDArray) -> mx.nd.NDArray:
        """Return an array of images x classes."""
        rows, classes = len(labels), len(self.weights)
        targets = np.full((rows, classes), self.label_smoothing / classes)
        targets[np.arange(rows), labels.asnumpy().astype(int)] += 1 - self.label_smoothing
        return mx.nd.array(targets * self.weights, dtype="float32")


class Objective:
    """What a training minimizes: the mean, over the images of a batch, of a cross-entropy.

    Parameters
    ----------
    targets : SoftTargets, optional
        Turns labels into targets; by default, the targets are the labels.
    mixup : Mixup, optional
        Mixes the images and the targets of each batch; needs `targets`.
    """

    def __init__(self, targets: SoftTargets | None = None, mixup: Mixup | None = None) -> None:
        if mixup is not None and targets is None:
            raise ValueError("labels cannot be mixed, only targets: expected `targets` with `mixup`")
        self.mixup = mixup
        self._targets = targets
        self.loss = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=targets is None)

    def mixing_in_all_epochs(self) -> Objective:
        """Return this objective with mixup in every epoch, if it has any; a search ends with none of them."""
        return self if self.mixup is None else Objective(self._targets, self.mixup._replace(epochs=sys.maxsize))

    def batches(self, loader: Iterable[Any], seed: int, epoch: int) -> Iterator[Batch]:
        """Prepare the batches of an epoch; the seed and the epoch decide what mixup draws."""
        if self._targets is None:
            for images, labels in loader:
                yield Batch(images, labels, labels)
            return
        mixup = self.mixup or Mixup(alpha=0, epochs=0)
        for (images, labels), share in zip(loader, mixup.shares(seed, epoch)):
            dominant = labels if share >= 0.5 else partners(labels)
            yield Batch(mix(images, share), dominant, mix(self._targets(labels), share))
