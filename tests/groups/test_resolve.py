"""Targets, precedence, merging, names; and every misuse is refused before anything has changed."""

import mxnet as mx
import pytest
from mxnet.gluon import Parameter, ParameterDict, Trainer, nn

from multitrainer import MultiLRTrainer, ParamGroup
from multitrainer.groups import resolve
from support import mlp, snapshot


def lr_mults(target):
    params = target.collect_params() if isinstance(target, nn.Block) else target
    return {name: param.lr_mult for name, param in params.items() if "running" not in name}


def params_of(block):
    return block.collect_params()


TARGETS = {
    "block": lambda layer: layer,
    "ParameterDict": params_of,
    "dict": lambda layer: dict(params_of(layer).items()),
    "list of Parameters": lambda layer: list(params_of(layer).values()),
    "list of Blocks": lambda layer: [layer, nn.Activation("relu")],
    "tuple in a list": lambda layer: [(layer.weight, layer.bias)],
}


@pytest.mark.parametrize("form", TARGETS)
@pytest.mark.parametrize("spelling", ["pair", "ParamGroup", "set_lr_mult"])
def test_every_form_of_target(form, spelling):
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


def test_dict_of_target_to_multiplier():
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


def test_two_parameter_dicts_with_multipliers_of_their_own_train_in_one_trainer():
    """The second experiment of the note: two models, each with its lr_mult, merged into one ParameterDict."""
    models = [mlp(prefix="a_", batchnorm=False), mlp(prefix="b_", batchnorm=False)]
    models[0].collect_params().setattr("lr_mult", 0.5)
    models[1].collect_params().setattr("lr_mult", 2)
    merged = ParameterDict()
    for model in models:
        merged.update(model.collect_params())
    by_dict = MultiLRTrainer(merged, "sgd", {"learning_rate": 0.1})
    assert {param.lr_mult for param in by_dict.groups[0].params.values()} == {0.5, 2}

    pairs = MultiLRTrainer([(models[0], 0.5), (models[1], 2)], "sgd", {"learning_rate": 0.1})
    assert pairs.learning_rates == {"a": 0.05, "b": 0.2}
    before = snapshot(merged)
    x = mx.nd.ones((1, 3))
    with mx.autograd.record():
        outputs = [model(x).sum() for model in models]
    mx.autograd.backward(outputs)
    gradient = {name: param.grad().asnumpy() for name, param in merged.items()}
    pairs.step(1)
    for name, param in merged.items():
        rate = 0.1 * (0.5 if name.startswith("a_") else 2)
        assert param.data().asnumpy() == pytest.approx(before[name] - rate * gradient[name], rel=1e-6)


def test_later_entry_refines_a_part_of_an_earlier_one():
    net = mlp()
    MultiLRTrainer([(net, 0.5), (net[0], 0.1), (net[0].bias, 3)], "sgd")
    assert lr_mults(net[0]) == {"net_dense0_weight": 0.1, "net_dense0_bias": 3}
    assert set(lr_mults(net[2]).values()) == {0.5}


def test_lr_and_wd_are_independent():
    net = mlp()
    biases = net.collect_params(".*bias")
    trainer = MultiLRTrainer([(net[0], 0.1), (net[2], 2), net[1], ParamGroup(biases, wd_mult=0, name="plain")], "sgd")
    assert net[0].bias.lr_mult == 0.1
    assert net[0].bias.wd_mult == 0
    assert net[0].weight.wd_mult == 1
    assert "0 plain" in trainer.summary()


def test_entries_that_agree_may_overlap():
    net = mlp()
    MultiLRTrainer([(net[0], 0.1), ([net[0], net[1]], 0.1)], "sgd")
    assert net[1].gamma.lr_mult == 0.1


def test_tied_weights():
    net = nn.HybridSequential(prefix="tied_")
    with net.name_scope():
        net.add(nn.Dense(3, in_units=3))
        net.add(nn.Dense(3, in_units=3, params=net[0].params))
    net.initialize()
    assert len(MultiLRTrainer([net[0], net[1]], "sgd").groups[0].params) == 2
    with pytest.raises(ValueError, match=r"tied_dense0_weight.*0\.1.*entry 0.*0\.2.*entry 1"):
        MultiLRTrainer([(net[0], 0.1), (net[1], 0.2)], "sgd")


def test_no_multiplier_keeps_what_the_parameter_has():
    net = mlp()
    net[2].collect_params().setattr("lr_mult", 10)
    MultiLRTrainer([net, (net[0], 0.1)], "sgd")
    assert set(lr_mults(net[2]).values()) == {10}
    MultiLRTrainer([net, (net[2], 5)], "sgd")
    assert set(lr_mults(net[2]).values()) == {5}


