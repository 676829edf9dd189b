"""Promises 3, 4 and 8 on real GluonCV networks: statistics, cached graphs, gradients through frozen layers."""

import copy
import warnings

import mxnet as mx
import pytest
from gluoncv import model_zoo
from mxnet import autograd
from mxnet.gluon import SymbolBlock, contrib, loss, nn

from multitrainer import MultiLRTrainer, freeze, unfreeze
from multitrainer.freezing import batchnorm, stale_traces
from support import CONTEXTS, close, moved, snapshot, weights

HYBRIDIZE = {
    "imperative": None,
    "hybridized": {},
    "static": {"static_alloc": True, "static_shape": True},
}

# The network, the layers to freeze, a trained layer below them.
NETWORKS = {
    "resnet18_v1b": (lambda net: [net.layer1, net.layer2, net.layer3], lambda net: net.conv1),
    "mobilenetv2_0.25": (lambda net: net.features[1:], lambda net: net.features[0]),
    "densenet": (lambda net: net.features[1:], lambda net: net.features[0]),
}
slow = pytest.mark.slow
FAST = ["mobilenetv2_0.25", pytest.param("resnet18_v1b", marks=slow), pytest.param("densenet", marks=slow)]


def build(name):
    mx.random.seed(4)
    if name == "densenet":  # thinner than any with a name; with a growth of 8, stock's backward fails on AVX-512
        net = model_zoo.densenet.DenseNet(32, 16, [2, 2, 2, 2], classes=3)
    else:
        net = model_zoo.get_model(name, classes=3)
    net.initialize(mx.init.Xavier())
    return net


def data(size=32):
    mx.random.seed(6)
    return mx.nd.random.normal(shape=(4, 3, size, size)), mx.nd.array([0, 1, 2, 0])


def step(net, trainer, x, y):
    with autograd.record():
        value = loss.SoftmaxCrossEntropyLoss()(net(x), y)
    value.backward()
    trainer.step(len(x))


def both_modes(block, x):
    with autograd.record(train_mode=True):
        trained = block(x)
    return trained.asnumpy(), block(x).asnumpy()


def statistics(net):
    return {name: array for name, array in snapshot(net).items() if "running" in name}


@pytest.mark.parametrize("mode", HYBRIDIZE)
@pytest.mark.parametrize("name", FAST)
class TestGluonCV:
    def prepare(self, name, mode):
        """Return a network that was hybridized, traced and trained before any of it was frozen."""
        net = build(name)
        if HYBRIDIZE[mode] is not None:
            net.hybridize(**HYBRIDIZE[mode])
        x, y = data(224 if name.startswith("densenet") else 32)
        trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.01, "momentum": 0.9, "wd": 1e-3})
        step(net, trainer, x, y)
        step(net, trainer, x, y)
        return net, trainer, x, y

    def test_frozen_again_and_unfrozen_in_mid_training(self, name, mode):
        net, trainer, x, y = self.prepare(name, mode)
        middle = NETWORKS[name][0](net)
        held = {key for block in blocks(middle) for key in block.collect_params()}
        for _ in range(2):
            trainer.set_lr_mult({as_key(middle): 0})
            before = snapshot(net)
            for _ in range(2):
                step(net, trainer, x, y)
            changed = moved(before, snapshot(net))
            assert not changed & held
            assert weights(changed) == {key for key in weights(before) if key not in held}
            trainer.set_lr_mult({as_key(middle): 0.5})
            before = snapshot(net)
            step(net, trainer, x, y)
            step(net, trainer, x, y)
            assert held <= moved(before, snapshot(net))

    def test_train_and_predict_outputs_of_the_frozen_part_agree(self, name, mode):
        net, trainer, x, _ = self.prepare(name, mode)
        different, _ = both_modes(net.features if hasattr(net, "features") else net, x)
        trainer.set_lr_mult({net: 0})
        block = net.features if hasattr(net, "features") else net
        trained, predicted = both_modes(block, x)
        assert close(trained, predicted)
        assert not close(different, predicted, 1e-3)
        trainer.set_lr_mult({net: 1})
        trained, predicted = both_modes(block, x)
        assert not close(trained, predicted, 1e-3)

    def test_gradients_reach_layers_below(self, name, mode):
        net, trainer, x, y = self.prepare(name, mode)
        middle, below = (choose(net) for choose in NETWORKS[name])
        trainer.set_lr_mult({as_key(middle): 0})
        with autograd.record():
            value = loss.SoftmaxCrossEntropyLoss()(net(x), y)
        value.backward()
        assert all(abs(p.grad().asnumpy()).max() > 0 for p in below.collect_params().values() if p.grad_req != "null")
        for block in blocks(middle):
            for param in block.collect_params().values():
                with pytest.raises(RuntimeError, match="grad_req='null'"):
                    param.grad()


