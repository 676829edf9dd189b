"""A trace that is divided after its frozen layers computes the same bits as one that is not."""

import contextlib
import copy
import pickle

import mxnet as mx
import numpy as np
import pytest
from gluoncv import model_zoo
from mxnet import autograd
from mxnet.gluon import HybridBlock, SymbolBlock, loss, nn, rnn

from multitrainer import MultiLRTrainer, freeze, unfreeze
from multitrainer.freezing import trace_splitting
from multitrainer.freezing.trace_splitting import Trace
from support import CONTEXTS, close, moved, same_as_stock, snapshot

HYBRIDIZE = {"plain": {}, "static": {"static_alloc": True, "static_shape": True}}


class Layers(HybridBlock):
    """Dropout before and after the cut, two arrays that cross it, and an output on each side."""

    def __init__(self):
        super().__init__(prefix="layers_")
        with self.name_scope():
            self.first = nn.Conv2D(32, 3, padding=1, in_channels=3, activation="relu")
            self.norm = nn.BatchNorm(in_channels=32)
            self.second = nn.Conv2D(32, 3, padding=1, in_channels=32)
            self.middle = nn.Conv2D(32, 1, in_channels=32)
            self.pool = nn.GlobalAvgPool2D()
            self.dropout = nn.Dropout(0.5)
            self.output = nn.Dense(3, in_units=32)

    def hybrid_forward(self, F, x):  # noqa: N803
        early = self.dropout(self.norm(self.first(x)))
        halves = F.split(self.second(early), num_outputs=2, axis=1)
        late = self.middle(F.tile(halves[0] * halves[1], (1, 2, 1, 1)) + early)
        return self.output(self.pool(self.dropout(late))), early


class Recurrent(HybridBlock):
    def __init__(self):
        super().__init__(prefix="recurrent_")
        with self.name_scope():
            self.lower = rnn.LSTM(8, num_layers=2, dropout=0.3, layout="NTC", input_size=6)
            self.upper = rnn.GRU(8, layout="NTC", input_size=8)
            self.output = nn.Dense(3, in_units=32 * 8)

    def hybrid_forward(self, F, x):  # noqa: N803
        return self.output(self.upper(self.lower(x.reshape((0, 32, -1)).slice_axis(2, 0, 6))))


def resnet():
    return model_zoo.get_model("cifar_resnet20_v1", classes=3, prefix="resnet_")


# A network, and the layers to freeze, in turn.
NETWORKS = {
    "layers": (Layers, lambda net: [[net.first], [net.first, net.norm, net.second], [net.norm], [net.middle]]),
    "recurrent": (Recurrent, lambda net: [[net.lower], [net.lower, net.upper], [net.upper]]),
    "resnet": (resnet, lambda net: [[net.features], [net.features[:3]], [net.features[2]], [net.features[:-1]]]),
}


def build(make, ctx=None, **hybridize):
    mx.random.seed(4)
    net = make()
    net.initialize(mx.init.Xavier(), ctx=ctx)
    net.hybridize(**hybridize)
    return net


def batch(seed=6):
    mx.random.seed(seed)
    return mx.nd.random.normal(shape=(4, 3, 32, 32)), mx.nd.array([0, 1, 2, 0])


def outputs(net, x):
    value = net(x)
    return value if isinstance(value, (list, tuple)) else [value]


def step(net, trainer, x, y):
    with autograd.record():
        logits, *others = outputs(net, x)
        value = loss.SoftmaxCrossEntropyLoss()(logits, y)
        value = sum((other.square().mean() for other in others), value)
    value.backward()
    trainer.step(len(x))


@pytest.fixture
def undivided(monkeypatch):
    """Give a context in which no trace is divided."""

    @contextlib.contextmanager
    def nothing():
        with monkeypatch.context() as patch:
            patch.setattr(trace_splitting, "divide_traces", lambda blocks: None)
            yield

    return nothing


def recorded(net, x):
    with autograd.record():
        return net(x)


