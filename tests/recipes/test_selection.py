"""`train_only` trains norms or biases and the head; the rest stays bit for bit."""

import mxnet as mx
import pytest
from gluoncv import model_zoo
from gluoncv.nn import GroupNorm as GluonCVGroupNorm
from mxnet import autograd, gluon
from mxnet.gluon import nn, rnn
from mxnet.gluon.contrib.nn import SyncBatchNorm
from mxnet.gluon.nn.basic_layers import _BatchNorm

from multitrainer import MultiLRTrainer, no_weight_decay, train_only, unfreeze_at
from recipe_support import deep, sequential
from support import backward, batches, moved, snapshot

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm, GluonCVGroupNorm)
STATISTICS = ("running_mean", "running_var")
CLASSIFIERS = {
    "cifar_resnet20_v1": "output",
    "resnet18_v1b": "fc",
    "resnet18_v2": "output",
    "mobilenetv2_0.25": "output",
    "mobilenetv3_small": "output",
    "densenet121": "output",
    "squeezenet1.0": "output",
    "vgg11": "output",
    "inceptionv3": "output",
}


def expected(net, kind, head):
    """Return the names that ``kind`` trains beside the head, by the classes of the layers and their attributes."""
    names = set()

    def visit(block):
        own = block._reg_params
        if kind == "norm" and isinstance(block, NORMS):
            names.update(own[name].name for name in ("gamma", "beta") if own[name]._differentiable)
        elif kind == "bias":
            names.update(
                param.name
                for name, param in own.items()
                if (name.endswith("bias") or (name == "beta" and isinstance(block, NORMS))) and param._differentiable
            )

    net.apply(visit)
    return names - set(head.collect_params())


def named(groups):
    return {group.name: group for group in groups}


@pytest.mark.parametrize("kind", ["norm", "bias"])
@pytest.mark.parametrize("model", sorted(CLASSIFIERS))
def test_groups_of_gluoncv_classifiers(model, kind):
    net = model_zoo.get_model(model, classes=3)
    head = getattr(net, CLASSIFIERS[model])
    wanted = expected(net, kind, head)
    if not wanted:
        with pytest.raises(ValueError, match="outside its head has a name that ends in"):
            train_only(net, kind)
        assert (model, kind) in {("vgg11", "norm"), ("squeezenet1.0", "norm")}
        return
    groups = named(train_only(net, kind))
    assert list(groups) == ["frozen", kind, "head"]
    assert [group.lr_mult for group in groups.values()] == [0, 1, 1]
    assert set(groups["head"].params) == set(head.collect_params())
    assert {name for name in groups[kind].params if not name.endswith(STATISTICS)} == wanted
    held = [name for group in groups.values() for name in group.params]
    assert sorted(held) == sorted(net.collect_params())


def _three_steps(net, trainer, x, y):
    for _ in range(3):
        with autograd.record():
            loss = gluon.loss.SoftmaxCrossEntropyLoss()(net(x), y)
        loss.backward()
        trainer.step(4)
    return snapshot(net)


