"""All ranks raise if they train different Parameters."""

import math

import mxnet as mx
import pytest

from multitrainer.freezing.rank_agreement import StoreComparison, check_counts
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


class TwoRanks:
    """A local kvstore that adds up what this rank pushes and what another rank does."""

    num_workers = 2

    def __init__(self, other):
        self.store, self.other = mx.kv.create("local"), other
        self.broadcast = self.store.broadcast

    def pushpull(self, key, value, out):
        self.store.pushpull(key, [value, mx.nd.array(self.other)], out=out)


@pytest.mark.parametrize("other", [[1, 1, 0, 1], [1, 1, 1, 1], [0, 1, 0, 1]])
def test_over_a_kvstore(other):
    params = parameters()
    params[2].grad_req = "null"
    comparison = StoreComparison(TwoRanks(other), 7, len(params))
    for _ in range(2):
        if other == [1, 1, 0, 1]:
            comparison.check(params)
        else:
            with pytest.raises(RuntimeError, match=r"\(1 of 4\) are frozen on some of the 2 ranks"):
                comparison.check(params)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(
    ("own", "other", "mean"), [(1.5, 2.5, 2.0), (1.0, 1.0, 1.0), (float("inf"), 1.0, float("inf"))]
)
def test_the_mean_over_the_ranks(size, own, other, mean):
    comparison = StoreComparison(TwoRanks([other, *[0] * (size - 1)]), 7, size)
    for _ in range(2):
        assert comparison.mean(own) == mean


def test_a_loss_that_is_not_a_number_on_one_rank_is_none_on_all():
    assert math.isnan(StoreComparison(TwoRanks([float("nan")]), 7, 1).mean(1.0))
