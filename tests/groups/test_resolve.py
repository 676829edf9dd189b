"""Which Parameter gets which multiplier: later entries refine earlier ones, and nothing is decided twice."""

import copy
import pickle

import mxnet as mx
import pytest
from mxnet.gluon import Parameter, ParameterDict, Trainer, nn

from multitrainer import MultiLRTrainer, ParamGroup, layerwise_decay
from multitrainer.groups import OPTIMIZER, ResolvedGroup, resolve, resolve_addition, resolve_assignment
from support import mlp, snapshot


def lr_mults(params):
    """Return the multipliers that ``params`` give, by name of Parameter."""
    return {param.name: number for param, number in resolve(params).assignments["lr_mult"].items()}


def test_a_later_entry_refines_a_part_of_an_earlier_one():
    net = mlp(batchnorm=False)
    assert lr_mults([(net, 0.5), (net[0], 0.1), (net[0].bias, 3)]) == {
        "net_dense0_weight": 0.1,
        "net_dense0_bias": 3,
        "net_dense1_weight": 0.5,
        "net_dense1_bias": 0.5,
    }


def test_lr_and_wd_are_independent():
    net = mlp()
    biases = net.collect_params(".*bias")
    resolved = resolve([(net[0], 0.1), (net[2], 2), net[1], ParamGroup(biases, wd_mult=0)])
    assert resolved.assignments["lr_mult"] == {
        net[0].weight: 0.1,
        net[0].bias: 0.1,
        net[2].weight: 2,
        net[2].bias: 2,
    }
    assert resolved.assignments["wd_mult"] == {net[0].bias: 0, net[2].bias: 0}


def test_entries_that_agree_may_overlap():
    net = mlp()
    assert lr_mults([(net[0], 0.1), ([net[0], net[1]], 0.1)])["net_batchnorm0_gamma"] == 0.1
    assert len(lr_mults([(net[0], 0.1), (net[0], 0.1)])) == 2


def test_an_entry_must_refine_or_agree_with_every_earlier_one():
    net = mlp()
    with pytest.raises(ValueError, match=r"gets lr_mult 0\.1 from entry 1.*and 0\.2 from entry 2"):
        resolve([(net, 1), (net[0].weight, 0.1), (net[0], 0.2)])
    with pytest.raises(ValueError, match=r"gets lr_mult 0\.1 from entry 1.*and 0\.2 from entry 2"):
        resolve([(net, 1), (net[:2], 0.1), ([net[0].weight, net[2].weight], 0.2)])


def test_tied_weights_get_one_multiplier():
    net = nn.HybridSequential(prefix="tied_")
    with net.name_scope():
        net.add(nn.Dense(3, in_units=3))
        net.add(nn.Dense(3, in_units=3, params=net[0].params))
    assert [len(group.params) for group in resolve([net[0], net[1]]).groups] == [2, 2]
    assert len(resolve([net[0], net[1]]).parameters) == 2
    with pytest.raises(ValueError, match=r"tied_dense0_weight.*0\.1.*entry 0.*0\.2.*entry 1"):
        resolve([(net[0], 0.1), (net[1], 0.2)])


def test_no_multiplier_keeps_what_the_parameter_has():
    net = mlp()
    net[2].collect_params().setattr("lr_mult", 10)
    MultiLRTrainer([net, (net[0], 0.1)], "sgd")
    assert net[2].weight.lr_mult == net[2].bias.lr_mult == 10
    MultiLRTrainer([net, (net[2], 5)], "sgd")
    assert net[2].weight.lr_mult == net[2].bias.lr_mult == 5


def test_two_parameter_dicts_with_multipliers_of_their_own_train_in_one_trainer():
    """Two models, each with its own lr_mult, are merged into one ParameterDict."""
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


def test_resolve_changes_no_parameter():
    net = mlp()
    resolve([net, (net[0], 0), ParamGroup(net[2], wd_mult=0)])
    assert {(p.lr_mult, p.wd_mult, p._trainer) for p in net.collect_params().values()} == {(1.0, 1.0, None)}


