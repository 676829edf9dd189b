"""BatchNorm layers of frozen Blocks use their running statistics, and leave them as they are."""

import copy
import warnings

import mxnet as mx
import pytest
from gluoncv import model_zoo
from mxnet import autograd
from mxnet.gluon import SymbolBlock, contrib, loss, nn

from freezing_support import HYBRIDIZE, build_gluoncv, image_batch, outputs_in_both_modes, statistics, train_step
from multitrainer import MultiLRTrainer, freeze, unfreeze
from multitrainer.freezing import batchnorm
from multitrainer.freezing.freezer import freeze_parameter
from support import backward, batches, close, mlp, moved, snapshot, weights


def batchnorms(net):
    found = []
    net.apply(lambda block: found.append(block) if isinstance(block, nn.BatchNorm) else None)
    return found


class TestBatchNorm:
    def test_a_layer_whose_gamma_trains_keeps_batch_statistics(self):
        net = build_gluoncv("mobilenetv2_0.25")
        gammas = net.features.collect_params(".*gamma")
        trainer = MultiLRTrainer([net, (net.features, 0), (gammas, 1)], "sgd", {"learning_rate": 0.1})
        x, y = image_batch()
        net(x)
        before = snapshot(net)
        train_step(net, trainer, x, y)
        changed = moved(before, snapshot(net))
        assert set(gammas.keys()) <= changed
        assert set(statistics(net)) <= changed
        assert not any(layer._kwargs["use_global_stats"] for layer in batchnorms(net))

    def test_a_layer_that_used_running_statistics_before_still_does_afterwards(self):
        layer = nn.BatchNorm(in_channels=2, use_global_stats=True)
        layer.initialize()
        freeze(layer)
        unfreeze(layer)
        assert layer._kwargs["use_global_stats"]

    def test_a_layer_without_parameters_follows_the_block_around_it(self):
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

    @pytest.mark.parametrize("later", [False, True], ids=["constructor", "add"])
    def test_a_layer_without_parameters_follows_the_group_that_it_is_in(self, later):
        """The other layers of its Block are in another group, which trains."""
        net = nn.HybridSequential(prefix="net_")
        with net.name_scope():
            plain = nn.BatchNorm(center=False, scale=False, in_channels=3)
            last = nn.Dense(3, in_units=3)
            net.add(nn.Dense(3, in_units=3), *([] if later else [plain, last]))
        last.initialize(mx.init.Xavier())
        plain.initialize()
        net[0].initialize(mx.init.Xavier())
        net.hybridize()
        trainer = MultiLRTrainer([net, *([] if later else [([plain, last], 0)])], "sgd", {"learning_rate": 0.1})
        if later:
            net.add(plain, last)
            trainer.add([([plain, last], 0)])
        (x, y), *_ = batches(columns=3)
        for multiplier, expected in ((None, set()), (1, {"running_mean", "running_var"}), (0, set())):
            if multiplier is not None:
                trainer.set_lr_mult({last: multiplier})
            before = snapshot(plain)
            backward(net, x, y)
            trainer.step(4)
            assert {name[len(plain.prefix) :] for name in moved(before, snapshot(plain))} == expected
            assert close(*outputs_in_both_modes(plain, x)) == (not expected)

    def test_a_layer_without_parameters_stays_frozen_while_a_later_entry_trains_a_part(self):
        net = nn.HybridSequential()
        net.add(nn.BatchNorm(center=False, scale=False, in_channels=3), nn.Dense(3, in_units=3), nn.Dense(3))
        net.initialize()
        trainer = MultiLRTrainer([(net, 0), (net[2], 1)], "sgd")
        assert net[0]._kwargs["use_global_stats"]
        trainer.set_lr_mult({net: 1})
        assert not net[0]._kwargs["use_global_stats"]
        trainer.set_lr_mult({net: 0})
        assert net[0]._kwargs["use_global_stats"]

    def test_a_layer_without_parameters_alone_in_a_group_is_refused_with_the_cure(self):
        layer = nn.BatchNorm(center=False, scale=False, in_channels=3)
        with pytest.raises(ValueError, match=r"as in \(\[batchnorm, layer\], 0\).*use_global_stats=True"):
            MultiLRTrainer([nn.Dense(3, in_units=3), (layer, 0)], "sgd")

    @pytest.mark.parametrize(
        "layer", [nn.BatchNorm, nn.BatchNormReLU, lambda **k: contrib.nn.SyncBatchNorm(num_devices=1, **k)]
    )
    def test_every_kind_of_layer(self, layer):
        block = layer(in_channels=2)
        block.initialize()
        freeze(block)
        assert block._kwargs["use_global_stats"]
        unfreeze(block)
        assert not block._kwargs["use_global_stats"]

    @pytest.mark.parametrize("first", ["trainer", "freeze"])
    def test_the_advice_in_the_warning_works(self, first):
        """First only Parameters are frozen, then their Block: only the statistics are left to freeze."""
        net = build_gluoncv("mobilenetv2_0.25")
        params = net.features.collect_params()
        with pytest.warns(UserWarning, match="Name the Block") as caught:
            freeze(params) if first == "freeze" else MultiLRTrainer([net.collect_params(), (params, 0)], "sgd")
        assert all(warning.filename == __file__ for warning in caught)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            MultiLRTrainer([net, (net.features, 0)] if first == "trainer" else net, "sgd")
        x, _ = image_batch()
        assert close(*outputs_in_both_modes(net.features, x))

    def test_statistics_of_a_symbolblock_are_not_trained(self):
        data_, names = mx.sym.var("data"), ("gamma", "beta", "bn_mean", "bn_variance")
        symbol = mx.sym.BatchNorm(data_, *map(mx.sym.var, names), fix_gamma=False)
        block = SymbolBlock(symbol, data_)
        block.initialize()
        trainer = MultiLRTrainer([(block, 0.5)], "sgd", {"learning_rate": 0.1})
        x, _ = image_batch(4)
        with autograd.record():
            value = (block(x) ** 2).sum()
        value.backward()
        trainer.step(1)
        requests = {param.name: param.grad_req for param in block.collect_params().values()}
        assert requests == {"gamma": "write", "beta": "write", "bn_mean": "null", "bn_variance": "null"}

    def test_statistics_stay_if_frozen_before_deferred_initialization(self):
        net = nn.HybridSequential()
        net.add(nn.Conv2D(2, 3), nn.BatchNorm(), nn.Dense(3))
        net.initialize(mx.init.Xavier())
        net.hybridize()
        trainer = MultiLRTrainer([net, (net[:2], 0)], "sgd", {"learning_rate": 0.1})
        x, y = image_batch(8)
        with autograd.record():
            value = loss.SoftmaxCrossEntropyLoss()(net(x), y)
        value.backward()
        before = snapshot(net)
        trainer.step(4)
        assert weights(moved(before, snapshot(net))) == set(net[2].collect_params().keys())
        assert net[1].running_mean.data().asnumpy().max() == 0