def blocks(target):
    return target if isinstance(target, list) else [target]


def as_key(target):
    return tuple(target) if isinstance(target, list) else target


def batchnorms(net):
    found = []
    net.apply(lambda block: found.append(block) if isinstance(block, nn.BatchNorm) else None)
    return found


class TestBatchNorm:
    def test_one_whose_gamma_still_trains_keeps_batch_statistics(self):
        net = build("mobilenetv2_0.25")
        gammas = net.features.collect_params(".*gamma")
        trainer = MultiLRTrainer([net, (net.features, 0), (gammas, 1)], "sgd", {"learning_rate": 0.1})
        x, y = data()
        net(x)
        before = snapshot(net)
        step(net, trainer, x, y)
        changed = moved(before, snapshot(net))
        assert set(gammas.keys()) <= changed
        assert set(statistics(net)) <= changed
        assert not any(layer._kwargs["use_global_stats"] for layer in batchnorms(net))

    def test_one_that_runs_on_global_statistics_anyway_goes_on_doing_so(self):
        layer = nn.BatchNorm(in_channels=2, use_global_stats=True)
        layer.initialize()
        freeze(layer)
        unfreeze(layer)
        assert layer._kwargs["use_global_stats"]

    def test_one_without_parameters_follows_the_block_around_it(self):
        net = nn.HybridSequential()
        plain = nn.BatchNorm(center=False, scale=False, in_channels=3)
        body = nn.HybridSequential()
        body.add(nn.Dense(3, in_units=3), plain)
        net.add(body, nn.Dense(3, in_units=3))
        net.initialize()
        trainer = MultiLRTrainer([net, (body, 0)], "sgd")
        assert plain._kwargs["use_global_stats"]
        trainer.set_lr_mult({body: 1})
        assert not plain._kwargs["use_global_stats"]

    @pytest.mark.parametrize(
        "layer", [nn.BatchNorm, nn.BatchNormReLU, lambda **k: contrib.nn.SyncBatchNorm(num_devices=1, **k)]
    )
    def test_every_kind(self, layer):
        block = layer(in_channels=2)
        block.initialize()
        freeze(block)
        assert block._kwargs["use_global_stats"]
        unfreeze(block)
        assert not block._kwargs["use_global_stats"]

    @pytest.mark.parametrize("first", ["trainer", "freeze"])
    def test_the_cure_that_the_warning_names_is_one(self, first):
        """Parameters frozen without their Block, then the Block named: nothing is left to freeze but statistics."""
        net = build("mobilenetv2_0.25")
        params = net.features.collect_params()
        with pytest.warns(UserWarning, match="Name the Block") as caught:
            freeze(params) if first == "freeze" else MultiLRTrainer([net.collect_params(), (params, 0)], "sgd")
        assert all(warning.filename == __file__ for warning in caught)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            MultiLRTrainer([net, (net.features, 0)] if first == "trainer" else net, "sgd")
        x, _ = data()
        assert close(*both_modes(net.features, x))

    def test_statistics_of_a_symbolblock_are_no_weights(self):
        data_, names = mx.sym.var("data"), ("gamma", "beta", "bn_mean", "bn_variance")
        symbol = mx.sym.BatchNorm(data_, *map(mx.sym.var, names), fix_gamma=False)
        block = SymbolBlock(symbol, data_)
        block.initialize()
        trainer = MultiLRTrainer([(block, 0.5)], "sgd", {"learning_rate": 0.1})
        x, _ = data(4)
        with autograd.record():
            value = (block(x) ** 2).sum()
        value.backward()
        trainer.step(1)
        requests = {param.name: param.grad_req for param in block.collect_params().values()}
        assert requests == {"gamma": "write", "beta": "write", "bn_mean": "null", "bn_variance": "null"}

    def test_outputs_agree_before_deferred_initialization_too(self):
        net = nn.HybridSequential()
        net.add(nn.Conv2D(2, 3), nn.BatchNorm(), nn.Dense(3))
        net.initialize(mx.init.Xavier())
        net.hybridize()
        trainer = MultiLRTrainer([net, (net[:2], 0)], "sgd", {"learning_rate": 0.1})
        x, y = data(8)
        with autograd.record():
            value = loss.SoftmaxCrossEntropyLoss()(net(x), y)
        value.backward()
        before = snapshot(net)
        trainer.step(4)
        assert weights(moved(before, snapshot(net))) == set(net[2].collect_params().keys())
        assert net[1].running_mean.data().asnumpy().max() == 0