class TestResolvedGroups:
    def test_a_group_holds_what_trains_by_name(self):
        net = mlp()
        trainer = MultiLRTrainer([net, ([net[0], net[1]], 0.1)], "sgd")
        whole, part = trainer.groups
        assert type(part) is ResolvedGroup
        assert isinstance(part, ParamGroup)
        assert (part.lr_mult, part.wd_mult, part.root) == (0.1, None, None)
        names = ["net_batchnorm0_beta", "net_batchnorm0_gamma", "net_dense0_bias", "net_dense0_weight"]
        assert part.params == {name: net.collect_params()[name] for name in names}
        assert list(part.params) == names
        assert repr(part) == "ParamGroup(dict of 4 Parameters, lr_mult=0.1, name='0+1')"
        assert len(whole.params) == 6

    def test_statistics_are_not_trainable(self):
        resolved = resolve(mlp())
        names = [param.name for param in resolved.parameters]
        assert [param.name for param in resolved.trainable] == [name for name in names if "running" not in name]
        assert len(resolved.trainable) == len(names) - 2

    def test_the_groups_given_stay_as_they_are(self):
        net = mlp()
        group = ParamGroup(net, 0.5)
        MultiLRTrainer([group], "sgd")
        assert (group.params, group.name) == (net, None)

    def test_groups_are_copied_and_pickled_with_their_trainer(self):
        trainer = MultiLRTrainer([ParamGroup(mlp(), 0.5, name="all")], "sgd")
        for groups in (copy.deepcopy(trainer).groups, pickle.loads(pickle.dumps(trainer)).groups):
            assert [type(group) for group in groups] == [ResolvedGroup]
            assert repr(groups) == repr(trainer.groups)

    def test_which_groups_set_and_which_one_decides(self):
        net = mlp()
        groups = [net, (net, 0.5), ParamGroup(net[1], wd_mult=2), (net[0], 0.1), (net[0], 0.1)]
        resolved = resolve(groups)
        weight, gamma = net[0].weight, net[1].gamma
        assert resolved.groups_setting(weight, "lr_mult") == [1, 3, 4]
        assert resolved.groups_setting(weight, "wd_mult") == []
        assert resolved.groups_setting(mlp()[0].weight, "lr_mult") == []
        assert resolved.deciding["lr_mult"][weight] == 4
        assert resolved.deciding["lr_mult"][gamma] == 1
        assert resolved.deciding["wd_mult"] == {gamma: 2, net[1].beta: 2}
        assert (resolved.member_of[weight], resolved.member_of[gamma], resolved.member_of[net[2].bias]) == (4, 2, 1)
        assert net[1].running_mean not in resolved.member_of

    def test_blocks_are_those_named_and_the_networks_of_recipes(self):
        net, other = mlp(), mlp(prefix="other_")
        assert resolve([(net[0], 1), [net[1], net[0]], net[2].weight]).blocks == (net[0], net[1])
        recipe = layerwise_decay(other, 0.5)
        assert resolve([net[0], *recipe]).blocks == (other, net[0], *(group.params for group in recipe))


class TestOrder:
    @pytest.mark.parametrize("form", ["ParameterDict", "dict", "list", "tuple"])
    def test_parameters_are_in_the_order_of_stock_trainer(self, form):
        params = {name: Parameter(name, shape=(1,)) for name in ("b", "c", "a")}
        for param in params.values():
            param.initialize()
        by_key = {"1": params["c"], "0": params["b"], "2": params["a"]}
        given = {
            "dict": by_key,
            "list": list(params.values()),
            "tuple": tuple(params.values()),
            "ParameterDict": ParameterDict(),
        }[form]
        if form == "ParameterDict":
            given.update(by_key)
        assert MultiLRTrainer(given, "sgd")._params == Trainer(given, "sgd")._params

    def test_parameters_of_several_groups_are_ordered_by_name(self):
        net = mlp()
        ours = MultiLRTrainer([(net[2], 2), net[0], net[1]], "sgd")
        assert ours._params == Trainer(net.collect_params(), "sgd")._params


def twins():
    return [mlp(prefix="net_"), mlp(prefix="net_")]


