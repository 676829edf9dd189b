"""What is kept about a frozen Parameter, and which ones wait for a backward pass."""

import copy
import pickle

import pytest
from mxnet.gluon import nn

from multitrainer.freezing.state import (
    BeforeFreezing,
    before_freezing,
    change_count,
    is_frozen,
    mark_frozen,
    mark_unfrozen,
    stop_waiting,
    wait_for_backward,
    waiting_for_backward,
)
from support import backward, batches, mlp


def parameter():
    layer = nn.Dense(2, in_units=2)
    layer.initialize()
    return layer.weight


class TestBeforeFreezing:
    def test_is_none_unless_frozen(self):
        param = parameter()
        assert before_freezing(param) is None
        assert not is_frozen(param)
        mark_frozen(param, "add", 0.5)
        assert is_frozen(param)
        mark_unfrozen(param)
        assert before_freezing(param) is None
        assert not is_frozen(param)

    def test_keeps_what_was_noted(self):
        param = parameter()
        param.grad_req = "null"
        mark_frozen(param, "add", 0.5)
        assert before_freezing(param) == BeforeFreezing(grad_req="add", lr_mult=0.5)

    def test_prefers_the_request_that_is_in_force(self):
        param = parameter()
        mark_frozen(param, "add", 0.5)
        assert before_freezing(param) == ("write", 0.5)

    def test_of_a_parameter_that_an_earlier_version_pickled(self):
        param = parameter()
        param.grad_req, param._multitrainer_before = "null", ("add", 0.5)
        assert is_frozen(param)
        assert before_freezing(param) == ("add", 0.5)

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda param: pickle.loads(pickle.dumps(param))])
    def test_is_copied_with_the_parameter(self, way):
        param = parameter()
        param.grad_req = "null"
        mark_frozen(param, "add", 0.5)
        twin = way(param)
        mark_unfrozen(param)
        assert before_freezing(twin) == ("add", 0.5)


def test_change_count_counts_freezing_and_unfreezing():
    param, start = parameter(), change_count()
    mark_unfrozen(param)  # it is not frozen
    assert change_count() == start
    mark_frozen(param, "write", 1)
    assert change_count() == start + 1
    mark_unfrozen(param)
    assert change_count() == start + 2


def test_parameters_wait_until_a_backward_pass_or_an_update():
    net = mlp(batchnorm=False)
    one, two = net[0].weight, net[1].weight
    assert waiting_for_backward([one, two]) == []
    wait_for_backward([one])
    assert waiting_for_backward([one, two]) == [one]
    assert waiting_for_backward([two]) == []
    backward(net, *batches(1)[0])
    assert waiting_for_backward([one, two]) == []
    for array in one.list_data():
        array._fresh_grad = False
    assert waiting_for_backward([one, two]) == [one]
    stop_waiting([two])
    assert waiting_for_backward([one, two]) == [one]
    stop_waiting([one, two])
    assert waiting_for_backward([one, two]) == []
