"""BatchNorm operators of SymbolBlocks: found by what they are, with their Parameters, and switched in place."""

import copy
import json
import pickle

import mxnet as mx
import pytest
from mxnet.gluon import SymbolBlock

from multitrainer import _mxnet


def block(**attributes):
    """Return a SymbolBlock with two BatchNorms, one of which has Parameters with other names."""
    names = [f"odd_{name}" for name in ("g", "b", "m", "v")]
    first = mx.sym.BatchNorm(mx.sym.var("data"), name="first", **attributes)
    second = mx.sym.BatchNorm(mx.sym.relu(first), *map(mx.sym.var, names), name="second")
    output = mx.sym.FullyConnected(second, num_hidden=2, name="fc")
    found = SymbolBlock(output, mx.sym.var("data"))
    found.initialize()
    return found


def modes(net):
    nodes = json.loads(_mxnet.own_symbol(net).tojson())["nodes"]
    return {node["name"]: node.get("attrs", {}).get("use_global_stats") for node in nodes if node["op"] == "BatchNorm"}


def test_have_the_parameters_that_they_take():
    net = block()
    found = _mxnet.symbol_batchnorms(net)
    assert [set(each.params) for each in found] == [
        {"first_gamma", "first_beta", "first_moving_mean", "first_moving_var"},
        {"odd_g", "odd_b", "odd_m", "odd_v"},
    ]
    assert all(param is net.params[name] for each in found for name, param in each.collect_params().items())
    assert _mxnet.symbol_batchnorms(net)[0] is found[0]


@pytest.mark.parametrize("attributes", [{}, {"use_global_stats": False}, {"output_mean_var": False}], ids=str)
def test_are_switched_in_the_symbol(attributes):
    net = block(**attributes)
    first, second = _mxnet.symbol_batchnorms(net)
    assert not _mxnet.use_global_stats(first)
    _mxnet.set_use_global_stats(first, True)
    assert _mxnet.use_global_stats(first)
    assert not _mxnet.use_global_stats(second)
    assert modes(net) == {"first": "True", "second": None}
    _mxnet.set_use_global_stats(first, False)
    assert modes(net)["first"] == "False"


def test_one_that_always_uses_its_statistics_is_known():
    assert _mxnet.use_global_stats(_mxnet.symbol_batchnorms(block(use_global_stats=True))[0])


def test_two_of_one_name_are_switched_together():
    names = [mx.sym.var(name) for name in ("gamma", "beta", "mean", "var")]
    first = mx.sym.BatchNorm(mx.sym.var("data"), *names, name="norm")
    net = SymbolBlock(mx.sym.BatchNorm(mx.sym.relu(first), *names, name="norm"), mx.sym.var("data"))
    (both,) = _mxnet.symbol_batchnorms(net)
    _mxnet.set_use_global_stats(both, True)
    nodes = json.loads(_mxnet.own_symbol(net).tojson())["nodes"]
    assert [node["attrs"] for node in nodes if node["op"] == "BatchNorm"] == [{"use_global_stats": "True"}] * 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_copies_are_switched_by_themselves(copied):
    net = block()
    first, _ = _mxnet.symbol_batchnorms(net)
    first.note = "kept"
    other = copied(net)
    its_first, _ = _mxnet.symbol_batchnorms(other)
    assert its_first is not first
    assert its_first.note == "kept"
    _mxnet.set_use_global_stats(its_first, True)
    assert modes(other)["first"] == "True"
    assert modes(net)["first"] is None
    assert all(param is other.params[name] for name, param in its_first.params.items())


def test_a_block_with_the_same_symbol_is_not_switched():
    """Teacher and student, say, which have Parameters of their own."""
    data = mx.sym.var("data")
    symbol = mx.sym.BatchNorm(data, name="norm")
    one, other = SymbolBlock(symbol, data), SymbolBlock(symbol, data)
    others = _mxnet.symbol_batchnorms(other)
    _mxnet.set_use_global_stats(_mxnet.symbol_batchnorms(one)[0], True)
    assert modes(one) == {"norm": "True"}
    assert modes(other) == {"norm": None}
    assert _mxnet.symbol_batchnorms(other) == others


def test_a_symbol_without_any_has_none():
    assert _mxnet.symbol_batchnorms(SymbolBlock(mx.sym.relu(mx.sym.var("data")), mx.sym.var("data"))) == []