class TestFunctions:
    @pytest.mark.parametrize("request_", ["write", "add"])
    def test_unfreeze_gives_back_what_was_there(self, request_):
        layer = nn.Dense(2, in_units=2)
        layer.weight.grad_req = request_
        layer.weight.lr_mult = 3
        layer.bias.grad_req = "null"
        freeze(layer)
        freeze(layer)
        assert (layer.weight.lr_mult, layer.weight.grad_req, layer.bias.lr_mult) == (0, "null", 0)
        unfreeze(layer)
        assert (layer.weight.lr_mult, layer.weight.grad_req) == (3, request_)
        assert (layer.bias.lr_mult, layer.bias.grad_req) == (1, "null")

    def test_unfreeze_of_what_was_never_frozen_changes_nothing(self):
        layer = nn.Dense(2, in_units=2)
        layer.weight.grad_req = "add"
        layer.weight.lr_mult = 3
        unfreeze(layer)
        assert (layer.weight.lr_mult, layer.weight.grad_req) == (3, "add")

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (lambda net: ("net",), TypeError, "freeze: 'net' is not a target"),
            (lambda net: (nn.Flatten(),), ValueError, "holds no parameter that could train"),
            (lambda net: (net, 3), TypeError, "within must be the Block around"),
            (lambda net: (net, nn.Dense(1, in_units=1)), ValueError, "does not contain Dense"),
        ],
    )
    def test_misuse(self, arguments, error, message):
        net = nn.Dense(1, in_units=1)
        with pytest.raises(error, match=message):
            freeze(*arguments(net))
        assert (net.weight.lr_mult, net.weight.grad_req) == (1, "write")

    def test_trainer_keeps_what_was_frozen_before_it(self):
        net = build("mobilenetv2_0.25")
        freeze(net.features, within=net)
        trainer = MultiLRTrainer([net, (net.output, 2)], "sgd", {"learning_rate": 0.1})
        x, y = data()
        net(x)
        before = snapshot(net)
        step(net, trainer, x, y)
        assert moved(before, snapshot(net)) == set(net.output.collect_params().keys())

    def test_in_the_middle_of_training_with_a_trainer(self):
        net = build("mobilenetv2_0.25")
        net.hybridize()
        x, y = data()
        trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.01, "momentum": 0.9})
        step(net, trainer, x, y)
        freeze(net.features, within=net)
        before = snapshot(net)
        step(net, trainer, x, y)
        assert moved(before, snapshot(net)) == set(net.output.collect_params().keys())
        unfreeze(net.features, within=net)
        step(net, trainer, x, y)
        assert set(moved(before, snapshot(net))) == set(before)

    def test_a_copy_of_a_frozen_network_can_be_unfrozen(self):
        net = nn.Sequential()
        net.add(nn.Dense(2, in_units=2), nn.BatchNorm(in_channels=2))
        net.initialize()
        freeze(net)
        twin = copy.deepcopy(net)
        unfreeze(twin)
        assert twin[0].weight.grad_req == "write"
        assert not twin[1]._kwargs["use_global_stats"]
        assert net[1]._kwargs["use_global_stats"]