def is_divided(net):
    """Whether a recorded call, with the gradients requested as they are, ran in two parts."""
    trace = net._cached_op
    needed = tuple(param is not None and param.grad_req != "null" for param in getattr(trace, "_sources", ()))
    parts = getattr(trace, "_divisions", {}).get(needed)
    return parts is not None and parts.first is not None and parts.rest is not None


def trajectory(name, hybridize):
    """Freeze one part after the other during training; give Parameters and predictions after each step."""
    make, parts = NETWORKS[name]
    net = build(make, **hybridize)
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.01, "momentum": 0.9, "wd": 1e-3})
    history, divided = [], []
    x, y = batch()
    for part in [[], *parts(net), []]:
        trainer.set_lr_mult({net: 1, **dict.fromkeys(part, 0)})
        for _ in range(2):
            step(net, trainer, x, y)
            divided.append(is_divided(net))
            with autograd.predict_mode():
                history.append({**snapshot(net), "output": outputs(net, x)[0].asnumpy()})
    return history, divided


@pytest.mark.parametrize("mode", HYBRIDIZE)
@pytest.mark.parametrize("name", NETWORKS)
def test_computes_the_bits_of_the_whole_trace(name, mode, undivided):
    def whole():
        with undivided():
            expected, divided = trajectory(name, HYBRIDIZE[mode])
        assert not any(divided)
        return expected

    found, divided = trajectory(name, HYBRIDIZE[mode])
    assert divided[2]
    assert not divided[-1]
    assert same_as_stock(found, whole)


class TestGradients:
    def gradients(self, make, frozen, before=lambda net, x: x):
        """Compute the gradients of a network with frozen layers, and of its input if it has one attached."""
        net = build(make)
        freeze(frozen(net), within=net)
        x, _ = batch()
        with autograd.record():
            value = sum(output.square().sum() for output in outputs(net, before(net, x)))
        value.backward()
        found = {p.name: p.grad().asnumpy() for p in net.collect_params().values() if p.grad_req != "null"}
        if x.grad is not None:
            found["x"] = x.grad.asnumpy()
        return found, is_divided(net)

    def test_of_an_input_with_a_gradient(self, undivided):
        def variable(net, x):
            x.attach_grad()
            return x

        with undivided():
            expected, _ = self.gradients(Layers, lambda net: [net.first, net.second], variable)
        found, _ = self.gradients(Layers, lambda net: [net.first, net.second], variable)
        assert not moved(found, expected)
        assert abs(found["x"]).max() > 0

    def test_of_an_input_from_another_network(self):
        body, head = build(lambda: nn.Dense(6, in_units=3)), build(lambda: nn.HybridSequential())
        head.add(nn.Dense(5, in_units=6), nn.Dense(2, in_units=5))
        head.initialize()
        freeze(head[0], within=head)
        x = mx.nd.ones((4, 3))
        with autograd.record():
            value = head(body(x)).sum()
        value.backward()
        expected = head[1].weight.data().sum(axis=0).expand_dims(0)
        expected = mx.nd.dot(mx.nd.dot(expected, head[0].weight.data()), mx.nd.ones((1, 1)), transpose_a=True)
        assert body.weight.grad().asnumpy() == pytest.approx(4 * np.repeat(expected.asnumpy(), 3, axis=1), rel=1e-5)

    def test_of_an_output_of_the_frozen_part_alone(self):
        """As under stock, trained layers then have a gradient of 0."""
        net = build(Layers)
        freeze([net.first, net.norm], within=net)
        x, _ = batch()
        with autograd.record():
            _, early = net(x)
            value = early.sum()
        value.backward()
        assert is_divided(net)
        assert not net.output.weight.grad().asnumpy().any()

    def test_accumulated(self, undivided):
        def accumulated():
            net = build(Layers)
            net.collect_params("|".join(p.name for p in net.output.params.values())).setattr("grad_req", "add")
            freeze(net.first, within=net)
            for seed in range(2):
                with autograd.record():
                    value = net(batch(seed)[0])[0].sum()
                value.backward()
            return net.output.weight.grad().asnumpy()

        with undivided():
            expected = accumulated()
        assert accumulated().tobytes() == expected.tobytes()


