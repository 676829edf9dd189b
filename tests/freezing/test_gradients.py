"""Other gradients are the same as if nothing were frozen."""

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from mxnet.gluon import HybridBlock, SymbolBlock, nn, rnn

from multitrainer import MultiLRTrainer, freeze, unfreeze
from multitrainer.freezing.freezer import gradient_pending
from multitrainer.freezing.gradients import (
    request_gradients,
    restore_gradients,
    switch_off_gradients,
    switch_on_dependencies,
)
from multitrainer.freezing.state import before_freezing, mark_frozen, mark_unfrozen
from support import moved, snapshot

HYBRIDIZE = {
    "imperative": None,
    "hybridized": {},
    "static_alloc": {"static_alloc": True},
    "static_shape": {"static_alloc": True, "static_shape": True},
}


class Unrolled(HybridBlock):
    """A cell over two steps of time."""

    def __init__(self, cell, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.cell = cell(16, input_size=16)
            self.output = nn.Dense(2, in_units=16)

    def hybrid_forward(self, F, x):  # noqa: N803
        x = F.reshape(F.tile(x, (1, 8)), (0, 2, 16))
        outputs, _ = self.cell.unroll(2, x, layout="NTC", merge_outputs=True)
        return self.output(F.mean(outputs, axis=1))


class Tied(HybridBlock):
    """An Embedding that shares its weight with the output layer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.embedding = nn.Embedding(16, 16)
            self.decoder = nn.Dense(16, in_units=16, params=self.embedding.params)

    def hybrid_forward(self, F, x):  # noqa: N803
        return self.decoder(self.embedding(F.argmax(x, axis=1)))


class Borrowed(HybridBlock):
    """A user's layer that gives FullyConnected the weight of another layer and its own bias."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.embedding = nn.Embedding(16, 16)
            self.bias = self.params.get("bias", shape=(16,), init="zeros")

    def hybrid_forward(self, F, x, bias):  # noqa: N803
        hidden = self.embedding(F.argmax(x, axis=1))
        weight = self.embedding.weight.var() if F is mx.sym else self.embedding.weight.data()
        return F.FullyConnected(hidden, weight, bias, num_hidden=16)


class Transposed(HybridBlock):
    """An autoencoder whose decoder uses the transposed weight of its encoder."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.encoder = nn.Dense(32, in_units=4)
            self.bias = self.params.get("bias", shape=(4,), init="zeros")

    def hybrid_forward(self, F, x, bias):  # noqa: N803
        weight = self.encoder.weight.var() if F is mx.sym else self.encoder.weight.data()
        return F.FullyConnected(self.encoder(x), F.transpose(weight), bias, num_hidden=4)


class BiasOfTwo(HybridBlock):
    """A bias that consists of two Parameters, as in attention without a bias for its keys."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.qkv = nn.Dense(48, in_units=4, use_bias=False)
            self.q = self.params.get("q", shape=(16,), init="zeros")
            self.v = self.params.get("v", shape=(16,), init="zeros")

    def hybrid_forward(self, F, x, q, v):  # noqa: N803
        weight = self.qkv.weight.var() if F is mx.sym else self.qkv.weight.data()
        return F.FullyConnected(x, weight, F.concat(q, F.zeros_like(q), v, dim=0), num_hidden=48)


def imported(prefix):
    x = mx.sym.var("data")
    hidden = mx.sym.relu(mx.sym.FullyConnected(x, num_hidden=16, name=f"{prefix}one"))
    block = SymbolBlock(mx.sym.FullyConnected(hidden, num_hidden=2, name=f"{prefix}two"), x)
    block.initialize(mx.init.Uniform(0.5))
    block(batch()[0])  # finds the shapes
    return block


def dense(prefix):
    net = nn.HybridSequential(prefix=prefix)
    with net.name_scope():
        net.add(nn.Dense(16, in_units=4, activation="relu"), nn.Dense(16, in_units=16), nn.Dense(2, in_units=16))
    return net


# A network, and which of its Parameters to freeze.
NETWORKS = {
    "weight of a Dense": (dense, lambda net: [net[1].weight]),
    "bias of a Dense": (dense, lambda net: [net[1].bias]),
    "all but biases": (dense, lambda net: list(net.collect_params(".*weight").values())),
    "weight by weight": (dense, lambda net: [net[0].weight, net[1].weight]),
    "LSTMCell": (lambda prefix: Unrolled(rnn.LSTMCell, prefix=prefix), lambda net: [net.cell.i2h_weight]),
    "GRUCell": (lambda prefix: Unrolled(rnn.GRUCell, prefix=prefix), lambda net: [net.cell.h2h_weight]),
    "tied": (lambda prefix: Tied(prefix=prefix), lambda net: net.embedding),
    "transposed": (lambda prefix: Transposed(prefix=prefix), lambda net: net.encoder),
    "bias of two": (lambda prefix: BiasOfTwo(prefix=prefix), lambda net: net.qkv),
    "borrowed": (lambda prefix: Borrowed(prefix=prefix), lambda net: net.embedding),
    "SymbolBlock": (imported, lambda net: list(net.collect_params(".*two_weight").values())),
}


def build(make, mode):
    mx.random.seed(5)
    net = make("net_")
    net.initialize(mx.init.Uniform(0.5))
    if HYBRIDIZE[mode] is not None:
        net.hybridize(**HYBRIDIZE[mode])
    return net


def batch():
    rng = np.random.RandomState(7)
    return mx.nd.array(rng.randn(8, 4)), mx.nd.array(rng.randint(0, 2, 8))


def backward(net):
    x, y = batch()
    with autograd.record():
        loss = gluon.loss.SoftmaxCrossEntropyLoss()(net(x), y)
    loss.backward()


def gradients(net):
    return {p.name: p.grad().asnumpy() for p in net.collect_params().values() if p.grad_req != "null"}


SETTINGS = {"learning_rate": 0.1, "momentum": 0.9, "wd": 0.1}  # weights move under these even if their multiplier is 0


@pytest.mark.parametrize("mode", HYBRIDIZE)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", ["constructor", "set_lr_mult", "lr_mult", "freeze"])
def test_other_gradients_are_those_of_the_network_without_freezing(name, mode, way):
    make, choose = NETWORKS[name]
    net, twin = build(make, mode), build(make, mode)
    chosen = choose(net)
    frozen = list(chosen.collect_params().values()) if isinstance(chosen, gluon.Block) else chosen
    if way == "constructor":
        trainer = MultiLRTrainer([net, (chosen, 0)], "sgd", SETTINGS)
    else:
        trainer = MultiLRTrainer(net, "sgd", SETTINGS)
        backward(net)
        trainer.step(8)
        net.collect_params().load_dict({name: p.data().copy() for name, p in twin.collect_params().items()})
        if way == "set_lr_mult":
            trainer.set_lr_mult(dict.fromkeys(frozen, 0))
        elif way == "lr_mult":
            for param in frozen:
                param.lr_mult = 0
        else:
            freeze(chosen, within=net)
    for _ in range(2):
        backward(net)
        backward(twin)
        found, expected = gradients(net), gradients(twin)
        for param in net.collect_params().values():
            if param not in frozen:
                assert found[param.name] == pytest.approx(expected[param.name], rel=1e-4, abs=1e-6), param.name
        before = snapshot(net)
        trainer.step(8)
        assert moved(before, snapshot(net)).isdisjoint(param.name for param in frozen)
        twin.collect_params().load_dict({name: p.data().copy() for name, p in net.collect_params().items()})


@pytest.mark.parametrize("mode", HYBRIDIZE)
def test_whole_layers_have_no_gradient(mode):
    net = build(dense, mode)
    trainer = MultiLRTrainer([net, (net[:2], 0)], "sgd")
    assert [param.grad_req for param in net.collect_params().values()] == ["null"] * 4 + ["write"] * 2
    trainer.set_lr_mult({net[1].bias: 1})
    assert [param.grad_req for param in net.collect_params().values()] == ["null"] * 2 + ["write"] * 4
    trainer.set_lr_mult({net[1].bias: 0})
    assert [param.grad_req for param in net.collect_params().values()] == ["null"] * 4 + ["write"] * 2


def test_a_parameter_whose_block_is_unknown_keeps_its_gradient():
    net = build(dense, "imperative")
    trainer = MultiLRTrainer([net.collect_params(), (net[0].collect_params(), 0)], "sgd", {"learning_rate": 0.1})
    assert net[0].weight.grad_req == "write"
    before = snapshot(net)
    backward(net)
    trainer.step(8)
    assert moved(before, snapshot(net)) == {name for name in before if "dense0" not in name}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("request_", ["write", "add"])
def test_gradients_from_before_an_unfreezing_are_not_used(request_, optimizer):
    """Both if the gradient was switched off meanwhile and if it was not."""
    results = []
    for named in (lambda net: net[0], lambda net: net[0].weight):
        net = build(dense, "imperative")
        net.collect_params().setattr("grad_req", request_)
        trainer = MultiLRTrainer(net, optimizer, {"learning_rate": 0.1, "wd": 0.1})
        net[0].bias.grad_req = "null"
        net[1].bias.grad_req = "null"
        trainer.set_lr_mult({named(net): 0})
        for _ in range(3):
            net.collect_params().zero_grad()
            backward(net)
            trainer.step(8)
        backward(net)
        trainer.set_lr_mult({net[0].weight: 1})
        before = snapshot(net)
        trainer.step(8)
        assert moved(before, snapshot(net)) == {"net_dense1_weight", "net_dense2_weight", "net_dense2_bias"}
        net.collect_params().zero_grad()
        backward(net)
        trainer.step(8)
        assert "net_dense0_weight" in moved(before, snapshot(net))
        results.append(snapshot(net))
    assert not moved(*results)


def test_unfreezing_drops_what_was_accumulated_while_frozen():
    net, twin = build(dense, "imperative"), build(dense, "imperative")
    for each in (net, twin):
        each.collect_params().setattr("grad_req", "add")
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.1})
    trainer.set_lr_mult({net[0].weight: 0})
    assert net[0].weight.grad_req == "add"
    backward(net)
    backward(net)
    trainer.set_lr_mult({net[0].weight: 1})
    backward(net)
    backward(twin)
    assert net[0].weight.grad().asnumpy().tobytes() == twin[0].weight.grad().asnumpy().tobytes()


