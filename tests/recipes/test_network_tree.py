"""The tree of a network: each parameter has one place, and repeated Blocks are recognized."""

import mxnet as mx
import pytest
from mxnet import gluon
from mxnet.gluon import nn, rnn

from multitrainer.recipes.dataflow import dataflows
from multitrainer.recipes.network_tree import Node, join_loose_parameters, make_tree
from recipe_support import sequential
from support import mlp


class Residual(gluon.HybridBlock):
    """A residual Block of one layer."""

    def __init__(self, units=3):
        super().__init__()
        with self.name_scope():
            self.body = nn.Dense(units)

    def hybrid_forward(self, op, x):
        return x + self.body(x)


class Holder(gluon.HybridBlock):
    """Layers, and a forward pass that runs them in turn."""

    def __init__(self, *layers):
        super().__init__()
        for number, layer in enumerate(layers):
            self.register_child(layer, str(number))

    def hybrid_forward(self, op, x):
        for child in self._children.values():
            x = child(x)
        return x


def tree(net):
    return make_tree(net, next(dataflows(net)))


def test_the_tree_has_the_blocks_that_hold_parameters():
    net = sequential(nn.Dense(2), nn.Activation("relu"), sequential(nn.Dense(2), nn.BatchNorm()))
    root = tree(net)
    assert root.block is net
    assert [node.block for node in root.children] == [net[0], net[2]]
    assert [node.block for node in root.children[1].children] == [net[2][0], net[2][1]]
    assert set(root.params) == set(net.collect_params().values())


def test_a_block_without_inner_blocks_is_a_leaf():
    net = nn.Dense(2)
    root = make_tree(net, None)
    assert not root.children
    assert root.params == [net.weight, net.bias]


def test_parameters_beside_inner_blocks_are_nodes_of_their_own():
    net = Holder(nn.Dense(2))
    net.params.get("scale", shape=(1,))
    net.params.get("shift", shape=(1,))
    nodes = make_tree(net, None).children
    assert [node.block for node in nodes] == [None, None, net._children["0"]]
    assert [param.name[-5:] for node in nodes[:2] for param in node.params] == ["scale", "shift"]