@pytest.mark.parametrize("kind", ["norm", "bias"])
@pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True, "static_shape": True}])
def test_a_batchnorm_without_parameters_is_frozen_as_by_hand(kind, hybridize):
    """The first layer of a ResNet v2 is one. By hand: stock, ``grad_req='null'`` and ``use_global_stats=True``."""
    x, y = mx.nd.random.normal(3, 5, shape=(4, 3, 32, 32)), mx.nd.array([0, 1, 2, 0])
    nets = [model_zoo.get_model("cifar_resnet20_v2", classes=3, prefix="net_") for _ in range(2)]
    for net in nets:
        mx.random.seed(1)
        net.initialize(mx.init.Xavier(), force_reinit=True)
        net(x)
        if hybridize is not None:
            net.hybridize(**hybridize)
            net(x)
    settings = {"learning_rate": 0.01, "momentum": 0.9}
    groups = train_only(nets[0], kind)
    frozen = next(group.params for group in groups if group.name == "frozen")
    trainer = MultiLRTrainer(groups, "sgd", settings)
    first = nets[1].features[0]
    for name, param in nets[1].collect_params().items():
        if name in frozen:
            param.grad_req = "null"
    first._kwargs["use_global_stats"] = True
    nets[1]._clear_cached_op()
    stock = gluon.Trainer(nets[1].collect_params(), "sgd", settings)
    start = snapshot(nets[0])
    ours, theirs = (_three_steps(net, each, x, y) for net, each in zip(nets, (trainer, stock)))
    assert not moved(ours, theirs)
    assert not set(first.collect_params()) & moved(start, ours)
    trainer.set_lr_mult({nets[0]: 1})
    for name in frozen:
        param = nets[1].collect_params()[name]
        param.grad_req = "write" if param._differentiable else "null"
    first._kwargs["use_global_stats"] = False
    nets[1]._clear_cached_op()
    ours, theirs = (_three_steps(net, each, x, y) for net, each in zip(nets, (trainer, stock)))
    assert not moved(ours, theirs)


@pytest.mark.parametrize("kind", ["norm", "bias"])
@pytest.mark.parametrize("hybridize", [False, True])
def test_frozen_stays_bit_for_bit(kind, hybridize):
    mx.random.seed(1)
    net = model_zoo.get_model("cifar_resnet20_v1", classes=3)
    net.initialize(mx.init.Xavier())
    if hybridize:
        net.hybridize(static_alloc=True)
    x, y = mx.nd.random.normal(shape=(4, 3, 32, 32)), mx.nd.array([0, 1, 2, 0])
    net(x)
    groups = train_only(net, kind)
    trainer = MultiLRTrainer(
        [*groups, no_weight_decay(net)], "sgd", {"learning_rate": 0.1, "momentum": 0.9, "wd": 0.01}
    )
    before = snapshot(net)
    for _ in range(3):
        with autograd.record():
            loss = gluon.loss.SoftmaxCrossEntropyLoss()(net(x), y)
        loss.backward()
        trainer.step(4)
    assert moved(before, snapshot(net)) == {
        name
        for group in groups
        if group.name != "frozen"
        for name, param in group.params.items()
        if param._differentiable or name.endswith(STATISTICS)
    }