def test_unfreezing_keeps_a_request_that_the_user_made_while_frozen():
    net = build(dense, "imperative")
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.1})
    ways = [
        (lambda: trainer.set_lr_mult({net[0]: 0}), lambda: trainer.set_lr_mult({net[0]: 1})),
        (lambda: freeze(net[0], within=net), lambda: unfreeze(net[0], within=net)),
    ]
    for frozen, unfrozen in ways:
        for stepped in (False, True):
            net[0].collect_params().setattr("grad_req", "write")
            frozen()
            net[0].collect_params().setattr("grad_req", "add")
            if stepped:
                backward(net)
                trainer.step(8)
            unfrozen()
            assert net[0].weight.grad_req == "add"


@pytest.mark.parametrize("mode", HYBRIDIZE)
@pytest.mark.parametrize("way", ["set_lr_mult", "lr_mult", "functions"])
def test_gradients_after_freezing_and_unfreezing_many_times(mode, way):
    """MXNet's own operators with static_shape compute wrong ones from the second time on."""
    net, twin = build(dense, mode), build(dense, "imperative")
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.1})
    rng = np.random.RandomState(3)
    frozen = set()
    for _ in range(30):
        layer = net[int(rng.randint(2))]
        turned_on = layer in frozen
        (frozen.discard if turned_on else frozen.add)(layer)
        if way == "set_lr_mult":
            trainer.set_lr_mult({layer: float(turned_on)})
        elif way == "lr_mult":
            layer.collect_params().setattr("lr_mult", float(turned_on))
            backward(net)
            trainer.step(8)
        else:
            (unfreeze if turned_on else freeze)(layer, within=net)
        twin.collect_params().load_dict({name: p.data().copy() for name, p in net.collect_params().items()})
        backward(net)
        backward(twin)
        expected = gradients(twin)
        for name, gradient in gradients(net).items():
            assert gradient == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
        trainer.step(8)
        moving = set(snapshot(net)) - {p.name for each in frozen for p in each.collect_params().values()}
        before = snapshot(net)
        backward(net)
        trainer.step(8)
        assert moved(before, snapshot(net)) == moving