class Sum(HybridBlock):
    """Only a frozen layer needs its input in the backward pass."""

    def __init__(self):
        super().__init__(prefix="sum_")
        with self.name_scope():
            self.first = nn.Dense(16, in_units=16)
            self.output = nn.Dense(16, in_units=16)
            self.norm = nn.BatchNorm(in_channels=16)
            self.weight = self.params.get("weight", shape=(8, 16))

    def hybrid_forward(self, F, x, weight):  # noqa: N803
        return self.norm(self.output(x + weight)) * self.first(x)


class TestDivisions:
    def frozen(self):
        net = build(Layers)
        freeze([net.first, net.norm], within=net)
        return net, batch()[0]

    def test_predictions_are_not_divided(self):
        net, x = self.frozen()
        expected = outputs(build(Layers), x)[0].asnumpy()
        assert outputs(net, x)[0].asnumpy().tobytes() == expected.tobytes()
        assert isinstance(net._cached_op, Trace)
        assert not net._cached_op._divisions

    def test_each_is_made_once(self):
        net, x = self.frozen()
        recorded(net, x)
        (first,) = net._cached_op._divisions.values()
        recorded(net, x)
        (second,) = net._cached_op._divisions.values()
        assert first is second
        net.first.weight.grad_req = "write"  # by hand
        recorded(net, x)
        assert len(net._cached_op._divisions) == 2

    @pytest.mark.parametrize("train_mode", [False, True])
    def test_both_parts_run_in_the_mode_of_the_call(self, train_mode, undivided):
        def run():
            net, x = self.frozen()
            mx.random.seed(9)
            with autograd.record(train_mode=train_mode):
                found = outputs(net, x)
            return [array.asnumpy().tobytes() for array in found], is_divided(net)

        with undivided():
            expected, divided = run()
        assert not divided
        assert run() == (expected, True)

    def test_a_part_keeps_the_options_of_the_network(self, monkeypatch):
        made = []
        original = trace_splitting._mxnet.cached_op

        def noting(symbol, is_parameter, flags):
            made.append((dict(zip(symbol.list_inputs(), is_parameter)), flags))
            return original(symbol, is_parameter, flags)

        monkeypatch.setattr(trace_splitting._mxnet, "cached_op", noting)
        net = build(Layers, static_alloc=True)
        freeze(net.first, within=net)
        recorded(net, batch()[0])
        assert len(made) == 2
        for is_parameter, flags in made:
            assert dict(flags)["static_alloc"] is True
            names = set(net.collect_params().keys())
            assert is_parameter == {name: name in names for name in is_parameter}

    @pytest.mark.parametrize("make", [Sum, Layers])
    def test_a_network_that_trains_as_a_whole_runs_as_mxnet_traced_it(self, make):
        net = build(make)
        freeze(net.first, within=net)
        unfreeze(net.first, within=net)
        recorded(net, mx.nd.ones((8, 16)) if make is Sum else batch()[0])
        (division,) = net._cached_op._divisions.values()
        assert division.rest._operator is net._cached_op._whole

    def test_so_does_a_network_whose_backward_pass_reads_its_inputs(self):
        net = build(Layers)
        freeze(net.output, within=net)
        recorded(net, batch()[0])
        (division,) = net._cached_op._divisions.values()
        assert division.first is None
        assert division.rest._operator is net._cached_op._whole

    def test_a_graph_with_two_inputs_of_one_name_is_not_divided(self):
        """Its values could not be told by their names."""
        symbol = mx.sym.relu(mx.sym.FullyConnected(mx.sym.var("x"), num_hidden=2, name="one"))
        symbol = mx.sym.FullyConnected(symbol, mx.sym.var("two_weight"), no_bias=True, num_hidden=2) * mx.sym.var("x")
        whole = mx.nd.CachedOp(symbol)
        weights = [nn.Dense(2, in_units=2).weight for _ in range(3)]
        trace = Trace(whole, symbol, [None, *weights, None], [])
        arrays = [mx.nd.ones(shape) for shape in ((2, 2), (2, 2), (2,), (2, 2), (2, 2))]
        for weight in weights[:2]:
            weight.grad_req = "null"
        with autograd.record():
            assert trace(*arrays).asnumpy().tobytes() == whole(*arrays).asnumpy().tobytes()
        assert not trace._divisions

    def test_a_frozen_part_without_parameters_is_not_run_separately(self):
        net = nn.HybridSequential()
        net.add(nn.Flatten(), nn.Dense(2, in_units=4), nn.Dense(2, in_units=2))
        net.initialize()
        net.hybridize()
        freeze(net[2], within=net)
        recorded(net, mx.nd.ones((2, 2, 2)))
        (division,) = net._cached_op._divisions.values()
        assert division.first is None