LAYERS = {
    "BatchNorm": (lambda: nn.BatchNorm(in_channels=4), {"gamma", "beta"}),
    "BatchNorm without scale": (lambda: nn.BatchNorm(in_channels=4, scale=False), {"beta"}),
    "SyncBatchNorm": (lambda: SyncBatchNorm(in_channels=4, num_devices=1), {"gamma", "beta"}),
    "LayerNorm": (lambda: nn.LayerNorm(in_channels=4), {"gamma", "beta"}),
    "GroupNorm": (lambda: nn.GroupNorm(num_groups=2), {"gamma", "beta"}),
    "InstanceNorm": (lambda: nn.InstanceNorm(in_channels=4), {"gamma", "beta"}),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_every_norm_of_gluon(layer):
    norm, wanted = LAYERS[layer][0](), LAYERS[layer][1]
    net = sequential(nn.Dense(4, in_units=3), norm, nn.Dense(2, in_units=4))
    groups = named(train_only(net, "norm", head=net[2]))
    prefix = norm.prefix
    trained = {name[len(prefix) :] for name in groups["norm"].params if not name.endswith(STATISTICS)}
    assert trained == wanted
    assert set(groups["frozen"].params) >= {net[0].weight.name, net[0].bias.name}


def test_statistics_of_a_norm_stay_if_it_is_frozen_after_all():
    net = deep()
    before = snapshot(net)
    trainer = MultiLRTrainer(train_only(net, "norm"), "sgd", {"learning_rate": 0.1})
    trainer.set_lr_mult({net[1]: 0})
    train(net, trainer)
    changed = moved(before, snapshot(net))
    assert not any(name.startswith("net_batchnorm0_") for name in changed)
    assert {"net_batchnorm1_gamma", "net_batchnorm1_running_mean", "net_dense2_weight"} <= changed


def train(net, trainer):
    for x, y in batches(2):
        backward(net, x, y)
        trainer.step(len(x))


def test_a_head_of_ones_own_and_none():
    net = deep()
    assert set(named(train_only(net, "norm", head=net[2]))["head"].params) == set(net[2].collect_params())
    both = named(train_only(net, "norm", head=[net[4], net[2].weight]))
    assert list(both["head"].params) == ["net_dense1_weight", "net_dense2_weight", "net_dense2_bias"]
    assert "net_dense1_bias" in both["frozen"].params
    none = named(train_only(net, "bias", head=[]))
    assert list(none) == ["frozen", "bias"]
    assert "net_dense2_bias" in none["bias"].params
    assert "net_dense2_weight" in none["frozen"].params


def test_the_head_can_have_a_multiplier():
    net = deep()
    trainer = MultiLRTrainer(train_only(net, "bias", head_lr_mult=10), "sgd", {"learning_rate": 0.1})
    assert {group.name: group.lr_mult for group in trainer.groups} == {"frozen": 0, "bias": 1, "head": 10}
    x, y = next(iter(batches(1)))
    backward(net, x, y)
    before, gradients = snapshot(net), {p.name: p.grad().asnumpy() for p in net[4].collect_params().values()}
    trainer.step(1)
    for name, gradient in gradients.items():
        assert abs(snapshot(net)[name] - (before[name] - gradient)).max() <= 1e-6 * abs(gradient).max(), name
    assert train_only(net, "bias", head_lr_mult=unfreeze_at(5))[-1].lr_mult == unfreeze_at(5)


def test_biases_of_recurrent_layers():
    net = sequential(rnn.LSTM(4, input_size=3), nn.Dense(2, in_units=4))
    groups = named(train_only(net, "bias", head=net[1]))
    assert {name.rpartition("l0_")[2] for name in groups["bias"].params} == {"i2h_bias", "h2h_bias"}


def test_a_network_that_cannot_be_ordered_needs_a_head():
    class Branches(gluon.Block):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Dense(2, in_units=3), nn.Dense(2, in_units=3)

        def forward(self, x):
            return self.one(x).asnumpy() + self.two(x)

    net = Branches()
    with pytest.raises(ValueError, match=r"train_only: name the head=, such as net.output, or \[\] for none \("):
        train_only(net, "bias")
    assert [group.name for group in train_only(net, "bias", head=net.two)] == ["frozen", "bias", "head"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda net: ([net], "norm"), TypeError, "expected a network, which is a Block, got"),
        (lambda net: (net, "norms"), ValueError, "kind must be 'norm' or 'bias', got 'norms'"),
        (lambda net: (net, "norm", nn.Dense(2)), ValueError, "does not hold dense"),
        (lambda net: (net, "norm", "output"), TypeError, "is not a target"),
        (lambda net: (net, "norm", net), ValueError, "no parameter of HybridSequential 'net' outside its head"),
        (lambda net: (net, "norm", None, -1), ValueError, "head_lr_mult of train_only must be a finite number >= 0"),
        (lambda net: (net, "norm", [], 10), ValueError, "head_lr_mult 10 was given without a head"),
        (lambda net: (nn.Dense(2, use_bias=False), "bias", []), ValueError, "ends in bias or beta"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        train_only(*arguments(deep()))


def test_two_networks_may_have_groups_of_one_name():
    one, two = deep("one_"), deep("two_")
    trainer = MultiLRTrainer([*train_only(one, "norm"), *train_only(two, "bias")], "sgd")
    assert len(trainer.groups) == len({group.name for group in trainer.groups}) == 6