def test_block_without_parameters_in_a_list():
    net = mlp()
    relu = nn.Activation("relu")
    trainer = MultiLRTrainer([net[0], relu, ([net[1], relu], 0.5)], "sgd")
    assert net[1].gamma.lr_mult == 0.5
    assert len(trainer.groups) == 3


@pytest.mark.parametrize("form", ["ParameterDict", "dict", "list", "tuple"])
def test_order_is_that_of_stock_trainer(form):
    params = {name: Parameter(name, shape=(1,)) for name in ("b", "c", "a")}
    for param in params.values():
        param.initialize()
    given = {
        "dict": {"1": params["c"], "0": params["b"], "2": params["a"]},
        "list": list(params.values()),
        "tuple": tuple(params.values()),
        "ParameterDict": ParameterDict(),
    }[form]
    if form == "ParameterDict":
        given._params.update(params)
    assert MultiLRTrainer(given, "sgd")._params == Trainer(given, "sgd")._params


def test_groups_are_ordered_by_name_once_merged():
    net = mlp()
    ours = MultiLRTrainer([(net[2], 2), net[0], net[1]], "sgd")
    assert ours._params == Trainer(net.collect_params(), "sgd")._params


def test_numpy_numbers_are_numbers():
    import numpy as np

    net = mlp()
    MultiLRTrainer([net, (net[0], np.float32(0.5)), (net[2], np.int64(2))], "sgd")
    assert (net[0].weight.lr_mult, net[2].weight.lr_mult) == (0.5, 2.0)


class TestNames:
    def test_path_from_the_network_around_it(self):
        net = nn.HybridSequential(prefix="net_")
        with net.name_scope():
            net.body = mlp(prefix="")
            net.head = nn.Dense(1, in_units=2)
        net.initialize()
        trainer = MultiLRTrainer([net, (net.body, 0.1), (net.body[0], 0.2), (net.head, 2)], "sgd")
        assert [group.name for group in trainer.groups] == ["net", "body", "body.0", "head"]

    def test_block_name_where_nothing_is_around_it(self):
        net = mlp()
        trainer = MultiLRTrainer([(net[0], 0.1), (net[2], 1)], "sgd")
        assert list(trainer.learning_rates) == ["net_dense0", "net_dense1"]

    def test_given_name_wins_and_names_differ(self):
        net = mlp()
        groups = [ParamGroup(net[0], 0.1, name="net_dense1"), (net[2], 1), net[1]]
        assert list(MultiLRTrainer(groups, "sgd").learning_rates) == ["net_dense1", "net_dense1#2", "net_batchnorm0"]

    def test_resolved_group_holds_its_parameters_by_name(self):
        net = mlp()
        group = MultiLRTrainer([net, ([net[0], net[1]], 0.1)], "sgd").groups[1]
        assert group.lr_mult == 0.1
        assert group.wd_mult is None
        assert list(group.params) == [
            "net_batchnorm0_beta",
            "net_batchnorm0_gamma",
            "net_dense0_bias",
            "net_dense0_weight",
        ]
        assert repr(group).startswith("ParamGroup(dict of 4 Parameters, lr_mult=0.1, name='0+1'")


def twins():
    return [mlp(prefix="net_"), mlp(prefix="net_")]


