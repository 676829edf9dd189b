"""Symbols that Blocks run, and the variables that stand for Parameters."""

import mxnet as mx
from mxnet.gluon import Block, SymbolBlock

from multitrainer import _mxnet
from support import mlp


def test_a_symbol_block_runs_its_own_symbol():
    a, b = mx.sym.var("a"), mx.sym.var("b")
    block = SymbolBlock(mx.sym.FullyConnected(a + b, num_hidden=2, name="fc"), [a, b])
    assert _mxnet.own_symbol(block).name == "fc"
    assert _mxnet.traced_symbol(block).name == "fc"
    assert _mxnet.input_count(block) == 2


def test_only_a_traced_block_has_a_symbol():
    net = mlp(batchnorm=False)
    assert _mxnet.traced_symbol(net) is None
    assert _mxnet.traced_symbol(Block()) is None
    net.hybridize()
    net(mx.nd.ones((1, 3)))
    assert set(net.collect_params().keys()) < set(_mxnet.traced_symbol(net).list_arguments())


def test_a_parameter_has_a_variable_once_it_is_traced_or_gets_one():
    weight = mlp()[0].weight
    assert _mxnet.variable(weight) is None
    node = mx.sym.var("other")
    _mxnet.set_variable(weight, node)
    assert _mxnet.variable(weight) is node
    assert weight.var() is node


def test_multipliers_are_written_to_all_symbols_that_share_the_variable():
    weight = mlp()[0].weight
    node = mx.sym.var(weight.name)
    symbol = mx.sym.tanh(node)
    weight.lr_mult, weight.wd_mult = 0.5, 2.0
    _mxnet.write_multipliers(node, weight)
    written = symbol.attr_dict()[weight.name]
    assert (written["__lr_mult__"], written["__wd_mult__"]) == ("0.5", "2.0")
