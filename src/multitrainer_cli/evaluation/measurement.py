"""What is counted while the images go by, and the figures that follow from it; nothing is kept of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, NamedTuple

import numpy as np
from mxnet import gluon

from ..errors import require
from ..inference.classifier import Classifier
from ..interrupts import Interrupts

TOP = 5


class ClassFigures(NamedTuple):
    """How well a class is recognized; a figure that nothing decides is None.

    Attributes
    ----------
    name : str
        The class.
    images, right : int
        How many images of it there are, and how many of them are recognized.
    precision, recall, f1 : float or None
        Recall is None without images of the class, precision if no image is taken for it, F1 without images.
    mistaken_for : str or None
        The other class that most images of this one are taken for.
    mistakes : int
        How many are.
    """

    name: str
    images: int
    right: int
    precision: float | None
    recall: float | None
    f1: float | None
    mistaken_for: str | None
    mistakes: int


@dataclass
class Measurement:
    """Counts over all images.

    Attributes
    ----------
    classes : list of str
        The names of the outputs.
    confusion : numpy.ndarray
        Images by true class (rows) and predicted class (columns).
    top_right : float
        Images whose class is among the `top` with the highest scores.
    loss : float
        The sum of the cross-entropies.
    """

    classes: list[str]
    confusion: np.ndarray
    top_right: float = 0.0
    loss: float = 0.0

    @property
    def top(self) -> int:
        """How many classes the top-k accuracy looks at: 5, or all but one if there are fewer classes than 6."""
        return min(TOP, len(self.classes) - 1)

    @property
    def images(self) -> int:
        """The number of images."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """The share of images whose class has the highest score."""
        return float(self.confusion.trace() / self.images)

    @property
    def top_accuracy(self) -> float:
        """The share of images whose class is among the `top` with the highest scores."""
        return self.top_right / self.images

    @property
    def cross_entropy(self) -> float:
        """The mean cross-entropy."""
        return self.loss / self.images

    def by_class(self) -> list[ClassFigures]:
        """Return the figures of each class."""
        true, predicted = np.nonzero(self.confusion)
        precision, recall, f1, _ = require("sklearn.metrics").precision_recall_fscore_support(
            true,
            predicted,
            labels=range(len(self.classes)),
            sample_weight=self.confusion[true, predicted],  # an entry of the matrix stands for so many images
            zero_division=0,
        )
        return [
            self._figures_of(label, float(precision[label]), float(recall[label]), float(f1[label]))
            for label in range(len(self.classes))
        ]

    def _figures_of(self, label: int, precision: float, recall: float, f1: float) -> ClassFigures:
        row, taken_for_it = self.confusion[label], self.confusion[:, label].sum()
        images, right = int(row.sum()), int(row[label])
        others = np.where(np.arange(len(row)) == label, 0, row)
        most = int(others.argmax())
        return ClassFigures(
            name=self.classes[label],
            images=images,
            right=right,
            precision=precision if taken_for_it else None,
            recall=recall if images else None,
            f1=f1 if images else None,
            mistaken_for=self.classes[most] if others[most] else None,
            mistakes=int(others[most]),
        )

    def confusions(self) -> list[tuple[str, str, int]]:
        """Return pairs of a true and a wrong predicted class, with the number of images, the most frequent first."""
        mistakes = self.confusion - np.diag(self.confusion.diagonal())
        order = np.argsort(-mistakes, axis=None, kind="stable")
        pairs = zip(*np.unravel_index(order[: np.count_nonzero(mistakes)], mistakes.shape))
        return [(self.classes[true], self.classes[other], int(mistakes[true, other])) for true, other in pairs]


def measure(classifier: Classifier, batches: Iterable[Any], interrupts: Interrupts) -> Measurement:
    """Measure a network on batches of images and labels.

    Raises
    ------
    UserError
        If a score is not a finite number.
    """
    metrics = require("sklearn.metrics")
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss()
    classes = range(len(classifier.classes))
    result = Measurement(classifier.classes, np.zeros((len(classes), len(classes)), np.int64))
    for images, label in batches:
        interrupts.check()
        scores, truth = classifier.score(images), label.asnumpy()
        # MXNet's argmax decides between equal scores as it does in the validation of a run.
        predicted = scores.argmax(axis=1).asnumpy().astype(np.int64)
        result.confusion += metrics.confusion_matrix(truth, predicted, labels=classes)
        result.loss += float(loss_function(scores, label).sum().asscalar())
        if result.top > 1:
            result.top_right += metrics.top_k_accuracy_score(
                truth, scores.asnumpy(), k=result.top, normalize=False, labels=classes
            )
    return result
