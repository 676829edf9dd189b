"""Traces of hybridized Blocks: dropped, rebuilt, compiled, and replaced."""

import copy

import mxnet as mx
import pytest
from mxnet import autograd
from mxnet.gluon import Block, nn

from multitrainer import _mxnet
from multitrainer._mxnet import traces
from support import backward, batches, mlp


class Counting(nn.HybridBlock):
    """Counts how often it is traced."""

    traced = 0

    def hybrid_forward(self, F, x):  # noqa: N803
        self.traced += 1
        return 2 * x


def hybrid(**flags):
    net = mlp(batchnorm=False)
    net.hybridize(**flags)
    return net


def test_only_a_hybridized_block_runs_a_trace():
    net = mlp()
    assert not _mxnet.is_hybridized(net)
    assert not _mxnet.is_hybridized(Block())
    net.hybridize()
    assert _mxnet.is_hybridized(net)


def test_a_forgotten_trace_is_made_again():
    net = Counting()
    net.hybridize()
    for _ in range(2):
        net(mx.nd.ones(1))
    assert net.traced == 1
    _mxnet.forget_trace(net)
    net(mx.nd.ones(1))
    assert net.traced == 2
    _mxnet.forget_trace(Block())


class TestStaticOperators:
    def test_gradients_that_are_requested_later_are_right(self):
        """Without dropping the operator, MXNet does not write them."""
        x, y = batches(1)[0]
        expected = hybrid()
        backward(expected, x, y)
        net = hybrid(static_alloc=True, static_shape=True)
        net[0].collect_params().setattr("grad_req", "null")
        backward(net, x, y)
        net[0].collect_params().setattr("grad_req", "write")
        _mxnet.drop_static_operators({net[0].weight, net[0].bias})
        backward(net, x, y)
        assert net[0].weight.grad().asnumpy() == pytest.approx(expected[0].weight.grad().asnumpy())

    def test_only_operators_that_take_the_parameters_are_dropped(self):
        static = [hybrid(static_alloc=True, static_shape=True) for _ in range(2)]
        plain = hybrid()
        for net in (*static, plain):
            net(mx.nd.ones((1, 3)))
        _mxnet.drop_static_operators({static[0][1].bias, plain[1].bias})
        assert static[0]._cached_op is None
        assert static[1]._cached_op is not None
        assert plain._cached_op is not None
        assert static[0]._cached_graph  # the trace stays for `export`


def test_a_compiled_symbol_computes_what_its_block_does():
    net, x = hybrid(), mx.nd.ones((2, 3))
    expected = net(x)
    symbol = _mxnet.traced_symbol(net)
    params = net.collect_params()
    is_parameter = [name in params for name in symbol.list_inputs()]
    operator = _mxnet.cached_op(symbol, is_parameter, [("static_alloc", True)])
    inputs = [params[name].data() if name in params else x for name in symbol.list_inputs()]
    assert (operator(*inputs).asnumpy() == expected.asnumpy()).all()


class TestReplacedTraces:
    @pytest.fixture
    def made(self):
        """What the function that makes operators was called with; its operators return twice what the original does."""
        calls, stock = [], traces._make_operator

        def make_operator(operator, symbol, sources, flags):
            calls.append((symbol, sources, dict(flags)))
            return lambda *inputs: 2 * operator(*inputs)

        _mxnet.set_operator_factory(make_operator)
        yield calls
        _mxnet.set_operator_factory(stock)

    @pytest.mark.parametrize("traced", [False, True])
    def test_a_marked_block_runs_what_is_made_of_its_operator(self, made, traced):
        net, x = hybrid(static_alloc=True), mx.nd.ones((2, 3))
        expected = mlp(batchnorm=False)(x).asnumpy()
        if traced:
            net(x)
        _mxnet.mark_for_replacement(net)
        for _ in range(2):
            assert (net(x).asnumpy() == 2 * expected).all()
        ((symbol, sources, flags),) = made
        assert symbol.list_inputs() == ["data", *(source.name for source in sources[1:])]
        assert sources[0] is None
        assert set(sources[1:]) == set(net.collect_params().values())
        assert flags["static_alloc"] is True

    def test_a_new_trace_of_a_marked_block_is_replaced_and_others_are_not(self, made):
        net, other, x = hybrid(), hybrid(), mx.nd.ones((2, 3))
        _mxnet.mark_for_replacement(net)
        net(x)
        _mxnet.forget_trace(net)
        net(x)
        assert len(made) == 2
        with autograd.record():
            assert (2 * other(x).asnumpy() == net(x).asnumpy()).all()
        assert len(made) == 2

    def test_copies_are_marked_too(self, made):
        net = mlp(batchnorm=False)
        _mxnet.mark_for_replacement(net)
        copied = copy.deepcopy(net)
        copied.hybridize()
        copied(mx.nd.ones((2, 3)))
        assert len(made) == 1