# What the user wrote; the error; what its message must say.
MISUSE = {
    "a str": (lambda net: "net", TypeError, "got 'net' of type str"),
    "None": (lambda net: None, TypeError, "got None of type NoneType"),
    "a number": (lambda net: 0.1, TypeError, "got 0.1 of type float"),
    "a generator": (lambda net: (p for p in [net]), TypeError, "of type generator"),
    "an empty list": (lambda net: [], ValueError, "holds no Parameter to train"),
    "an empty dict": (lambda net: {}, ValueError, "holds no Parameter to train"),
    "only blocks without parameters": (lambda net: [nn.Activation("relu")], ValueError, "holds no Parameter"),
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
    "bad wd_mult": (lambda net: ParamGroup(net, wd_mult=-1), ValueError, r"wd_mult of ParamGroup\(.*got -1"),
    "bad lr_mult": (
        lambda net: ParamGroup(net[0], lr_mult="a"),
        TypeError,
        "lr_mult of ParamGroup.*Dense 'net_dense0'",
    ),
    "bad name": (lambda net: ParamGroup(net, name=3), TypeError, "name of a ParamGroup.*got 3"),
    "a name twice": (
        lambda net: [ParamGroup(net[0], name="a"), ParamGroup(net[2], name="a")],
        ValueError,
        "two ParamGroups are named 'a'",
    ),
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
    "the same Block twice": (
        lambda net: [(net[0], 0.1), (net[0], 0.2)],
        ValueError,
        "'net_dense0_weight' gets lr_mult 0.1 from entry 0.*and 0.2 from entry 1",
    ),
    "the larger entry later": (lambda net: [(net[0], 0.1), (net, 0.2)], ValueError, "write the larger target first"),
    "two patterns that cross": (
        lambda net: [(net.collect_params(".*dense0.*"), 0.1), (net.collect_params(".*weight"), 0.2)],
        ValueError,
        "'net_dense0_weight'",
    ),
    "wd_mult that disagrees": (
        lambda net: [ParamGroup(net[0], wd_mult=0), ParamGroup(net[0], wd_mult=1)],
        ValueError,
        "gets wd_mult 0.0 from entry 0.*and 1.0 from entry 1",
    ),
    "two networks of one prefix": (lambda net: twins(), ValueError, "'net_.*one in entry 0.*one in entry 1.*prefix="),
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


@pytest.mark.parametrize(
    ("optimizer", "optimizer_params", "error", "message"),
    [("sdg", None, ValueError, "Cannot find optimizer sdg"), ("sgd", {"learning_rat": 1}, TypeError, "learning_rat")],
)
def test_what_stock_refuses_leaves_nothing_changed(optimizer, optimizer_params, error, message):
    net = mlp()
    former = Trainer(net.collect_params(), "sgd")
    with pytest.raises(error, match=message):
        MultiLRTrainer([net, (net[0], 0), (net[2], 0.5)], optimizer, optimizer_params)
    assert net[0].weight._trainer is former
    assert (net[0].weight.lr_mult, net[0].weight.grad_req) == (1.0, "write")


def test_uninitialized_parameters_are_refused_as_by_stock():
    net = nn.Dense(2, in_units=2)
    with pytest.raises(RuntimeError, match="has not been initialized"):
        MultiLRTrainer([(net, 0)], "sgd")
    assert net.weight.lr_mult == 1


SET_MISUSE = {
    "no dict": (lambda net: [(net, 1)], TypeError, "takes a dict of target to multiplier"),
    "an empty dict": (lambda net: {}, ValueError, "empty dict"),
    "an unknown name": (lambda net: {"net_dense0_wieght": 1}, ValueError, "closest are 'net_dense0_weight'"),
    "an unknown name among known ones": (
        lambda net: {"net_dense0_weight": 0, "nothing_like_it": 1},
        ValueError,
        "has no parameter 'nothing_like_it'",
    ),
    "a stranger": (lambda net: {mlp(prefix="other_"): 1}, ValueError, "'other_dense0_weight' does not belong"),
    "a twin": (lambda net: {mlp(): 1}, ValueError, "does not belong to this trainer"),
    "no target": (lambda net: {3: 1}, TypeError, "3 is not a target"),
    "True": (lambda net: {net[0]: True}, TypeError, "got True"),
    "negative": (lambda net: {net[0]: 0, net[2]: -1}, ValueError, "entry 1.*got -1"),
    "disagreement": (lambda net: {net[0]: 0.1, net: 0.2}, ValueError, "larger target first"),
    "statistics": (lambda net: {"net_batchnorm0_running_mean": 0}, ValueError, "only statistics"),
    "no parameters": (lambda net: {nn.Flatten(): 0}, ValueError, "holds no Parameter"),
}


@pytest.mark.parametrize("method", ["set_lr_mult", "set_wd_mult"])
@pytest.mark.parametrize("case", SET_MISUSE)
def test_misuse_of_set_is_refused_before_anything_changes(case, method):
    net = mlp()
    trainer = MultiLRTrainer(net, "sgd")
    write, error, message = SET_MISUSE[case]
    with pytest.raises(error, match=message):
        getattr(trainer, method)(write(net))
    assert {(p.lr_mult, p.wd_mult) for p in net.collect_params().values()} == {(1.0, 1.0)}
    assert net[0].weight.grad_req == "write"


def test_resolve_is_pure():
    net = mlp()
    plan = resolve([net, (net[0], 0), ParamGroup(net[2], wd_mult=0)])
    assert {(p.lr_mult, p.wd_mult, p._trainer) for p in net.collect_params().values()} == {(1.0, 1.0, None)}
    assert plan.assignments("lr_mult") == {net[0].weight: 0, net[0].bias: 0}
    assert plan.assignments("wd_mult") == {net[2].weight: 0, net[2].bias: 0}