class Scaled(gluon.HybridBlock):
    """Multiply by a weight of another Block and by a scale of its own."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight
        self.scale = self.params.get("scale", shape=(1,))
        self.params.update({weight.name: weight})

    def hybrid_forward(self, op, x, weight, scale):
        return x * weight * scale


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_shared_parameter_is_with_the_block_that_uses_it_first(order):
    weight = gluon.Parameter("weight", shape=(1,))
    layers = [Scaled(weight), Scaled(weight)]

    class Net(gluon.HybridBlock):
        def __init__(self):
            super().__init__()
            self.one, self.other = layers

        def hybrid_forward(self, op, x):
            return layers[order[1]](layers[order[0]](x))

    nodes = tree(Net()).children
    assert [node.block for node in nodes] == layers
    assert nodes[order[0]].params == [layers[order[0]].scale, weight]
    assert nodes[order[1]].params == [layers[order[1]].scale]
    assert weight in make_tree(Net(), None).children[0].params  # without a graph, in the order of registration


def test_a_block_that_occurs_twice_has_one_node():
    dense = nn.Dense(3, in_units=3)
    assert [node.block for node in tree(sequential(dense, dense)).children] == [dense]


def test_targets_are_the_outermost_blocks_and_what_is_left_over():
    one = nn.Dense(3, in_units=3, use_bias=False, prefix="tied_")
    other = nn.Dense(3, in_units=3, prefix="tied_", params=one.params)
    net = sequential(one, sequential(other, nn.Dense(2)))
    root = tree(net)
    assert list(root.targets()) == [net]
    assert list(root.children[0].targets()) == [one]
    assert list(root.children[1].targets()) == [other.bias, net[1][1]]


def test_sequences_are_recognized():
    class Custom(nn.HybridSequential):
        def hybrid_forward(self, op, x):
            return x

    class Plain(nn.Sequential):
        def forward(self, x):
            return x

    def is_sequence(net):
        net.add(nn.Dense(2), nn.Dense(2))
        return make_tree(net, None).is_sequence

    assert is_sequence(nn.HybridSequential())
    assert is_sequence(nn.Sequential())
    assert not is_sequence(Custom())
    assert not is_sequence(Plain())
    assert not make_tree(Holder(nn.Dense(2)), None).is_sequence
    assert not make_tree(nn.Dense(2), None).is_sequence
    cells = rnn.HybridSequentialRNNCell()
    cells.add(rnn.LSTMCell(2))
    assert make_tree(cells, None).is_sequence


def test_a_class_of_block_is_repeated_twice_in_a_sequence_and_three_times_elsewhere():
    assert make_tree(sequential(Residual(), Residual()), None).repeated == {Residual}
    assert make_tree(sequential(Residual()), None).repeated == set()
    assert make_tree(sequential(nn.Dense(2), nn.Dense(2)), None).repeated == set()
    assert make_tree(sequential(*(sequential(nn.Dense(2)) for _ in range(3))), None).repeated == set()
    assert make_tree(Holder(Residual(), Residual()), None).repeated == set()
    assert make_tree(Holder(Residual(), Residual(), Residual()), None).repeated == {Residual}


def test_a_stage_is_held_at_or_below_a_node():
    row = sequential(Residual(), Residual())
    assert make_tree(row, None).holds_stage
    assert make_tree(sequential(nn.Dense(2), sequential(row)), None).holds_stage
    assert not make_tree(sequential(nn.Dense(2), sequential(Residual())), None).holds_stage


def test_a_normalization_or_an_activation_is_recognized_by_its_parameters():
    assert make_tree(sequential(nn.BatchNorm(), nn.LayerNorm(), nn.PReLU()), None).is_norm
    assert not make_tree(sequential(nn.BatchNorm(), nn.Dense(1)), None).is_norm
    constant = Holder()
    constant.params.get_constant("mean", mx.nd.ones(1))
    assert make_tree(constant, None).is_norm


def test_a_node_is_shown_as_its_block_or_its_first_parameter():
    net = mlp()
    assert str(make_tree(net, None)) == "HybridSequential 'net'"
    assert str(Node(None, [net[0].bias, net[0].weight])) == "Parameter 'net_dense0_bias'"


def test_loose_parameters_of_one_operator_are_joined_and_come_last():
    net = sequential(nn.Dense(2), nn.Dense(2))
    dataflow = next(dataflows(net))
    loose = [Node(None, [param]) for layer in net for param in layer.collect_params().values()]
    block = Node(net, list(net.collect_params().values()))
    inner = Node(None, [], [Node(None, [net[0].weight])])
    nodes = join_loose_parameters([loose[0], block, *loose[1:], inner], dataflow)
    assert nodes[:2] == [block, inner]
    assert [node.params for node in nodes[2:]] == [[net[0].weight, net[0].bias], [net[1].weight, net[1].bias]]


def test_a_symbol_block_is_divided_by_its_names(tmp_path):
    net = nn.HybridSequential(prefix="net_")
    with net.name_scope():
        stage = nn.HybridSequential(prefix="stage1_")
        with stage.name_scope():
            stage.add(nn.Dense(2, in_units=2), nn.Dense(2, in_units=2))
        net.add(nn.Dense(2, in_units=2), stage)
    net.initialize()
    net.hybridize()
    net(mx.nd.ones((1, 2)))
    net.export(str(tmp_path / "net"))
    block = gluon.SymbolBlock.imports(str(tmp_path / "net-symbol.json"), ["data"], str(tmp_path / "net-0000.params"))
    root = make_tree(block, None)
    assert root.is_sequence
    (inside,) = root.children
    assert [sorted(param.name for param in node.params) for node in inside.children] == [
        ["net_dense0_bias", "net_dense0_weight"],
        [f"net_stage1_dense{i}_{name}" for i in (0, 1) for name in ("bias", "weight")],
    ]
    dense, stage = inside.children
    assert not dense.children
    assert [len(layer.params) for layer in stage.children] == [2, 2]
    assert all("dense1" in param.name for param in stage.children[1].params)
