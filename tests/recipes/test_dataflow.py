"""The dataflow of a network: where each parameter is used first, and which ones come before it."""

import math

import mxnet as mx
import pytest
from mxnet import gluon
from mxnet.gluon import nn, rnn

from multitrainer.recipes.dataflow import dataflows
from recipe_support import Net, Scaled, sequential


def dense(units=2, **kwargs):
    return nn.Dense(units, use_bias=False, flatten=False, **kwargs)


def before(net, layer, through_stops=False):
    """Return the Parameters that come before those of ``layer``."""
    dataflow = list(dataflows(net))[through_stops]
    mask = dataflow.upstream(layer.collect_params().values())
    return {param for param, bit in dataflow.bits.items() if bit & mask}


def first_used(net):
    """Return the Parameters that are used, in the order of their first use."""
    dataflow = next(dataflows(net))
    return sorted(dataflow.first_uses, key=lambda param: dataflow.first_uses[param].position)


def test_each_layer_comes_after_all_layers_before_it():
    net = sequential(dense(), dense(), dense())
    weights = [layer.weight for layer in net]
    assert [before(net, layer) for layer in net] == [set(), {weights[0]}, {weights[0], weights[1]}]
    assert first_used(net) == weights


def test_weight_and_bias_of_a_layer_share_an_operator():
    layer = nn.Dense(2)
    dataflow = next(dataflows(sequential(dense(), layer)))
    assert dataflow.first_uses[layer.weight] == dataflow.first_uses[layer.bias]


def test_branches_do_not_come_before_each_other():
    net = Net(lambda net, op, x: net.out(net.a(x) + net.b(x)), {"a": dense(), "b": dense(), "out": dense()})
    assert before(net, net.a) == before(net, net.b) == set()
    assert before(net, net.out) == {net.a.weight, net.b.weight}


def test_a_parameter_counts_where_it_is_used_first():
    shared = dense(in_units=2)
    net = sequential(shared, dense(), shared)
    assert before(net, shared) == set()
    assert before(net, net[1]) == {shared.weight}
    assert first_used(net) == [shared.weight, net[1].weight]


def test_a_weight_is_used_where_it_meets_the_data():
    """To reshape a weight, or to join it with others, is not to use it."""

    class Joined(gluon.HybridBlock):
        def __init__(self):
            super().__init__()
            for name in ("early", "late"):
                setattr(self, name, self.params.get(name, shape=(2,)))
            self.dense = dense()

        def hybrid_forward(self, op, x, early, late):
            scale = op.concat(early.reshape((1, 2)), late.reshape((1, 2)), dim=0)
            return op.broadcast_mul(self.dense(x), scale)

    net = Joined()
    dataflow = next(dataflows(net))
    assert dataflow.first_uses[net.early] == dataflow.first_uses[net.late]
    assert dataflow.first_uses[net.early].upstream == dataflow.bits[net.dense.weight]
    assert first_used(net)[0] is net.dense.weight


def test_a_gradient_stop_ends_the_first_dataflow_and_not_the_second():
    for name in ("stop_gradient", "BlockGrad"):
        net = Net(lambda net, op, x, name=name: net.b(getattr(op, name)(net.a(x))), {"a": dense(), "b": dense()})
        assert before(net, net.b) == set()
        assert before(net, net.b, through_stops=True) == {net.a.weight}


def test_a_parameter_that_is_not_used_has_no_position():
    net = Net(lambda net, op, x: net.used(x), {"idle": dense(), "used": dense()})
    dataflow = next(dataflows(net))
    assert list(dataflow.first_uses) == [net.used.weight]
    assert dataflow.position([net.idle.weight]) == math.inf
    assert dataflow.upstream([net.idle.weight]) == 0
    assert dataflow.position([net.idle.weight, net.used.weight]) == dataflow.first_uses[net.used.weight].position


def test_position_and_upstream_are_of_any_parameter_and_the_mask_of_all():
    net = sequential(dense(), dense(), dense())
    weights = [layer.weight for layer in net]
    dataflow = next(dataflows(net))
    assert dataflow.position([weights[2], weights[1]]) == dataflow.first_uses[weights[1]].position
    assert dataflow.upstream([weights[1], weights[2]]) == dataflow.mask(weights[:2])
    assert dataflow.mask([weights[0], weights[2], weights[0]]) == 0b101
    assert dataflow.mask(weights) == 0b111


def test_a_network_with_several_inputs_is_run_on_all_of_them():
    class Two(gluon.HybridBlock):
        def __init__(self):
            super().__init__()
            self.a, self.b = dense(), dense()

        def hybrid_forward(self, op, x, y, optional=None):
            assert optional is None
            return self.b(self.a(x) + y)

    net = Two()
    assert before(net, net.b) == {net.a.weight}

    class Plain(gluon.Block):
        def __init__(self):
            super().__init__()
            self.a, self.b = dense(), dense()

        def forward(self, x, y, *others, optional=None):
            assert not others
            return self.b(self.a(x) + y)

    net = Plain()
    assert before(net, net.b) == {net.a.weight}


def test_a_symbol_block_is_run_on_all_its_inputs():
    x, y = mx.sym.var("x"), mx.sym.var("y")
    hidden = mx.sym.FullyConnected(x, num_hidden=2, no_bias=True, name="a") + y
    net = gluon.SymbolBlock(mx.sym.FullyConnected(hidden, num_hidden=2, no_bias=True, name="b"), [x, y])
    assert [param.name for param in first_used(net)] == ["a_weight", "b_weight"]


def test_a_recurrent_cell_is_unrolled():
    net = rnn.HybridSequentialRNNCell()
    net.add(rnn.LSTMCell(3))
    net.add(rnn.GRUCell(3))
    assert net[0].i2h_weight in before(net, net[1])
    assert before(net, net[0]) <= set(net[0].collect_params().values())


def test_outputs_may_be_nested():
    net = Net(lambda net, op, x: [net.a(x), (net.b(x), [net.c(x)])], {"a": dense(), "b": dense(), "c": dense()})
    assert set(first_used(net)) == {net.a.weight, net.b.weight, net.c.weight}


def test_a_network_is_run_on_numpy_symbols_under_numpy_semantics():
    with mx.util.np_shape(True), mx.util.np_array(True):
        net = sequential(dense(), dense())
        assert before(net, net[1]) == {net[0].weight}


class TestLayersThatFailWithASymbol:
    def test_such_a_layer_is_one_operator(self):
        net = sequential(dense(), Scaled(), dense())
        assert before(net, net[1]) == {net[0].weight}
        assert before(net, net[2]) == {net[0].weight, net[1].scale}

    def test_the_layers_are_left_as_they_were(self):
        net = sequential(dense(), Scaled())

        def forward(x):
            return x

        net[0].forward = forward
        next(dataflows(net))
        assert net[0].forward is forward
        assert "forward" not in vars(net[1])

    def test_a_network_that_fails_around_its_layers_is_an_error(self):
        def run(net, op, x):
            return net.a(x) * x.shape[0]

        net = Net(run, {"a": dense()})
        with pytest.raises(ValueError, match="has no attribute 'shape'"):
            dataflows(net)
        assert "forward" not in vars(net.a)
