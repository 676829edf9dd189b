"""Every group has a name of its own: the one given, the path of its target, or Gluon's name."""

import pytest
from mxnet.gluon import ParameterDict, nn

from multitrainer import MultiLRTrainer, ParamGroup, discriminative, layerwise_decay, no_weight_decay
from multitrainer.groups import resolve
from support import mlp


def names(*entries):
    return [group.name for group in resolve(list(entries)).groups]


def nested():
    net = nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.body = mlp(prefix="")
        net.head = nn.Dense(1, in_units=2)
    return net


def test_a_block_is_named_by_its_path_in_the_network_around_it():
    net = nested()
    assert names(net, (net.body, 0.1), (net.body[0], 0.2), (net.head, 2)) == ["net", "body", "body.0", "head"]


def test_the_path_begins_at_the_outermost_block():
    net = nested()
    assert names(net.body, net.body[0], net) == ["body", "body.0", "net"]
    assert names(net.body[0], net.body) == ["0", net.body.name]


def test_a_block_alone_has_its_own_name():
    net = mlp()
    assert names((net[0], 0.1), (net[2], 1)) == ["net_dense0", "net_dense1"]
    assert names(nn.Dense(2, prefix="")) == ["dense"]


def test_other_targets_are_named_by_what_they_hold():
    net = mlp()
    assert names(net[0].collect_params(), [net[1].gamma]) == ["net_dense0", "parameters"]
    assert names(ParamGroup(net[0].weight), ParamGroup([net[0].bias, net[1].gamma])) == [
        "net_dense0_weight",
        "parameters",
    ]
    merged = ParameterDict()
    merged.update(net[2].collect_params())
    assert names(merged, dict(net[0].collect_params().items())) == ["parameters", "parameters#2"]


def test_a_list_is_named_by_its_first_target_and_the_number_of_others():
    net = mlp()
    assert names([net[0], net[1], net[2]]) == ["net_dense0+2"]
    assert names([net[0]], net) == ["0", "net"]
    assert names([net[1], net[2]], net) == ["1+1", "net"]
    assert names([net[0].collect_params(), net[2].weight]) == ["net_dense0+1"]


def test_a_name_that_is_taken_gets_gluons_name_then_a_number():
    net = mlp()
    groups = [net, ParamGroup(net[0], name="0"), net[0], net[0], net[0]]
    assert names(*groups) == ["net", "0", "net_dense0", "net_dense0#2", "net_dense0#3"]


def test_a_number_that_is_taken_is_passed_over():
    net = mlp()
    groups = [ParamGroup(net[0], name="net_dense1#2"), ParamGroup(net[1], name="net_dense1"), net[2]]
    assert names(*groups) == ["net_dense1#2", "net_dense1", "net_dense1#3"]


def test_names_given_win_whatever_their_place():
    net = mlp()
    assert names((net[2], 1), ParamGroup(net[0], 0.1, name="net_dense1")) == ["net_dense1#2", "net_dense1"]


def test_a_name_given_twice_is_an_error():
    net = mlp()
    with pytest.raises(ValueError, match="two ParamGroups are named 'a'; names must differ"):
        MultiLRTrainer([ParamGroup(net[0], name="a"), ParamGroup(net[2], name="a")], "sgd")


def test_recipes_for_two_networks_may_give_the_same_names():
    one, other = mlp(prefix="one_"), mlp(prefix="other_")
    groups = [*layerwise_decay(one, 0.5), *layerwise_decay(other, 0.1), no_weight_decay(one), no_weight_decay(other)]
    assert names(*groups) == [
        *("stage1", "stage2", "other stage1", "other stage2"),
        *("no_weight_decay", "other no_weight_decay"),
    ]


def test_a_name_given_wins_over_that_of_a_recipe():
    net = mlp()
    assert names(ParamGroup(net, name="stage1"), *discriminative(net, 0.1, 1)) == ["stage1", "net stage1", "stage2"]
    assert names(*discriminative(net, 0.1, 1), ParamGroup(net[0], name="stage1", wd_mult=2)) == [
        *("net stage1", "stage2", "stage1")
    ]