class TestHoldStatistics:
    def frozen_layers(self, net):
        return [layer._kwargs["use_global_stats"] for layer in batchnorms(net)]

    def test_of_the_innermost_block_whose_parameters_are_all_frozen(self):
        net = nn.HybridSequential()
        for _ in range(2):
            body = nn.HybridSequential()
            body.add(nn.Dense(3, in_units=3), nn.BatchNorm(center=False, scale=False, in_channels=3))
            net.add(body)
        net.initialize()
        trainer = MultiLRTrainer([net, (net[0], 0)], "sgd")
        assert self.frozen_layers(net) == [True, False]
        trainer.set_lr_mult({net[1][0].weight: 0})
        assert self.frozen_layers(net) == [True, False]
        trainer.set_lr_mult({net[1][0].bias: 0})
        assert self.frozen_layers(net) == [True, True]

    def test_not_of_a_layer_around_which_nothing_trains(self):
        layer = nn.BatchNorm(center=False, scale=False, in_channels=3)
        assert batchnorm.hold_statistics([layer], bool) == set(layer.collect_params().values())
        assert not layer._kwargs["use_global_stats"]

    def test_not_of_a_layer_with_a_multiplier_of_0_that_nobody_froze(self):
        """Under a stock Trainer a multiplier of 0 alone does not freeze."""
        layer = nn.BatchNorm(in_channels=3)
        layer.collect_params().setattr("lr_mult", 0)
        batchnorm.hold_statistics([layer], bool)
        assert not layer._kwargs["use_global_stats"]

    @pytest.mark.parametrize("before", [False, True])
    def test_of_a_layer_that_an_earlier_version_pickled(self, before):
        layer = nn.BatchNorm(in_channels=3, use_global_stats=True)
        layer._multitrainer_before = before
        unfreeze(layer)
        assert layer._kwargs["use_global_stats"] is before

    def test_once_for_a_layer_that_two_blocks_hold(self):
        layer = nn.BatchNorm(in_channels=3)
        net = nn.HybridSequential()
        net.add(layer)
        other = nn.HybridSequential()
        other.add(nn.Dense(3, in_units=3), layer)
        for block in (net, other):
            block.initialize()
            block.hybridize()
            block(mx.nd.ones((2, 3)))
        freeze(layer)
        batchnorm.hold_statistics([net, other], bool)
        assert layer._kwargs["use_global_stats"]
        unfreeze(layer)
        assert not layer._kwargs["use_global_stats"]

    def test_drops_the_traces_around_the_layers_that_it_switches(self):
        net = nn.HybridSequential()
        for _ in range(2):
            body = nn.HybridSequential()
            body.add(nn.Dense(3, in_units=3), nn.BatchNorm(in_channels=3))
            net.add(body)
        net.initialize()
        net.hybridize()
        x = mx.nd.ones((2, 3))
        for block in (net, net[0], net[1]):
            block(x)
        freeze(net[0], within=net)
        assert [block._cached_op is None for block in (net, net[0], net[1])] == [True, True, False]

    @pytest.mark.parametrize("given", [False, True])
    def test_keeps_the_traces_of_a_layer_that_used_running_statistics_before(self, given):
        net = nn.HybridSequential()
        net.add(nn.Dense(3, in_units=3), nn.BatchNorm(in_channels=3, use_global_stats=given))
        net.initialize()
        net.hybridize()
        net(mx.nd.ones((2, 3)))
        for turn in (freeze, unfreeze):
            turn(net)
            assert (net._cached_op is not None) is given
            net(mx.nd.ones((2, 3)))

    def test_asks_whether_an_update_is_pending_only_if_a_layer_is_switched(self):
        asked = []
        layer = nn.BatchNorm(in_channels=3)
        layer.hybridize()
        batchnorm.hold_statistics([layer], lambda: asked.append(1))
        assert asked == []
        for param in (layer.gamma, layer.beta):
            freeze_parameter(param)
        for _ in range(2):
            batchnorm.hold_statistics([layer], lambda: asked.append(1))
        assert asked == [1]


