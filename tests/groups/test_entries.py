"""Every form of ``params`` is read as entries, and any misuse is refused before anything changes."""

import mxnet as mx
import pytest
from mxnet.gluon import Trainer, nn

from multitrainer import MultiLRTrainer, ParamGroup
from multitrainer.groups.entries import parse_entries
from support import mlp


def lr_mults(net):
    return {name: param.lr_mult for name, param in net.collect_params().items() if "running" not in name}


TARGETS = {
    "block": lambda layer: layer,
    "ParameterDict": lambda layer: layer.collect_params(),
    "dict": lambda layer: dict(layer.collect_params().items()),
    "list of Parameters": lambda layer: list(layer.collect_params().values()),
    "list of Blocks": lambda layer: [layer, nn.Activation("relu")],
    "tuple in a list": lambda layer: [(layer.weight, layer.bias)],
}


@pytest.mark.parametrize("form", TARGETS)
@pytest.mark.parametrize("spelling", ["pair", "ParamGroup", "set_lr_mult"])
def test_every_form_of_target_gets_its_multiplier(form, spelling):
    net = mlp()
    target = TARGETS[form](net[0])
    if spelling == "pair":
        MultiLRTrainer([net, (target, 0.5)], "sgd")
    elif spelling == "ParamGroup":
        MultiLRTrainer([net, ParamGroup(target, lr_mult=0.5)], "sgd")
    else:
        trainer = MultiLRTrainer(net, "sgd")
        if isinstance(target, (dict, list)):
            target = tuple(target.values() if isinstance(target, dict) else target)
        trainer.set_lr_mult({target: 0.5})
    assert lr_mults(net[0]) == {"net_dense0_weight": 0.5, "net_dense0_bias": 0.5}
    assert set(lr_mults(net[2]).values()) == {1.0}


def test_a_dict_of_target_to_multiplier_is_a_list_of_pairs():
    net = mlp()
    MultiLRTrainer({net[0]: 0.5, net[2].weight: 2, net[1].collect_params(): 3, (net[2].bias,): 4}, "sgd")
    assert lr_mults(net) == {
        "net_dense0_weight": 0.5,
        "net_dense0_bias": 0.5,
        "net_batchnorm0_gamma": 3,
        "net_batchnorm0_beta": 3,
        "net_dense1_weight": 2,
        "net_dense1_bias": 4,
    }


def test_a_block_without_parameters_may_be_in_a_list():
    net = mlp()
    relu = nn.Activation("relu")
    trainer = MultiLRTrainer([net[0], relu, ([net[1], relu], 0.5)], "sgd")
    assert net[1].gamma.lr_mult == 0.5
    assert len(trainer.groups) == 3


def wheres(params):
    return [str(entry.where) for entry in parse_entries(params)]


def test_an_entry_is_named_by_its_number_and_its_text():
    net = mlp()
    assert wheres([net, (net[0], 0.5)]) == [
        "entry 0 (HybridSequential 'net')",
        "entry 1 ((Dense 'net_dense0', 0.5))",
    ]
    assert wheres({net[0]: 2}) == ["entry 0 ((Dense 'net_dense0', 2))"]
    assert wheres(net) == ["entry 0 (HybridSequential 'net')"]


def test_neighbouring_parameters_in_a_list_are_one_entry():
    net = mlp()
    entries = parse_entries([net[0].weight, net[0].bias, net[1], net[2].weight])
    assert [list(entry.trainable.values()) for entry in entries] == [
        [net[0].weight, net[0].bias],
        [net[1].gamma, net[1].beta],
        [net[2].weight],
    ]


def test_an_entry_keeps_statistics_apart_from_what_trains():
    net = mlp()
    (entry,) = parse_entries(net[1])
    assert set(entry.params) - set(entry.trainable) == {"net_batchnorm0_running_mean", "net_batchnorm0_running_var"}


def test_a_pair_with_none_sets_nothing():
    net = mlp()
    by_none, by_multiplier, by_name = parse_entries([(net[0], None), (net[1], 1), ParamGroup(net[2], name="head")])
    assert by_none.sets_nothing
    assert by_none.group.lr_mult is None
    assert not by_multiplier.sets_nothing
    assert not by_name.sets_nothing


def test_statistics_alone_may_be_listed_without_a_multiplier():
    net = mlp()
    entries = parse_entries([net, net.collect_params(".*running.*")])
    assert list(entries[1].params) == ["net_batchnorm0_running_mean", "net_batchnorm0_running_var"]
    with pytest.raises(ValueError, match=r"entry 1.*only statistics"):
        parse_entries([net, ParamGroup(net.collect_params(".*running.*"), name="statistics")])