class TestNetworkStaysUsable:
    def test_after_freezing_and_unfreezing(self):
        net = build(Layers)
        x, _ = batch()
        freeze(net.first, within=net)
        for turn, divided in ((freeze, True), (unfreeze, False), (freeze, True)):
            turn(net.first, within=net)
            with autograd.record():
                value = net(x)[0].sum()
            value.backward()
            assert is_divided(net) is divided
        net.first.weight.grad_req = "write"  # by hand
        with autograd.record():
            value = net(x)[0].sum()
        value.backward()
        assert abs(net.first.weight.grad().asnumpy()).max() > 0

    def test_after_hybridizing_again_and_not_at_all(self):
        net = build(Layers)
        x, _ = batch()
        freeze(net.first, within=net)
        expected = net(x)[0].asnumpy()
        for arguments in ({"static_alloc": True}, {"active": False}, {}):
            net.hybridize(**arguments)
            assert close(net(x)[0].asnumpy(), expected)
        recorded(net, x)
        assert is_divided(net)

    def test_export(self, tmp_path):
        net = build(resnet)
        x, _ = batch()
        net(x)
        net.export(str(tmp_path / "before"))
        MultiLRTrainer([net, (net.features[:3], 0)], "sgd")
        net.hybridize()
        recorded(net, x)
        expected = net(x).asnumpy()
        net.export(str(tmp_path / "after"))
        assert is_divided(net)
        one, other = ((tmp_path / f"{name}-symbol.json").read_text().count('"op"') for name in ("before", "after"))
        assert one == other
        path = str(tmp_path / "after")
        imported = SymbolBlock.imports(f"{path}-symbol.json", ["data"], f"{path}-0000.params")
        assert imported(x).asnumpy().tobytes() == expected.tobytes()

    def test_after_import(self, tmp_path, undivided):
        path = str(tmp_path / "net")
        net = build(resnet)
        net(batch()[0])
        net.export(path)

        def train():
            block = SymbolBlock.imports(f"{path}-symbol.json", ["data"], f"{path}-0000.params")
            output = block.collect_params(".*dense.*")
            trainer = MultiLRTrainer([block, (block, 0), (output, 1)], "sgd", {"learning_rate": 0.1})
            for _ in range(2):
                step(block, trainer, *batch())
            return snapshot(block), is_divided(block)

        with undivided():
            expected, divided = train()
        assert not divided
        found, divided = train()
        assert divided
        assert not moved(found, expected)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
    def test_copied_before_it_was_traced(self, copied):
        net = build(resnet)
        net.hybridize(active=False)
        net(batch()[0])
        freeze(net.features, within=net)
        twin = copied(net)
        twin.hybridize()
        unfreeze(net.features, within=net)
        with autograd.record():
            twin(batch()[0])
        assert is_divided(twin)

    def test_a_monitor_sees_every_operator(self):
        net = build(Layers)
        x, _ = batch()
        freeze(net.first, within=net)
        recorded(net, x)
        assert is_divided(net)
        seen = []
        net.register_op_hook(lambda name, operator, array: seen.append(name))
        recorded(net, x)
        mx.nd.waitall()
        assert any("conv0" in name for name in map(str, seen))
        count = len(seen)
        recorded(net, x)
        mx.nd.waitall()
        assert len(seen) == 2 * count

    def test_a_trace_that_a_backend_optimized_is_not_divided(self):
        net = build(resnet)
        x, _ = batch()
        freeze(net.features[:3], within=net)
        net.optimize_for(x, backend="MKLDNN")
        optimized = net(x).asnumpy()
        assert isinstance(net._cached_op, mx.nd.CachedOp)
        net.hybridize()
        assert close(net(x).asnumpy(), optimized, 1e-3)
        recorded(net, x)
        assert is_divided(net)

    def test_layers_hybridized_one_by_one(self):
        """A child that is frozen as a whole has its own trace, which is not recorded."""
        net = nn.Sequential()
        net.add(build(resnet).features, nn.Dense(3, in_units=64))
        net.initialize()
        net.hybridize(static_alloc=True)
        net(batch()[0])
        trainer = MultiLRTrainer([net, (net[0], 0)], "sgd", {"learning_rate": 0.1})
        before = snapshot(net)
        step(net, trainer, *batch())
        assert moved(before, snapshot(net)) == set(net[1].collect_params().keys())
        (parts,), recorded = net[0]._cached_op._divisions.values(), []
        assert parts.rest is None
        operator, parts.first._operator = parts.first._operator, lambda *arrays: look(*arrays)

        def look(*arrays):
            recorded.append(autograd.is_recording())
            return operator(*arrays)

        step(net, trainer, *batch())
        assert recorded == [False]

    def test_two_contexts(self, undivided):
        def train():
            net = build(resnet, ctx=CONTEXTS)
            trainer = MultiLRTrainer([net, (net.features[:4], 0)], "sgd", {"learning_rate": 0.1})
            x, y = batch()
            parts = zip(*(mx.gluon.utils.split_and_load(each, CONTEXTS) for each in (x, y)))
            with autograd.record():
                losses = [loss.SoftmaxCrossEntropyLoss()(net(a), b) for a, b in parts]
            autograd.backward(losses)
            trainer.step(4)
            return snapshot(net)

        with undivided():
            expected = train()
        assert not moved(train(), expected)

    def test_numpy_arrays(self):
        with mx.util.np_shape(True), mx.util.np_array(True):
            net = nn.HybridSequential()
            net.add(nn.Dense(4, in_units=3), nn.Dense(2, in_units=4))
            net.initialize()
            net.hybridize()
            freeze(net[0], within=net)
            x = mx.nd.ones((2, 3)).as_np_ndarray()
            with autograd.record():
                value = net(x)
            value.backward()
            assert is_divided(net)
            assert type(value) is type(x)
            assert abs(net[1].weight.grad().asnumpy()).max() > 0