class TestOldTraces:
    """Promise 8: a frozen layer in a graph that goes on as it was is not passed over in silence."""

    def part_of_a_traced_network(self):
        net = build("mobilenetv2_0.25")
        net.hybridize()
        x, y = data()
        with autograd.record():
            net(x)
        return net, x, y

    def test_warns_at_the_first_step_where_the_network_is_not_known(self):
        net, x, y = self.part_of_a_traced_network()
        trainer = MultiLRTrainer([(net.features, 0), net.output], "sgd", {"learning_rate": 0.1})
        with pytest.warns(UserWarning, match=r"features'? was frozen.*net.hybridize\(\).*MultiLRTrainer\(\[net"):
            step(net, trainer, x, y)
        net.hybridize()
        before = statistics(net)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step(net, trainer, x, y)
        assert not moved(before, statistics(net))

    @pytest.mark.parametrize("spec", ["whole network named", "hybridized again", "not hybridized yet"])
    def test_does_not_warn_where_all_is_well(self, spec):
        net, x, y = self.part_of_a_traced_network()
        if spec == "not hybridized yet":
            net = build("mobilenetv2_0.25")
            net(x)
        entries = [(net.features, 0), net.output]
        trainer = MultiLRTrainer([net, *entries] if spec == "whole network named" else entries, "sgd")
        if spec != "whole network named":
            net.hybridize()
        before = statistics(net)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step(net, trainer, x, y)
            step(net, trainer, x, y)
        assert not moved(before, statistics(net))

    @pytest.mark.parametrize("reduce_first", [False, True])
    def test_does_not_warn_for_a_step_whose_forward_was_before_the_change(self, reduce_first):
        net, x, y = self.part_of_a_traced_network()
        trainer = MultiLRTrainer(net, "sgd")
        with autograd.record():
            value = loss.SoftmaxCrossEntropyLoss()(net(x), y)
        value.backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trainer.set_lr_mult({net.features: 0})
            before = snapshot(net.features)
            if reduce_first:
                trainer.allreduce_grads()
                trainer.update(4)
            else:
                trainer.step(4)
            step(net, trainer, x, y)
        assert not moved(before, snapshot(net.features))

    def test_warns_for_a_slice_of_a_network(self):
        """A slice is a Block that nobody hybridizes and nobody calls."""
        net, x, y = self.part_of_a_traced_network()
        trainer = MultiLRTrainer([(net.features[:5], 0), net.features[5:], net.output], "sgd")
        with pytest.warns(UserWarning, match="traced before"):
            step(net, trainer, x, y)

    def test_does_not_warn_for_a_slice_of_a_network_that_is_known(self):
        net, x, y = self.part_of_a_traced_network()
        trainer = MultiLRTrainer([net, (net.features[:5], 0)], "sgd")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step(net, trainer, x, y)
            step(net, trainer, x, y)
        assert not any(
            watch.block for watch in stale_traces._watches if watch.params <= set(net.collect_params().values())
        )

    def test_warns_where_the_whole_network_sits_in_another_that_was_traced(self):
        net = build("mobilenetv2_0.25")
        outer = nn.HybridSequential()
        outer.add(net)
        outer.hybridize()
        x, y = data()
        with autograd.record():
            outer(x)
        trainer = MultiLRTrainer([net, (net.features, 0)], "sgd")
        with pytest.warns(UserWarning, match="traced before"):
            step(outer, trainer, x, y)

    def test_freeze_without_a_trainer_is_noticed_by_the_trainer(self):
        net, x, y = self.part_of_a_traced_network()
        trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.1})
        step(net, trainer, x, y)
        freeze(net.features)
        with pytest.warns(UserWarning, match="traced before"):
            step(net, trainer, x, y)


@pytest.mark.parametrize("mode", HYBRIDIZE)
def test_two_contexts(mode):
    net = build("mobilenetv2_0.25")
    net.collect_params().reset_ctx(CONTEXTS)
    if HYBRIDIZE[mode] is not None:
        net.hybridize(**HYBRIDIZE[mode])
    x, y = data(64)
    parts = list(zip(mx.gluon.utils.split_and_load(x, CONTEXTS), mx.gluon.utils.split_and_load(y, CONTEXTS)))
    trainer = MultiLRTrainer([net, (net.output, 2)], "sgd", {"learning_rate": 0.1, "momentum": 0.9})

    def one():
        with autograd.record():
            losses = [loss.SoftmaxCrossEntropyLoss()(net(a), b) for a, b in parts]
        autograd.backward(losses)
        trainer.step(4)

    one()
    trainer.set_lr_mult({net.features: 0})
    before = {name: [array.asnumpy() for array in param.list_data()] for name, param in net.collect_params().items()}
    one()
    for name, param in net.collect_params().items():
        for was, now in zip(before[name], param.list_data()):
            assert (was == now.asnumpy()).all() == name.startswith(net.features.prefix), name
    trainer.set_lr_mult({net.features: 1})
    one()
    assert set(moved({n: a[0] for n, a in before.items()}, snapshot(net))) == set(before)


@pytest.mark.parametrize("turn", ["freeze", "unfreeze"])
def test_a_freeze_that_is_interrupted_can_be_said_again(turn, monkeypatch):
    net = build("mobilenetv2_0.25")
    net.hybridize()
    x, y = data()
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.01})
    if turn == "unfreeze":
        trainer.set_lr_mult({net.features: 0})
    step(net, trainer, x, y)

    def interrupted(block):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batchnorm._mxnet, "forget_trace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.set_lr_mult({net.features: float(turn == "unfreeze")})
    trainer.set_lr_mult({net.features: float(turn == "unfreeze")})
    before = statistics(net)
    step(net, trainer, x, y)
    assert bool(moved(before, statistics(net))) == (turn == "unfreeze")