# What the user wrote; the error; what its message must say.
MISUSE = {
    "an empty list": (lambda net: [], ValueError, "holds no Parameter to train"),
    "an empty dict": (lambda net: {}, ValueError, "holds no Parameter to train"),
    "only blocks without parameters": (lambda net: [nn.Activation("relu")], ValueError, "holds no Parameter"),
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
def test_what_stock_refuses_changes_nothing(optimizer, optimizer_params, error, message):
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
def test_misuse_of_set_lr_mult_is_refused_before_anything_changes(case, method):
    net = mlp()
    trainer = MultiLRTrainer(net, "sgd")
    write, error, message = SET_MISUSE[case]
    with pytest.raises(error, match=message):
        getattr(trainer, method)(write(net))
    assert {(p.lr_mult, p.wd_mult) for p in net.collect_params().values()} == {(1.0, 1.0)}
    assert net[0].weight.grad_req == "write"


class TestAssignment:
    def test_targets_and_names(self):
        net = mlp()
        members = list(net.collect_params().values())
        assigned, blocks = resolve_assignment({net[0]: 0.5, "net_dense1_bias": 2}, "wd_mult", members)
        assert assigned == {net[0].weight: 0.5, net[0].bias: 0.5, net[2].bias: 2}
        assert blocks == (net[0],)

    def test_a_later_target_refines_an_earlier_one(self):
        net = mlp()
        members = list(net.collect_params().values())
        assigned, _ = resolve_assignment({net: 0.5, "net_dense1_bias": 2}, "lr_mult", members)
        assert assigned[net[2].bias] == 2
        assert assigned[net[2].weight] == 0.5


class TestOptimizers:
    """The optimizer is decided as a multiplier is."""

    def deciding(self, *entries):
        return resolve(list(entries)).deciding[OPTIMIZER]

    def test_nobody_asks_for_one(self):
        assert self.deciding(mlp()) == {}

    def test_a_later_entry_refines_an_earlier_one(self):
        net = mlp(batchnorm=False)
        whole, layer = ParamGroup(net, optimizer="adam"), ParamGroup(net[1], optimizer_params={"wd": 1})
        weight = ParamGroup(net[1].weight, lr_mult=3)  # keeps the optimizer that it has
        found = self.deciding(whole, layer, weight)
        assert found == {net[0].weight: 0, net[0].bias: 0, net[1].weight: 1, net[1].bias: 1}

    def test_entries_that_agree_may_overlap(self):
        net = mlp(batchnorm=False)
        first, second = ParamGroup(net[0], optimizer="adam"), ParamGroup([net[0].bias, net[1]], optimizer="ADAM")
        assert self.deciding(first, second)[net[0].bias] == 1

    @pytest.mark.parametrize(
        "other",
        [{"optimizer": "nag"}, {"optimizer": "adam", "optimizer_params": {"wd": 1}}, {"optimizer_params": {}}],
        ids=str,
    )
    def test_entries_that_disagree_raise(self, other):
        net = mlp(batchnorm=False)
        with pytest.raises(ValueError, match=r"dense0_bias' gets the optimizer 'adam' from entry 0 .* from entry 1"):
            self.deciding(ParamGroup(net[0], optimizer="adam"), ParamGroup([net[0].bias, net[1]], **other))

    def test_groups_keep_what_was_given(self):
        net = mlp()
        _, group = resolve([net, ParamGroup(net[0], optimizer="Adam", optimizer_params={"wd": 1})]).groups
        assert (group.optimizer, group.optimizer_params) == ("Adam", {"wd": 1})


class TestAddition:
    def test_extends_the_groups_and_keeps_their_indices(self):
        net = mlp(batchnorm=False)
        present = resolve([(net[0], 0.1)])
        added = resolve_addition([net[1], ParamGroup(net[1].bias, lr_mult=2, wd_mult=0)], present, [net])
        extended = present.extended(added)
        assert extended.parameters == [*present.parameters, *added.parameters]
        assert [group.name for group in extended.groups] == ["net_dense0", "1", "net_dense1_bias"]
        assert extended.groups_setting(net[0].bias, "lr_mult") == [0]
        assert extended.groups_setting(net[1].bias, "lr_mult") == [2]
        assert extended.deciding["wd_mult"] == {net[1].bias: 2}
        assert extended.assignments["lr_mult"] == {net[0].weight: 0.1, net[0].bias: 0.1, net[1].bias: 2}
        assert extended.member_of[net[1].weight] == 1
        assert len(present.groups) == 1

    def test_takes_no_parameter_twice(self):
        net = mlp(batchnorm=False)
        present = resolve(net[0])
        with pytest.raises(ValueError, match=r"net_dense0_weight, net_dense0_bias \(2 of 4\) .*new here: net_dense1_w"):
            resolve_addition(net, present)
        twin = mlp(batchnorm=False)
        with pytest.raises(ValueError, match="another Parameter called 'net_dense0_weight'"):
            resolve_addition(twin[0], present)

    def test_names_differ_from_those_in_use(self):
        net = mlp(batchnorm=False)
        present = resolve([ParamGroup(net[0], name="1")])
        assert [group.name for group in resolve_addition(net[1], present, [net]).groups] == ["net_dense1"]
        with pytest.raises(ValueError, match="has a group '1' already"):
            resolve_addition(ParamGroup(net[1], name="1"), present)
