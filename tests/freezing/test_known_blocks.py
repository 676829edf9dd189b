"""The outermost Blocks of a trainer, and Parameters that were added to them later."""

import copy
import pickle

import mxnet as mx
import pytest
from gluoncv import model_zoo
from mxnet import autograd
from mxnet.gluon import Trainer, nn

from multitrainer import MultiLRTrainer
from multitrainer.freezing.known_blocks import KnownBlocks
from support import backward, batches, mlp, moved, snapshot


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

    @pytest.mark.parametrize("way", ["in a Block inside", "in a new Block", "in the root itself"])
    def test_name_the_outermost_block_that_trains_nothing_else(self, way):
        net, new = nn.HybridSequential(prefix="net_"), nn.HybridSequential(prefix="new_")
        net.add(nn.HybridSequential(prefix="inner_"))
        net[0].add(nn.Dense(2, in_units=2))
        new.add(nn.Dense(2, in_units=2), nn.Dropout(0.5))
        known = self.build(net)
        if way == "in a Block inside":
            net[0].add(new[0])
        elif way == "in a new Block":
            net.add(new)
        else:
            net.own = mx.gluon.Parameter("own", shape=(1,))
        unowned = known.unowned_parameters()
        paths = {"in a Block inside": ["0.1"], "in a new Block": ["1"], "in the root itself": []}
        assert unowned
        assert known.layers_of(unowned) == paths[way]

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
        assert {param.name for param in copied.unowned_parameters()} == {"new_weight", "new_bias"}
        assert known.unowned_parameters() == []

    def test_copies_notice_the_layers_that_came_and_went_before(self):
        net = mlp()
        known = self.build(net)
        old = net[2].collect_params()
        net._children.popitem()
        add_layer(net)
        twin, params, copied = copy.deepcopy((net, list(old.values()), known))
        assert {param.name for param in copied.unowned_parameters()} == {"new_weight", "new_bias"}
        assert copied.departed([*params, *twin.collect_params().values()]) == params


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

    @pytest.mark.parametrize("has_gradient", [False, True])
    def test_are_named_whether_or_not_they_have_a_gradient(self, has_gradient):
        net, known = self.build()
        new = add_layer(net)
        if has_gradient:
            backward(net, *batches(1)[0])
        for _ in range(2):
            assert known.unowned_parameters() == [new.weight, new.bias]

    def test_are_named_before_they_are_initialized(self):
        net, known = self.build()
        net.add(nn.Dense(2))
        assert known.unowned_parameters() == [net[-1].weight, net[-1].bias]

    @pytest.mark.parametrize("known_again", ["itself", "the network", "a Block around it", "nothing"])
    def test_are_named_whatever_block_becomes_known_since(self, known_again):
        net, known = self.build()
        new = add_layer(net)
        around = nn.HybridSequential()
        around.add(net, nn.Dense(3))
        known.add({"itself": [new], "the network": [net], "a Block around it": [around], "nothing": []}[known_again])
        assert known.unowned_parameters() == [new.weight, new.bias]

    def test_are_named_again_when_they_come_back(self):
        net, known = self.build()
        new = add_layer(net)
        assert known.unowned_parameters() == [new.weight, new.bias]
        net._children.popitem()
        assert known.unowned_parameters() == []
        net.register_child(new)
        assert known.unowned_parameters() == [new.weight, new.bias]

    @pytest.mark.parametrize("case", ["in a trainer", "without gradients"])
    def test_are_not_those(self, case):
        net, known = self.build()
        new = add_layer(net)
        if case == "in a trainer":
            Trainer(new.collect_params(), "sgd")
        else:
            new.collect_params().setattr("grad_req", "null")
        backward(net, *batches(1)[0])
        assert known.unowned_parameters() == []
        new.weight.grad_req = "write"  # later
        assert known.unowned_parameters() == ([new.weight] if case == "without gradients" else [])

    def test_are_not_parameters_that_another_network_shares(self):
        net, known = self.build()
        other = nn.Dense(2, in_units=2, prefix="other_")
        other.initialize()
        Trainer(other.collect_params(), "sgd")
        net.add(nn.Dense(2, in_units=2, prefix="tied_", params=other.collect_params()))
        assert known.unowned_parameters() == []

    def test_are_not_statistics(self):
        net, known = self.build()
        net.add(nn.BatchNorm(in_channels=2, center=False, scale=False))
        net[-1].initialize()
        new = add_layer(net)
        new.bias.grad_req = "null"
        assert known.unowned_parameters() == [new.weight]


