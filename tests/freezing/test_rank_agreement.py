"""All ranks raise if they train different Parameters."""

import math

import mxnet as mx
import pytest
from mxnet import gluon

from multitrainer import _mxnet
from multitrainer.freezing.rank_agreement import StoreComparison, check_counts, comparison_message
from support import mlp


def parameters():
    return list(mlp(batchnorm=False).collect_params().values())


def with_gradients(params):
    _mxnet.mark_gradients_fresh(param.data() for param in params)
    return params


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


def total(messages):
    return [sum(column) for column in zip(*messages)]


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 2, 0), (3, 1, 2), (0, 0, 4)])
def test_all_ranks_see_that_some_add_other_numbers_of_parameters(numbers):
    params = parameters()
    counts = total(comparison_message(params, 0, parameters()[:number]) for number in numbers)
    for _ in numbers:
        with pytest.raises(RuntimeError, match=r"some of the 3 ranks only: call trainer\.add on every rank"):
            check_counts(params, counts, 3)


@pytest.mark.parametrize("other", [{"shape": (3, 2)}, {"name": "new_bias"}, {"dtype": "float16"}], ids=str)
def test_ranks_that_add_different_parameters_are_refused(other):
    new = {"name": "new_weight", "shape": (2, 2), "dtype": "float32"}
    params = parameters()
    messages = [comparison_message(params, 0, [gluon.Parameter(**each)]) for each in (new, {**new, **other})]
    with pytest.raises(RuntimeError, match="the 2 ranks add different Parameters"):
        check_counts(params, total(messages), 2)


def test_numbers_in_the_names_of_added_parameters_may_differ():
    params = parameters()
    new = [gluon.Parameter(name, shape=(2, 2)) for name in ("dense3_weight", "dense12_weight")]
    check_counts(params, total(comparison_message(params, 0, [param]) for param in new), 2)


def test_while_all_ranks_add_parameters_the_others_are_not_compared():
    params = with_gradients(parameters())
    one, two = comparison_message(params, 0, parameters()[:2]), comparison_message(params, 0, parameters()[:2])
    assert not any(one[: len(params)])
    check_counts(params, total([one, two]), 2)


def test_a_rank_without_a_gradient_of_a_parameter_is_noticed():
    one, two = with_gradients(parameters()), with_gradients(parameters())
    _mxnet.mark_gradients_used([two[3].data()])
    counts = total([comparison_message(one, 1), comparison_message(two, 1)])
    with pytest.raises(RuntimeError, match=r"net_dense1_bias \(1 of 4\) .* or have no gradient of this step on some"):
        check_counts(one, counts, 2)


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
    check_counts(params, total(comparison_message(params, each) for each in steps), len(steps))


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
    params = with_gradients(parameters())
    size = comparison_message(params, 1)[len(params) :]
    params[2].grad_req = "null"
    comparison = StoreComparison(TwoRanks([*other, *size]), len(params))
    for _ in range(2):
        if other == [1, 1, 0, 1]:
            comparison.check(params, 1)
        else:
            with pytest.raises(RuntimeError, match=r"\(1 of 4\) are frozen on some of the 2 ranks"):
                comparison.check(params, 1)


def test_a_rank_that_adds_parameters_and_one_that_steps_both_raise():
    params = parameters()
    new = parameters()[:1]
    for mine, others in ((new, []), ([], new)):
        comparison = StoreComparison(TwoRanks(comparison_message(params, 1, others)), len(params))
        with pytest.raises(RuntimeError, match=r"trainer\.add on every rank"):
            comparison.check(params, 1, mine)


def test_unlike_many_steps_over_a_kvstore():
    params = parameters()
    comparison = StoreComparison(TwoRanks(comparison_message(params, 3)), len(params))
    comparison.check(params, 3)
    with pytest.raises(RuntimeError, match="the 2 ranks collected the gradients of different numbers of steps"):
        comparison.check(params, 2)


@pytest.mark.parametrize(("own", "other", "mean"), [(1.5, 2.5, 2.0), (1.0, 1.0, 1.0), (math.inf, 1.0, math.inf)])
def test_the_mean_over_the_ranks(own, other, mean):
    params = parameters()
    other = [other, *[0] * (len(comparison_message(params, 1)) - 1)]
    comparison = StoreComparison(TwoRanks(other), len(params))
    for _ in range(2):
        assert comparison.mean(own) == mean


def test_a_loss_that_is_not_a_number_on_one_rank_is_none_on_all():
    params = parameters()
    other = [math.nan, *[0] * (len(comparison_message(params, 1)) - 1)]
    assert math.isnan(StoreComparison(TwoRanks(other), len(params)).mean(1.0))
