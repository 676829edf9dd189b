"""All ranks raise if they train different Parameters."""

import math

import mxnet as mx
import pytest

from multitrainer.freezing.rank_agreement import StoreComparison, check_counts, comparison_message
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


@pytest.mark.parametrize("numbers", [(4, 5, 5), (4, 5, 3), (3, 5, 4), (4, 4, 8)])
def test_all_ranks_see_that_some_have_other_numbers_of_parameters(numbers):
    params = parameters()
    messages = [comparison_message(params, number - len(params)) for number in numbers]
    counts = [sum(column) for column in zip(*messages)]
    for _ in numbers:
        with pytest.raises(RuntimeError, match=r"some of the 3 ranks only: call trainer\.add on every rank"):
            check_counts(params, counts, 3)


def test_while_all_ranks_add_parameters_the_others_are_not_compared():
    params = parameters()
    one, two = comparison_message(params, 2), comparison_message(params, 2)
    assert not any(one[: len(params)])
    check_counts(params, [sum(column) for column in zip(one, two)], 2)


@pytest.mark.parametrize("steps", [[0, 0], [3, 3, 3], [1] * 7, [15] * 64, [9999] * 33])
def test_equally_many_steps_are_accepted(steps):
    sum_and_check(steps)


@pytest.mark.parametrize("steps", [[0, 1], [1, 0], [2, 4, 3], [3, 3, 3, 1], [7] * 63 + [6], [127, 126]])
def test_unlike_many_steps_are_refused(steps):
    with pytest.raises(
        RuntimeError, match=rf"the {len(steps)} ranks collected the gradients of different numbers of steps"
    ):
        sum_and_check(steps)


def sum_and_check(steps):
    params = parameters()
    messages = [comparison_message(params, collected_steps=each) for each in steps]
    check_counts(params, [sum(column) for column in zip(*messages)], len(steps))


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
    size = comparison_message(params)[len(params) :]
    params[2].grad_req = "null"
    comparison = StoreComparison(TwoRanks([*other, *size]), len(params))
    for _ in range(2):
        if other == [1, 1, 0, 1]:
            comparison.check(params)
        else:
            with pytest.raises(RuntimeError, match=r"\(1 of 4\) are frozen on some of the 2 ranks"):
                comparison.check(params)


def test_a_rank_that_adds_parameters_and_one_that_steps_both_raise():
    params = parameters()
    for mine, others in ((1, 0), (0, 1)):
        comparison = StoreComparison(TwoRanks(comparison_message(params, others)), len(params))
        with pytest.raises(RuntimeError, match=r"trainer\.add on every rank"):
            comparison.check(params, mine)


def test_unlike_many_steps_over_a_kvstore():
    params = parameters()
    comparison = StoreComparison(TwoRanks(comparison_message(params, collected_steps=3)), len(params))
    comparison.check(params, collected_steps=3)
    with pytest.raises(RuntimeError, match="the 2 ranks collected the gradients of different numbers of steps"):
        comparison.check(params, collected_steps=2)


@pytest.mark.parametrize(("own", "other", "mean"), [(1.5, 2.5, 2.0), (1.0, 1.0, 1.0), (math.inf, 1.0, math.inf)])
def test_the_mean_over_the_ranks(own, other, mean):
    params = parameters()
    other = [other, *[0] * (len(comparison_message(params)) - 1)]
    comparison = StoreComparison(TwoRanks(other), len(params))
    for _ in range(2):
        assert comparison.mean(own) == mean


def test_a_loss_that_is_not_a_number_on_one_rank_is_none_on_all():
    params = parameters()
    other = [math.nan, *[0] * (len(comparison_message(params)) - 1)]
    assert math.isnan(StoreComparison(TwoRanks(other), len(params)).mean(1.0))