class TestDeparted:
    def test_are_those_that_no_known_block_holds_any_more(self):
        net = mlp()
        known, params = KnownBlocks(), list(net.collect_params().values())
        known.add([net])
        old = net._children.popitem()[1]
        outside = nn.Dense(1, in_units=1)
        known.unowned_parameters()
        assert known.departed([*params, outside.weight]) == [old.weight, old.bias]
        net.register_child(old)
        known.unowned_parameters()
        assert known.departed(params) == []

    def test_are_not_those_that_another_known_block_holds(self):
        net = mlp()
        known = KnownBlocks()
        known.add([net])
        around = nn.HybridSequential()
        around.add(net[2], nn.Dense(2))
        known.add([around])
        net._children.popitem()
        known.unowned_parameters()
        assert known.departed(around.collect_params().values()) == []


def test_only_traces_around_newcomers_are_dropped():
    inner, beside = mlp(prefix="inner_"), nn.Dense(2, in_units=2)
    beside.initialize()
    net = nn.HybridSequential()
    net.add(inner, beside)
    net.hybridize()
    known = KnownBlocks()
    known.add([net])
    backward(net, *batches(1)[0])
    beside(mx.nd.ones((1, 2)))
    known.forget_traces_of_newcomers(inner.collect_params().values())
    assert net._cached_op is not None
    new = add_layer(inner)
    assert net._cached_op is not None  # MXNet drops the one of ``inner`` only
    known.unowned_parameters()
    known.forget_traces_of_newcomers([new.weight])
    assert net._cached_op is None
    assert beside._cached_op is not None


# Of each kind of network in GluonCV's zoo, and the size of an input that it takes.
FAST_ZOO = {"cifar_resnet20_v1": 32, "resnet18_v1b": 32, "mobilenetv3_small": 64, "mobilenetv2_0.5": 224}
SLOW_ZOO = {
    "alexnet": 96,
    "densenet121": 224,
    "dla34": 64,
    "inceptionv3": 299,
    "resnest14": 64,
    "se_resnet18_v1": 64,
    "shufflenet_v2": 224,
    "squeezenet1.1": 224,
    "vgg11_bn": 64,
    "xception": 96,
    "simple_pose_resnet18_v1b": 64,
    "center_net_resnet18_v1b_voc": 64,
    "fcn_resnet50_voc": 64,
    "yolo3_mobilenet0.25_custom": 64,
    "ssd_300_mobilenet0.25_voc": 300,
}
WITH_BASE = ("simple_pose", "center_net", "fcn", "yolo3", "ssd")
ZOO = [*FAST_ZOO.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW_ZOO.items())]


def zoo_network(name):
    options = {"classes": ["one", "two"]} if "custom" in name else {"crop_size": 64} if "fcn" in name else {}
    base = {"pretrained_base": False} if name.startswith(WITH_BASE) else {}
    net = model_zoo.get_model(name, pretrained=False, **options, **base)
    net.initialize()
    return net


def zoo_step(net, trainer, size):
    """Make a step with every output of the network as its loss."""
    with autograd.record(train_mode="yolo" not in net.name):  # in which YOLO needs targets
        outputs = net(mx.nd.random.normal(shape=(2, 3, size, size)))
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        value = sum(each.sum() for each in outputs if isinstance(each, mx.nd.NDArray))
    value.backward()
    trainer.step(2, ignore_stale_grad=True)


@pytest.mark.parametrize(("name", "size"), ZOO)
def test_no_network_of_the_zoo_raises_a_false_alarm(name, size):
    net = zoo_network(name)
    net.hybridize()
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 1e-4})
    zoo_step(net, trainer, size)
    trainer.set_lr_mult({net: 0.5})
    zoo_step(net, trainer, size)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("ssd_300_mobilenet0.25_voc", 300), ("yolo3_mobilenet0.25_custom", 64)])
def test_a_detector_that_gets_other_classes(name, size):
    """GluonCV's ``reset_class`` replaces the layers that predict them."""
    net = zoo_network(name)
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 1e-4})
    zoo_step(net, trainer, size)
    old = set(net.collect_params().values())
    net.reset_class(["one", "two", "three"])
    with pytest.raises(ValueError, match=r"would never be trained.*trainer\.add"):
        zoo_step(net, trainer, size)
    new = [param for param in net.collect_params().values() if param not in old]
    if "yolo" in name:  # whose new layers have the names of the old ones
        with pytest.raises(ValueError, match="or build a new trainer if it takes the place of the other one"):
            trainer.add([(new, 10)])
        trainer = MultiLRTrainer([net, (new, 10)], "sgd", {"learning_rate": 1e-4})
    else:
        trainer.add([(new, 10)])
    before = snapshot(net)
    zoo_step(net, trainer, size)
    assert {param.name for param in new} & moved(before, snapshot(net))
