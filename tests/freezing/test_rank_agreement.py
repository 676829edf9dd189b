"""All ranks raise if they train different Parameters."""

import mxnet as mx
import numpy as np
import pytest

from multitrainer.freezing.rank_agreement import StoreComparison, check_counts, check_sums, numbers_to_sum
from support import mlp


def parameters():
    return list(mlp(batchnorm=False).collect_params().values())


@pytest.mark.parametrize("counts", [[3, 3, 3, 3], [0, 3, 0, 3], [0, 0, 0, 0], [3.0, 0.0, 0.0, 3.0]])
def test_parameters_that_all_ranks_train_or_none_are_accepted(counts):
    check_counts(parameters(), counts, 3)


def test_parameters_that_some_ranks_train_are_named():
    with pytest.raises(RuntimeError, match=r"Parameters: net_dense0_bias \(1 of 4\) are frozen on some of the 3 ranks"):
        check_counts(parameters(), [3, 2, 0, 3], 3)
    message = r"Parameters: net_dense0_weight, net_dense0_bias, net_dense1_weight \(3 of 4\)"
    with pytest.raises(RuntimeError, match=message):
        check_counts(parameters(), [1, 1, 2, 3], 3)
    message = r"Parameters: net_dense0_weight, net_dense0_bias, net_dense1_weight, \.\.\. \(4 of 4\)"
    with pytest.raises(RuntimeError, match=message):
        check_counts(parameters(), [1, 1, 2, 2], 3)


@pytest.mark.parametrize("steps", [[0, 0], [3, 3, 3], [1] * 7, [15] * 64, [9999] * 33])
def test_equally_many_steps_are_accepted(steps):
    sum_and_check(steps)


@pytest.mark.parametrize("steps", [[0, 1], [1, 0], [2, 4, 3], [3, 3, 3, 1], [7] * 63 + [6], [127, 126]])
def test_unlike_many_steps_are_refused(steps):
    with pytest.raises(
        RuntimeError, match=rf"the {len(steps)} ranks collected gradients in different numbers of steps"
    ):
        sum_and_check(steps)


def sum_and_check(steps):
    params = parameters()
    sums = sum(np.array(numbers_to_sum(params, each), "float32") for each in steps)
    check_sums(params, sums.tolist(), len(steps))


class TwoRanks:
    """A local kvstore that adds up what this rank pushes and what another rank does."""

    num_workers = 2

    def __init__(self, other):
        self.store, self.other = mx.kv.create("local"), other
        self.broadcast = self.store.broadcast

    def pushpull(self, key, value, out):
        self.store.pushpull(key, [value, mx.nd.array([*self.other, 3, 9])], out=out)


@pytest.mark.parametrize("other", [[1, 1, 0, 1], [1, 1, 1, 1], [0, 1, 0, 1]])
def test_over_a_kvstore(other):
    params = parameters()
    params[2].grad_req = "null"
    comparison = StoreComparison(TwoRanks(other), 7, len(params))
    for _ in range(2):
        if other == [1, 1, 0, 1]:
            comparison.check(params, 3)
        else:
            with pytest.raises(RuntimeError, match=r"\(1 of 4\) are frozen on some of the 2 ranks"):
                comparison.check(params, 3)


def test_unlike_many_steps_over_a_kvstore():
    params = parameters()
    comparison = StoreComparison(TwoRanks([1, 1, 1, 1]), 7, len(params))
    comparison.check(params, 3)
    with pytest.raises(RuntimeError, match=r"2\.5 on average"):
        comparison.check(params, 2)
