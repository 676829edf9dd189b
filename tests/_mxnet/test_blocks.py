"""Blocks: children, Parameters, changes of structure, statistics, and tracing without side effects."""

import mxnet as mx
import pytest
from mxnet import autograd
from mxnet.gluon import SymbolBlock, Trainer, nn

from multitrainer import _mxnet
from support import batches, mlp, moved, snapshot, train


class Tied(nn.HybridBlock):
    """Has a Parameter that is not an attribute, and one that belongs to its child, too."""

    def __init__(self):
        super().__init__(prefix="tied_")
        with self.name_scope():
            self.inner = nn.Dense(2, in_units=2)
            self.weight = self.inner.weight
            self.params.get("hidden", shape=(1,))

    def hybrid_forward(self, F, x, weight):  # noqa: N803
        return F.dot(self.inner(x), weight)


def test_children_and_parameters_of_a_block():
    net = Tied()
    weight, bias = net.inner.weight, net.inner.bias
    assert list(_mxnet.children(net)) == [("inner", net.inner)]
    assert list(_mxnet.children(net.inner)) == []
    assert _mxnet.own_parameters(net) == {"weight": weight}
    assert _mxnet.held_parameters(net) == [weight, net.params["tied_hidden"]]
    assert _mxnet.parameters_by_path(net) == {"weight": weight, "inner.weight": weight, "inner.bias": bias}


def test_statistics_of_symbol_blocks_are_marked_whatever_their_names_are():
    names = {key: mx.sym.var(f"odd_{key}") for key in ("gamma", "beta", "moving_mean", "moving_var")}
    names["moving_mean"], names["moving_var"] = mx.sym.var("odd_m"), mx.sym.var("odd_v")
    block = SymbolBlock(mx.sym.BatchNorm(mx.sym.var("data"), name="odd", **names), mx.sym.var("data"))
    outer = nn.HybridSequential()
    outer.add(nn.Dense(2, in_units=2), block)
    for param in block.collect_params().values():
        param.grad_req = "write"
    _mxnet.mark_statistics(outer)
    auxiliary = {name for name, param in outer.collect_params().items() if _mxnet.is_auxiliary(param)}
    assert auxiliary == {"odd_m", "odd_v"}


class TestStructure:
    def test_has_each_parameter_once(self):
        net = Tied()
        structure = _mxnet.Structure([net, net.inner])
        assert set(structure.parameters()) == {net.weight, net.params["tied_hidden"], net.inner.bias}
        assert not structure.changed()

    def test_a_new_child_changes_it(self):
        net = mlp()
        structure = _mxnet.Structure([net])
        net[0].register_child(nn.Dense(2))
        assert structure.changed()

    def test_a_replaced_parameter_changes_it(self):
        net = Tied()
        structure = _mxnet.Structure([net])
        net.inner._reg_params["bias"] = mx.gluon.Parameter("other", shape=(2,))
        assert structure.changed()
        assert not _mxnet.Structure([net]).changed()

    def test_training_does_not_change_it(self):
        net = mlp()
        structure = _mxnet.Structure([net])
        net.hybridize()
        net(batches(1)[0][0])
        net[0].weight.lr_mult = 0
        assert not structure.changed()


def test_batchnorm_uses_the_statistics_that_were_chosen():
    net = mlp()
    trainer = Trainer(net.collect_params(), "sgd")
    assert not _mxnet.use_global_stats(net[1])
    for chosen in (True, False):
        _mxnet.set_use_global_stats(net[1], chosen)
        assert _mxnet.use_global_stats(net[1]) is chosen
        before = snapshot(net)
        (after,) = train(net, trainer, batches(1))
        assert ("net_batchnorm0_running_mean" in moved(before, after)) is not chosen


@pytest.mark.parametrize("fails", [False, True])
def test_tracing_without_side_effects(fails):
    net = mlp()
    net[0].weight.var()
    before = {param: _mxnet.variable(param) for param in net.collect_params().values()}
    called = []
    net[0].register_forward_hook(lambda *_: called.append("after"))
    net[0].register_forward_pre_hook(lambda *_: called.append("before"))
    try:
        with _mxnet.without_side_effects(net):
            traced = net(mx.sym.var("data"))
            assert "net_dense1_weight" in traced.list_arguments()
            assert not autograd.is_recording()
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert called == []
    assert {param: _mxnet.variable(param) for param in net.collect_params().values()} == before
    net(batches(1)[0][0])
    assert called == ["before", "after"]


def test_tracing_without_side_effects_leaves_the_names_of_operators():
    expected = mx.sym.tanh(mx.sym.var("x")).name
    number = int(expected[len("tanh") :])
    with _mxnet.without_side_effects(mlp()):
        mx.sym.tanh(mx.sym.var("x"))
    assert mx.sym.tanh(mx.sym.var("x")).name == f"tanh{number + 1}"