class Memory(HybridBlock):
    """A value from before the cut that both sides use, as the memory of an encoder."""

    def __init__(self):
        super().__init__(prefix="memory_")
        with self.name_scope():
            self.first = nn.Dense(16, in_units=16)
            self.drop = nn.Dropout(0.5)
            self.output = nn.Dense(16, in_units=16)

    def hybrid_forward(self, F, x):  # noqa: N803
        hidden = self.drop(self.first(x))
        both = self.drop(x) + hidden
        return self.output(both) + hidden


class NeedsLastFirst(Memory):
    """As `Memory`, but the value that the first part computes last is needed first, so no order of heads fits."""

    def hybrid_forward(self, F, x):  # noqa: N803
        one = self.drop(self.first(x))
        two = self.drop(x)
        return self.output(two) + one + self.drop(two) * one


@pytest.mark.parametrize("make", [Memory, NeedsLastFirst])
@pytest.mark.parametrize("mode", HYBRIDIZE)
def test_draws_the_random_numbers_of_the_whole_trace(make, mode):
    def run(frozen):
        net = build(make, **HYBRIDIZE[mode])
        mx.random.seed(8)
        x = mx.nd.random.normal(shape=(8, 16))
        if frozen:
            freeze(net.first, within=net)
        outputs = []
        for _ in range(3):
            outputs.append(recorded(net, x).asnumpy())
        return outputs

    for one, other in zip(run(True), run(False)):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("mode", HYBRIDIZE)