class TestWarning:
    def test_freezing_parameters_without_their_block_warns(self):
        net = mlp()
        with pytest.warns(UserWarning, match="net_batchnorm0_running_mean.*Name the Block that holds"):
            MultiLRTrainer([(net.collect_params(), 0)], "sgd")

    def test_names_three_at_most(self):
        net = nn.HybridSequential(prefix="net_")
        with net.name_scope():
            net.add(*(nn.BatchNorm(in_channels=3) for _ in range(2)))
        names = [f"net_batchnorm{i}_running_{name}" for i in range(2) for name in ("mean", "var")]
        with pytest.warns(UserWarning, match=f"still move: {', '.join(names[:3])}, \\.\\.\\."):
            freeze(net.collect_params())
        with pytest.warns(UserWarning, match=f"still move: {', '.join(names[:2])}\\. Name"):
            freeze(net[0].collect_params())

    def test_is_about_the_layers_that_are_frozen_only(self):
        net = mlp()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            MultiLRTrainer([net.collect_params(), (net[0].collect_params(), 0)], "sgd")
            freeze(net[0].collect_params())

    def test_freezing_parameters_of_a_known_block_does_not_warn(self):
        net = mlp()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trainer = MultiLRTrainer([net, (net[:2].collect_params(), 0)], "sgd")
            trainer.set_lr_mult({"net_dense1_weight": 0})
        assert net[1]._kwargs["use_global_stats"]


class ImportedNetwork(nn.HybridSequential):
    """Dense, a body with two BatchNorms, Dense; the body is made of Blocks, or of the symbol of the same."""

    def __init__(self, as_symbol, **attributes):
        super().__init__(prefix="net_")
        mx.random.seed(3)
        body = nn.HybridSequential(prefix="body_")
        with body.name_scope():
            body.add(nn.Dense(4, in_units=4), nn.BatchNorm(in_channels=4, **attributes))
            body.add(nn.Dense(4, in_units=4), nn.BatchNorm(in_channels=4))
        body.initialize(mx.init.Xavier())
        with self.name_scope():
            self.add(nn.Dense(4, in_units=3))
            if as_symbol:
                data = mx.sym.var("data")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the type of the input is unknown
                    self.add(SymbolBlock(body(data), data, params=body.collect_params()))
            else:
                self.add(body)
            self.add(nn.Dense(2, in_units=4))
        for layer in (self[0], self[2]):
            layer.initialize(mx.init.Xavier())


