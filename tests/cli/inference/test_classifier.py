"""The classifier of a run ranks classes by score, on one device or several."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest

pytest.importorskip("gluoncv")

from multitrainer_cli.errors import UserError
from multitrainer_cli.inference.classifier import Classifier, load_classifier


class Scores(mx.gluon.nn.HybridBlock):
    """Returns its input."""

    def hybrid_forward(self, F, x):  # noqa: N803
        return x * 1


def rank(scores, count, contexts=None):
    classifier = Classifier(Scores(), ["a", "b", "c"], None, contexts or [mx.cpu()])
    return classifier.rank([mx.nd.array(row) for row in scores], count)


def test_the_probabilities_are_the_softmax_of_the_scores():
    scores = np.array([[1.0, 3.0, 2.0]])
    exp = np.exp(scores - scores.max())[0]
    ((first, second),) = rank(scores, 2)
    assert [first[0], second[0]] == ["b", "c"]
    assert [first[1], second[1]] == pytest.approx([exp[1] / exp.sum(), exp[2] / exp.sum()], rel=1e-6)


def test_scores_decide_where_probabilities_are_equal():
    ((best, second, third),) = rank([[0.0, 500.0, 200.0]], 3)
    assert (best, second, third) == (("b", 1.0), ("c", 0.0), ("a", 0.0))


def test_equal_scores_keep_the_order_of_the_classes():
    assert rank([[1.0, 1.0, 1.0]], 2) == [[("a", pytest.approx(1 / 3)), ("b", pytest.approx(1 / 3))]]


def test_a_batch_may_be_smaller_than_the_devices():
    contexts = [mx.cpu(0), mx.cpu(1), mx.cpu(2)]
    rows = [[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]
    for scores in (rows, rows[:1]):
        assert rank(scores, 3, contexts) == rank(scores, 3)


def test_a_run_that_cannot_be_loaded_is_an_error_of_the_user(finished_run, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_classifier(tmp_path / "nowhere", "best", None)
    with pytest.raises(UserError, match="expected cpu, gpu"):
        load_classifier(finished_run, "best", "tpu")


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(score):
    with pytest.raises(UserError, match="not finite"):
        rank([[0.0, score, 1.0]], 1)