def test_unfreezing_a_bias_requests_the_gradient_of_its_weight():
    """Otherwise MXNet computes a wrong gradient of the bias."""
    net, twin = build(dense, "imperative"), build(dense, "imperative")
    MultiLRTrainer([net, (net[1], 0)], "sgd")
    unfreeze(net[1].bias)
    backward(net)
    backward(twin)
    expected = gradients(twin)["net_dense1_bias"]
    assert gradients(net)["net_dense1_bias"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


class TestRequestGradients:
    def test_keeps_what_a_frozen_parameter_gets_back(self):
        net = build(dense, "imperative")
        weight = net[0].weight
        weight.grad_req = "add"
        mark_frozen(weight, "add", 0.5)
        request_gradients({weight: "null", net[1].weight: "write"})
        assert weight.grad_req == "null"
        assert before_freezing(weight) == ("add", 0.5)
        weight.grad_req = "write"  # by the user
        request_gradients({weight: "null"})
        assert before_freezing(weight) == ("write", 0.5)

    def test_drops_static_operators_that_take_the_parameters(self):
        net = build(dense, "static_shape")
        backward(net)
        request_gradients({net[0].weight: "write"})  # as it is
        assert net._cached_op is not None
        request_gradients({net[0].weight: "null"})
        assert net._cached_op is None

    def test_drops_static_operators_if_it_fails(self):
        net = build(dense, "static_shape")
        backward(net)
        with pytest.raises(AssertionError):
            request_gradients({net[0].weight: "null", net[1].weight: "invalid"})
        assert net._cached_op is None


class TestSwitchOffGradients:
    def test_changes_nothing_if_nothing_is_frozen(self):
        net = build(dense, "imperative")
        net[0].weight.grad_req = "null"
        switch_off_gradients([net], list(net.collect_params().values()))
        assert [param.grad_req for param in net.collect_params().values()] == ["null"] + ["write"] * 5

    def test_of_the_parameters_given_only(self):
        net = build(dense, "imperative")
        for param in (*net[0].collect_params().values(), *net[1].collect_params().values()):
            mark_frozen(param, "write", 1)
        switch_off_gradients([net], list(net[0].collect_params().values()))
        assert (net[0].weight.grad_req, net[1].weight.grad_req) == ("null", "write")

    def test_not_of_a_parameter_outside_of_the_blocks(self):
        """It may be the weight of a bias outside of them, and such a bias may need a weight inside."""
        net, other = build(dense, "imperative"), nn.Dense(16, in_units=16, prefix="other_")
        for param in (*net[1].collect_params().values(), other.weight):
            mark_frozen(param, "write", 1)
        params = [*net.collect_params().values(), *other.collect_params().values()]
        switch_off_gradients([net], params)
        assert (net[1].weight.grad_req, net[1].bias.grad_req, other.weight.grad_req) == ("write", "null", "write")
        mark_frozen(other.bias, "write", 1)
        switch_off_gradients([net], params)
        assert (net[1].weight.grad_req, other.weight.grad_req) == ("null", "write")

    def test_requests_them_again_once_another_gradient_depends_on_them(self):
        net = build(dense, "imperative")
        for param in net[0].collect_params().values():
            param.grad_req = "add"
            mark_frozen(param, "add", 1)
        params = list(net.collect_params().values())
        switch_off_gradients([net], params)
        assert (net[0].weight.grad_req, net[0].bias.grad_req) == ("null", "null")
        restore_gradients([net[0].bias])
        mark_unfrozen(net[0].bias)
        switch_off_gradients([net], params)
        assert (net[0].weight.grad_req, net[0].bias.grad_req) == ("add", "add")


def test_restore_gradients_discards_what_they_hold():
    net = build(dense, "imperative")
    net[0].weight.grad_req = "add"
    backward(net)
    for param in (net[0].weight, net[1].weight):
        mark_frozen(param, param.grad_req, 1)
    restore_gradients(param for param in (net[0].weight, net[1].weight))
    assert not net[0].weight.grad().asnumpy().any()
    assert not gradient_pending([net[0].weight, net[1].weight])
    assert gradient_pending([net[0].bias])


def test_switch_on_dependencies_of_the_parameters_given_only():
    net = build(dense, "imperative")
    for layer in (net[0], net[1]):
        freeze(layer, within=net)
    request_gradients({net[0].bias: "write"})
    mark_unfrozen(net[0].bias)
    switch_on_dependencies([net[0].bias])
    requests = [(layer.weight.grad_req, layer.bias.grad_req) for layer in (net[0], net[1])]
    assert requests == [("write", "write"), ("null", "null")]