class TestSymbolBlock:
    """BatchNorm operators inside a SymbolBlock are held as layers are."""

    def train(self, as_symbol, hybridize, make_spec):
        net = ImportedNetwork(as_symbol)
        if hybridize is not None:
            net.hybridize(**hybridize)
        history = []
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            trainer = MultiLRTrainer(make_spec(net), "sgd", {"learning_rate": 0.1, "momentum": 0.9})
            for lr_mult in (None, 0.5, 0):
                if lr_mult is not None:
                    trainer.set_lr_mult({net[1]: lr_mult})
                for x, y in batches(2):
                    backward(net, x, y)
                    trainer.step(4)
                    history.append((snapshot(net), net(x).asnumpy()))
        return history

    @pytest.mark.parametrize("hybridize", HYBRIDIZE.values(), ids=HYBRIDIZE)
    def test_is_frozen_and_unfrozen_like_the_network_that_it_was_made_of(self, hybridize):
        def spec(net):
            return [net, (net[1], 0)]

        blocks, symbol = (self.train(as_symbol, hybridize, spec) for as_symbol in (False, True))
        for (one, output), (other, its_output) in zip(blocks, symbol):
            assert one.keys() == other.keys()
            assert all(close(one[name], other[name]) for name in one)
            assert close(output, its_output)
        body = {name for name in symbol[0][0] if name.startswith("body_")}
        frozen, unfrozen, again = symbol[1][0], symbol[3][0], symbol[5][0]
        assert not body & moved(symbol[0][0], frozen)
        assert {name for name in body if "running" in name} <= moved(frozen, unfrozen)
        assert not body & moved(unfrozen, again)

    @pytest.mark.parametrize("hybridize", [False, True])
    def test_trains_on_what_it_predicts_with(self, hybridize):
        net = ImportedNetwork(as_symbol=True)
        if hybridize:
            net.hybridize()
        x, _ = batches(1)[0]
        assert not close(*outputs_in_both_modes(net, x))
        freeze(net[1], within=net)
        assert close(*outputs_in_both_modes(net, x))
        unfreeze(net[1], within=net)
        assert not close(*outputs_in_both_modes(net, x))

    def test_one_of_two_can_be_frozen(self):
        net = ImportedNetwork(as_symbol=True)
        second = {name: param for name, param in net[1].collect_params().items() if "norm1" in name}
        trainer = MultiLRTrainer([net, (second, 0)], "sgd", {"learning_rate": 0.1})
        before = snapshot(net)
        for x, y in batches(1):
            backward(net, x, y)
            trainer.step(4)
        changed = moved(before, snapshot(net))
        assert {"body_batchnorm0_running_mean", "body_batchnorm0_running_var"} <= changed
        assert not changed & second.keys()

    def test_an_operator_that_used_running_statistics_before_still_does_afterwards(self):
        net = ImportedNetwork(as_symbol=True, use_global_stats=True)
        freeze(net[1], within=net)
        unfreeze(net[1], within=net)
        before = snapshot(net)
        for x, y in batches(1):
            backward(net, x, y)
        changed = moved(before, snapshot(net))
        assert changed == {"body_batchnorm1_running_mean", "body_batchnorm1_running_var"}

    def test_a_copy_of_a_frozen_one_can_be_unfrozen(self):
        net = ImportedNetwork(as_symbol=True)
        freeze(net[1], within=net)
        copied = copy.deepcopy(net)
        unfreeze(copied[1], within=copied)
        x, _ = batches(1)[0]
        assert close(*outputs_in_both_modes(net, x))
        assert not close(*outputs_in_both_modes(copied, x))

    @pytest.mark.slow
    def test_the_features_of_an_ssd(self):
        net = model_zoo.get_model("ssd_300_mobilenet0.25_voc", pretrained_base=False)
        net.initialize()
        assert isinstance(net.features, SymbolBlock)
        x = mx.nd.random.normal(shape=(2, 3, 300, 300))
        net(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            trainer = MultiLRTrainer([net, (net.features, 0)], "sgd", {"learning_rate": 1e-3})
        for lr_mult, same in ((0, True), (0.1, False)):
            trainer.set_lr_mult({net.features: lr_mult})
            with autograd.train_mode():
                trained = [each.asnumpy() for each in net.features(x)]
            predicted = [each.asnumpy() for each in net.features(x)]
            assert [close(*pair) for pair in zip(trained, predicted)] == [same] * len(trained)


@pytest.mark.parametrize("turn", ["freeze", "unfreeze"])
def test_an_interrupted_call_can_be_repeated(turn, monkeypatch):
    net = build_gluoncv("mobilenetv2_0.25")
    net.hybridize()
    x, y = image_batch()
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.01})
    if turn == "unfreeze":
        trainer.set_lr_mult({net.features: 0})
    train_step(net, trainer, x, y)

    def interrupted(block):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batchnorm._mxnet, "forget_trace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.set_lr_mult({net.features: float(turn == "unfreeze")})
    trainer.set_lr_mult({net.features: float(turn == "unfreeze")})
    before = statistics(net)
    train_step(net, trainer, x, y)
    assert bool(moved(before, statistics(net))) == (turn == "unfreeze")


def test_an_interrupted_freeze_can_be_repeated(monkeypatch):
    net = mlp()

    def interrupt(layer, value):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batchnorm._mxnet, "set_use_global_stats", interrupt)
        with pytest.raises(KeyboardInterrupt):
            freeze(net[1])
    freeze(net[1])
    before = snapshot(net)
    backward(net, *batches(1)[0])
    assert not moved(before, snapshot(net))
    unfreeze(net[1])
    backward(net, *batches(1)[0])
    assert moved(before, snapshot(net)) == {"net_batchnorm0_running_mean", "net_batchnorm0_running_var"}
