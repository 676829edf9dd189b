"""The figures of an evaluation follow from counts, and equal scikit-learn's over all images at once."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest

pytest.importorskip("gluoncv")
pytest.importorskip("sklearn")

from sklearn import metrics

from multitrainer_cli.errors import UserError
from multitrainer_cli.evaluation.measurement import Measurement, measure
from multitrainer_cli.inference.classifier import Classifier
from multitrainer_cli.interrupts import Interrupts


class Scores(mx.gluon.nn.HybridBlock):
    """Returns its input."""

    def hybrid_forward(self, F, x):  # noqa: N803
        return x * 1


def measured(scores, labels, batch_size=7):
    classifier = Classifier(Scores(), [f"class {n}" for n in range(scores.shape[1])], None, [mx.cpu()])
    batches = [
        (
            mx.nd.array(scores[start : start + batch_size]),
            mx.nd.array(labels[start : start + batch_size], dtype="int32"),
        )
        for start in range(0, len(labels), batch_size)
    ]
    return measure(classifier, batches, Interrupts())


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 30])
def test_batches_give_the_figures_of_all_images(classes):
    generator = np.random.RandomState(classes)
    scores = generator.normal(size=(101, classes)).astype("float32")
    labels = generator.randint(classes, size=101)
    found = measured(scores, labels)
    predicted = scores.argmax(axis=1)
    assert found.images == 101
    assert found.accuracy == metrics.accuracy_score(labels, predicted)
    probabilities = np.exp(scores.astype("float64"))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert found.cross_entropy == pytest.approx(-np.log(probabilities[np.arange(101), labels]).mean(), rel=1e-5)
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(labels, predicted, labels=range(classes)))
    assert found.top == {2: 1, 3: 2, 5: 4, 6: 5, 30: 5}[classes]
    if found.top > 1:
        own = scores[np.arange(101), labels][:, None]
        assert found.top_accuracy == ((scores > own).sum(axis=1) < found.top).mean()
    report = metrics.classification_report(labels, predicted, output_dict=True, zero_division=0)
    for label, figures in enumerate(found.by_class()):
        expected = report.get(str(label))
        assert figures.images == (expected["support"] if expected else 0)
        if expected and figures.precision is not None:
            assert figures.precision == pytest.approx(expected["precision"])
            assert figures.recall == pytest.approx(expected["recall"])
            assert figures.f1 == pytest.approx(expected["f1-score"])


def test_what_nothing_decides_is_none():
    confusion = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 0]])
    first, second, third = Measurement(["a", "b", "c"], confusion).by_class()
    assert (first.images, first.right, first.precision, first.recall) == (4, 3, 0.6, 0.75)
    assert (first.mistaken_for, first.mistakes) == ("b", 1)
    assert (second.images, second.precision, second.recall, second.f1, second.mistaken_for) == (
        0,
        0.0,
        None,
        None,
        None,
    )
    assert (third.precision, third.recall, third.f1, third.mistaken_for, third.mistakes) == (None, 0.0, 0.0, "a", 2)


def test_confusions_are_ordered_by_their_number():
    confusion = np.array([[9, 1, 2], [0, 9, 5], [2, 0, 9]])
    assert Measurement(["a", "b", "c"], confusion).confusions() == [
        ("b", "c", 5),
        ("a", "c", 2),
        ("c", "a", 2),
        ("a", "b", 1),
    ]


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="not finite"):
        measured(np.array([[1.0, np.nan]], "float32"), np.array([0]))
