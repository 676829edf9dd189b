"""The outermost Blocks of a trainer, and Parameters that were added to them later."""

import copy
import pickle

import pytest
from mxnet.gluon import Trainer, nn

from multitrainer.freezing.known_blocks import KnownBlocks
from support import backward, batches, mlp


class TestRoots:
    def build(self, *blocks):
        known = KnownBlocks()
        known.add(blocks)
        return known

    def test_are_the_outermost_blocks(self):
        net = mlp()
        assert self.build(net, net[0], net[2]).roots == [net]
        assert self.build(net[0], net[2]).roots == [net[0], net[2]]
        assert self.build(net, net).roots == [net]

    def test_leave_out_slices_of_a_known_network(self):
        net = mlp()
        head = net[1:]
        assert self.build(net, head).roots == [net]
        assert self.build(head).roots == [head]
        net.add(nn.Dense(2))
        other = nn.HybridSequential()
        other.add(net[0], nn.Dense(2))  # one of its layers is outside of the network
        assert self.build(net, other).roots == [net, other]

    def test_keep_a_block_without_children(self):
        one, two = nn.Dense(1), nn.Dense(1)
        assert self.build(one, two).roots == [one, two]

    def test_grow_with_each_call(self):
        net = mlp()
        known = self.build(net[0])
        known.add([net[1], net[0]])
        known.add([])
        assert known.roots == [net[0], net[1]]

    def test_are_copied_with_the_network_only(self):
        net = mlp()
        known = self.build(net, nn.Dense(1))
        twin, copied = copy.deepcopy((net, known))
        assert copied.roots == [twin]
        assert copy.deepcopy(known).roots == []
        assert pickle.loads(pickle.dumps(known)).roots == []

    def test_copies_notice_new_layers(self):
        net = mlp()
        known = self.build(net)
        twin, copied = copy.deepcopy((net, known))
        assert copied.unowned_parameters() == []
        add_layer(twin)
        backward(twin, *batches(1)[0])
        assert {param.name for param in copied.unowned_parameters()} == {"new_weight", "new_bias"}
        assert known.unowned_parameters() == []


def add_layer(net):
    net.add(nn.Dense(2, in_units=2, prefix="new_"))
    net[-1].initialize()
    return net[-1]


class TestUnownedParameters:
    def build(self):
        net = mlp()
        known = KnownBlocks()
        known.add([net])
        return net, known

    def test_are_none_unless_a_layer_was_added(self):
        net, known = self.build()  # its own Parameters have no trainer either
        backward(net, *batches(1)[0])
        assert known.unowned_parameters() == []

    def test_are_named_once_they_have_a_gradient(self):
        net, known = self.build()
        new = add_layer(net)
        assert known.unowned_parameters() == []
        backward(net, *batches(1)[0])
        for _ in range(2):
            assert set(known.unowned_parameters()) == {new.weight, new.bias}

    @pytest.mark.parametrize("case", ["in a trainer", "without gradients", "known to the trainer"])
    def test_are_not_those(self, case):
        net, known = self.build()
        new = add_layer(net)
        if case == "in a trainer":
            Trainer(new.collect_params(), "sgd")
        elif case == "without gradients":
            new.collect_params().setattr("grad_req", "null")
        else:
            known.add([net])
        backward(net, *batches(1)[0])
        assert known.unowned_parameters() == []

    def test_are_not_statistics(self):
        net, known = self.build()
        net.add(nn.BatchNorm(in_channels=2, center=False, scale=False))
        net[-1].initialize()
        new = add_layer(net)
        new.bias.grad_req = "null"
        backward(net, *batches(1)[0])
        assert known.unowned_parameters() == [new.weight]