def test_a_gradient_that_the_user_attached_to_a_frozen_weight(mode):
    """As for the saliency of a weight."""

    def gradient(frozen):
        net = build(Memory, **HYBRIDIZE[mode])
        x = mx.nd.ones((4, 16))
        if frozen:
            freeze(net.first, within=net)
        recorded(net, x)
        weight = net.first.weight.data()
        if frozen:
            weight.attach_grad()
        mx.random.seed(3)
        with autograd.record():
            value = net(x).square().sum()
        value.backward()
        return weight.grad.asnumpy()

    expected = gradient(False)
    assert abs(expected).max() > 0
    assert gradient(True) == pytest.approx(expected, rel=1e-4, abs=1e-5)


class SumAtTheCut(Memory):
    """The cut runs through a sum, and the backward pass does not read one of its terms."""

    def hybrid_forward(self, F, x):  # noqa: N803
        hidden = super().hybrid_forward(F, x)
        return F.relu(self.output(hidden)) + self.drop(hidden)


@pytest.mark.parametrize("make", [Sum, Memory, SumAtTheCut])
@pytest.mark.parametrize("mode", [*HYBRIDIZE, "static_alloc"])
def test_gradients_are_those_of_the_imperative_network(make, mode):
    """MXNet's static_alloc computes wrong ones if the backward pass does not read an input that is not a Parameter."""

    def gradients(hybridize, frozen):
        net = build(make, **({} if hybridize is None else hybridize))
        net.hybridize(active=hybridize is not None, **(hybridize or {}))
        if frozen:
            freeze(net.first, within=net)
        mx.random.seed(8)
        x = mx.nd.random.normal(shape=(8, 16))
        with autograd.record():
            value = net(x).square().sum()
        value.backward()
        trained = [p for p in net.collect_params().values() if p.grad_req != "null" and "dense0" not in p.name]
        return {param.name: param.grad().asnumpy() for param in trained}

    # Dropout draws in the order of the graph, so Sum alone can be compared with the imperative network.
    expected = gradients(None if make is Sum else {}, False)
    found = gradients(HYBRIDIZE.get(mode, {"static_alloc": True}), True)
    for name, gradient in expected.items():
        assert found[name] == pytest.approx(gradient, rel=1e-4, abs=1e-4), name


@pytest.mark.slow
def test_every_layer_learns_after_repeated_unfreezing():
    net = model_zoo.get_model("squeezenet1.1", classes=16)
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True, static_shape=True)
    x, y = mx.nd.random.normal(shape=(2, 3, 224, 224)), mx.nd.array([0, 1])
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.01})
    weights = set(net.collect_params(".*weight").keys())
    for _ in range(3):
        trainer.set_lr_mult({net.features: 0})
        step(net, trainer, x, y)
        before = snapshot(net)
        trainer.set_lr_mult({net.features: 1})
        step(net, trainer, x, y)
        assert weights <= moved(before, snapshot(net))


class TwoBranches(HybridBlock):
    """Two frozen branches, of which one is only added to a trained one."""

    def __init__(self):
        super().__init__(prefix="side_")
        with self.name_scope():
            self.one, self.two, self.side = (nn.Dense(16, in_units=16) for _ in range(3))

    def hybrid_forward(self, F, x):  # noqa: N803
        return self.one(x) + self.side(x), self.two(x)


@pytest.mark.parametrize("mode", [*HYBRIDIZE, "static_alloc"])
def test_a_frozen_branch_that_is_added_to_a_trained_one(mode):
    def gradient(frozen):
        net = build(TwoBranches, **HYBRIDIZE.get(mode, {"static_alloc": True}))
        if frozen:
            freeze([net.one, net.two], within=net)
        with autograd.record():
            value = sum(output.square().sum() for output in net(mx.nd.ones((4, 16))))
        value.backward()
        return net.side.weight.grad().asnumpy()

    assert gradient(True) == pytest.approx(gradient(False), rel=1e-5)
