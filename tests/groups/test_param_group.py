"""`ParamGroup` checks what it is given and shows it; a group that a recipe makes knows its network."""

import copy
import pickle

import mxnet as mx
import pytest
from mxnet.gluon import nn

from multitrainer import ParamGroup, unfreeze_at
from support import mlp


def test_multipliers_and_name_are_optional():
    net = mlp()
    group = ParamGroup(net)
    assert group.params is net
    assert (group.lr_mult, group.wd_mult, group.name, group.root) == (None, None, None, None)
    assert repr(group) == "ParamGroup(HybridSequential 'net')"


def test_it_shows_what_was_given():
    schedule = unfreeze_at(3)
    group = ParamGroup(nn.Dense(2, prefix="fc_"), schedule, 0, "head")
    assert (group.lr_mult, group.wd_mult, group.name) == (schedule, 0.0, "head")
    assert type(group.wd_mult) is float
    assert repr(group) == "ParamGroup(Dense 'fc', lr_mult=unfreeze_at(3), wd_mult=0.0, name='head')"


def test_an_optimizer_of_its_own():
    assert ParamGroup(mlp()).optimizer_choice is None
    settings = {"learning_rate": 0.5}
    group = ParamGroup(nn.Dense(2, prefix="fc_"), optimizer="Adam", optimizer_params=settings)
    settings["learning_rate"] = 1  # the group has a copy
    assert (group.optimizer, group.optimizer_params) == ("Adam", {"learning_rate": 0.5})
    assert group.optimizer_choice == ("adam", {"learning_rate": 0.5})
    assert repr(group) == "ParamGroup(Dense 'fc', optimizer='adam' with {'learning_rate': 0.5})"
    own = mx.optimizer.Adam()
    group = ParamGroup(nn.Dense(2, prefix="fc_"), optimizer=own)
    assert group.optimizer_choice == (own, {})
    assert repr(group) == "ParamGroup(Dense 'fc', optimizer=Adam)"
    assert ParamGroup(mlp(), optimizer_params={}).optimizer_choice == (None, {})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"optimizer": mx.optimizer.Adam}, TypeError, r"^optimizer of ParamGroup\(Dense 'fc'\) must be the name of"),
        ({"optimizer": ""}, TypeError, r"^optimizer of ParamGroup\(Dense 'fc'\) must be .*got ''"),
        ({"optimizer": ("adam", {})}, TypeError, "^optimizer of .*must be the name of an optimizer"),
        (
            {"optimizer": "adam", "optimizer_params": 0.1},
            TypeError,
            r"^optimizer_params of .*must be a .*got 0\.1",
        ),
        ({"optimizer_params": {1: 2}}, TypeError, r"^optimizer_params of .*must be a dict of setting to value"),
        (
            {"optimizer": mx.optimizer.Adam(), "optimizer_params": {}},
            ValueError,
            r"^optimizer_params of ParamGroup\(Dense 'fc'\): its Adam object has its settings already",
        ),
        ({"lr_mult": -1}, ValueError, r"^lr_mult of ParamGroup\(Dense 'fc'\) must be .*got -1"),
        ({"lr_mult": "a"}, TypeError, r"^lr_mult of ParamGroup\(Dense 'fc'\) must be .*got 'a' of type str"),
        ({"wd_mult": -1}, ValueError, r"^wd_mult of ParamGroup\(Dense 'fc'\) must be .*got -1"),
        ({"wd_mult": True}, TypeError, r"^wd_mult of ParamGroup\(Dense 'fc'\) must be .*got True"),
        ({"name": 3}, TypeError, "^name of a ParamGroup must be a non-empty str, got 3"),
        ({"name": ""}, TypeError, "^name of a ParamGroup must be a non-empty str, got ''"),
    ],
)
def test_misuse_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ParamGroup(nn.Dense(2, prefix="fc_"), **arguments)


def test_a_group_of_a_part_of_a_network_looks_like_any_other():
    net = mlp()
    group = ParamGroup._in_network(net, net[0], 0.5, 0, "body")
    assert (group.params, group.lr_mult, group.wd_mult, group.name, group.root) == (net[0], 0.5, 0, "body", net)
    assert repr(group) == repr(ParamGroup(net[0], 0.5, 0, "body"))


def test_a_group_can_be_copied_and_pickled():
    group = ParamGroup(["any"], lr_mult=0.5, name="body")
    for other in (copy.deepcopy(group), pickle.loads(pickle.dumps(group))):
        assert repr(other) == repr(group)
        assert other.params == ["any"]