# What the user wrote; the error; what its message must say.
MISUSE = {
    "a str": (lambda net: "net", TypeError, "got 'net' of type str"),
    "None": (lambda net: None, TypeError, "got None of type NoneType"),
    "a number": (lambda net: 0.1, TypeError, "got 0.1 of type float"),
    "a generator": (lambda net: (p for p in [net]), TypeError, "of type generator"),
    "a number in the list": (lambda net: [net, 0.1], TypeError, r"entry 1 \(0.1\).*\[\(target, 0.1\)\]"),
    "a bare pair": (lambda net: (net, 0.1), TypeError, r"entry 1 \(0.1\)"),
    "a name in the list": (lambda net: [net, "net_dense0"], TypeError, "entry 1.*names are for set_lr_mult"),
    "a name as key": (lambda net: {"net_dense0_weight": 0.1}, TypeError, "names are for set_lr_mult"),
    "a name in a pair": (lambda net: [("net_dense0_weight", 0.1)], TypeError, "entry 0.*'net_dense0_weight'"),
    "PyTorch's dict": (lambda net: [{"params": net, "lr": 1}], TypeError, r"entry 0.*\(target, lr_mult\)"),
    "a Block as multiplier": (lambda net: {net[0]: net[2]}, TypeError, "must be a multiplier, got Dense"),
    "mixed dict": (lambda net: {net: 0.1, "w": net[0].weight}, TypeError, "mixes multipliers and Parameters"),
    "a triple": (lambda net: [(net, 0.1, 0.0)], TypeError, "0.1 is not a target.*wd_mult: ParamGroup"),
    "a pair the wrong way round": (lambda net: [(0.1, net)], TypeError, "entry 0.*0.1 is not a target"),
    "a ParamGroup in a pair": (lambda net: [(ParamGroup(net), 0.1)], TypeError, "carries its own multipliers"),
    "a ParamGroup as multiplier": (lambda net: [(net, ParamGroup(net[0]))], TypeError, "entry 0.*is not a target"),
    "a ParamGroup in a ParamGroup": (lambda net: ParamGroup([ParamGroup(net)]), TypeError, "is not a target"),
    "True": (lambda net: [(net, True)], TypeError, "entry 0.*got True of type bool"),
    "a str as multiplier": (lambda net: [(net, "0.1")], TypeError, "entry 0.*got '0.1' of type str"),
    "nan": (lambda net: [(net, float("nan"))], ValueError, "entry 0.*finite number >= 0, got nan"),
    "inf": (lambda net: [(net, float("inf"))], ValueError, "entry 0.*got inf"),
    "negative": (lambda net: [net, (net[0], -0.1)], ValueError, "entry 1.*got -0.1"),
    "negative in a dict": (lambda net: {net: -1}, ValueError, "entry 0.*got -1"),
    "an array as multiplier": (lambda net: [(net, mx.nd.ones(1))], TypeError, "entry 0.*of type NDArray"),
    "a class as schedule": (lambda net: [(net, mx.lr_scheduler.CosineScheduler)], TypeError, "of type type"),
    "a schedule that gives nonsense": (lambda net: [(net, lambda t: "x")], TypeError, "from its schedule at update 1"),
    "a schedule that gives nan": (lambda net: [(net, lambda t: float("nan"))], ValueError, "at update 1.*got nan"),
    "a schedule of schedules": (lambda net: [(net, lambda t: abs)], TypeError, "got another schedule"),
    "a pattern that matches nothing": (
        lambda net: [net, (net.collect_params("conv.*"), 0.1)],
        ValueError,
        "entry 1.*pattern that matched nothing",
    ),
    "the same without multiplier": (lambda net: [net, net.collect_params("conv.*")], ValueError, "entry 1.*matched"),
    "a multiplier for no parameters": (lambda net: [net, (nn.Flatten(), 1)], ValueError, "entry 1.*holds no Parameter"),
    "a multiplier for statistics": (
        lambda net: [net, (net.collect_params(".*running.*"), 0.1)],
        ValueError,
        "entry 1.*only statistics or constants",
    ),
    "a group of PyTorch": (
        lambda net: {"params": net.collect_params(), "lr": 0.1},
        TypeError,
        r"entry 0.*write a group as \(target, lr_mult\) or ParamGroup",
    ),
    "a list of groups of PyTorch": (
        lambda net: [net, {"params": net[0].collect_params().values(), "lr": 0.1}],
        TypeError,
        r"entry 1.*write a group as \(target, lr_mult\) or ParamGroup",
    ),
    "one name twice in a target": (lambda net: [([net, mlp()], 0.1)], ValueError, "two different Parameters.*prefix="),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_refused_before_anything_changes(case):
    net = mlp()
    write, error, message = MISUSE[case]
    former = Trainer(net.collect_params(), "sgd")
    before = [(p.lr_mult, p.wd_mult, p.grad_req, p._trainer) for p in net.collect_params().values()]
    with pytest.raises(error, match=message):
        MultiLRTrainer(write(net), "sgd")
    assert [(p.lr_mult, p.wd_mult, p.grad_req, p._trainer) for p in net.collect_params().values()] == before
    assert net[0].weight._trainer is former
