"""`update_ratios` are the norm of an update over the norm of the weights before it, by group."""

import copy
import pickle

import mxnet as mx
import numpy as np
import pytest
from mxnet import gluon
from mxnet.contrib.amp.loss_scaler import LossScaler
from mxnet.gluon import nn

from fused_support import require_kernels
from gradients_support import contexts, network, norm
from multitrainer import MultiLRTrainer
from multitrainer.fused import update
from optimizer_zoo import mark_fresh
from support import CONTEXTS, backward, batches, same, snapshot, train

STORES = [None, {}, {"update_on_kvstore": True}, {"update_on_kvstore": False}, {"kvstore": "local"}]


def build(spec=lambda net: [net, (net[0], 0.1)], store=None, optimizer="sgd", **kwargs):
    net = network(store)
    return net, MultiLRTrainer(spec(net), optimizer, {"learning_rate": 0.1}, **(store or {}), **kwargs)


def measured(store=None, **kwargs):
    net, trainer = build(store=store, **kwargs)
    assert trainer.update_ratios() == {}
    return net, trainer


def expected(before, after):
    """Return the ratios of the two layers by their formula."""
    found = {}
    for group, layer in (("net", "net_dense1"), ("0", "net_dense0")):
        names = [layer + "_weight", layer + "_bias"]
        change = norm(after[name].astype(np.float64) - before[name] for name in names)
        found[group] = change / norm(before[name] for name in names)
    return found


class TestFormula:
    @pytest.mark.parametrize("store", STORES)
    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_of_every_update(self, optimizer, store):
        net, trainer = measured(store, optimizer=optimizer)
        for batch in batches():
            before = snapshot(net)
            train(net, trainer, [batch], contexts(store))
            ratios = trainer.update_ratios()
            assert ratios == pytest.approx(expected(before, snapshot(net)), rel=1e-6)
            assert trainer.update_ratios() == ratios

    def test_asked_later_it_is_still_the_last_update(self):
        net, trainer = measured()
        before = snapshot(net)
        train(net, trainer, batches(1))
        after = snapshot(net)
        backward(net, *batches(2)[1])
        for param in net.collect_params().values():
            param.set_data(param.data() * 7)
        assert trainer.update_ratios() == pytest.approx(expected(before, after), rel=1e-6)

    def test_with_clipping(self):
        net, trainer = measured(max_grad_norm=1e-3)
        before = snapshot(net)
        train(net, trainer, batches(1))
        ratios = trainer.update_ratios()
        assert ratios == pytest.approx(expected(before, snapshot(net)), rel=1e-4)  # the updates are near rounding
        assert max(ratios.values()) < 1e-4

    def test_half_precision(self):
        params = gluon.ParameterDict("half_")
        values = np.random.RandomState(1)
        param = params.get("weight", shape=(300,), dtype="float16")
        params.initialize()
        param.set_data(mx.nd.array(values.randn(300), dtype="float16"))
        trainer = MultiLRTrainer(params, "sgd", {"learning_rate": 0.1, "multi_precision": True})
        trainer.update_ratios()
        before = param.data().asnumpy()
        param.grad()[:] = mx.nd.array(values.randn(300), dtype="float16")
        mark_fresh(params)
        trainer.step(1)
        change = param.data().asnumpy().astype(np.float64) - before
        assert trainer.update_ratios() == pytest.approx({"half": norm([change]) / norm([before])}, rel=1e-3)

    @pytest.mark.parametrize("shape", [(4, 3)])
    def test_weights_of_0(self, shape):
        net = nn.Dense(2, in_units=3, prefix="net_")
        net.initialize(mx.init.Normal(1))
        trainer = MultiLRTrainer([net, (net.bias, 2)], "sgd")
        trainer.update_ratios()
        with mx.autograd.record():
            loss = net(mx.nd.ones(shape)).sum()
        loss.backward()
        trainer.step(1)
        assert trainer.update_ratios()["net_bias"] == 1
        net.bias.set_data(mx.nd.zeros(2))
        net.bias.grad()[:] = 0
        mark_fresh(net.collect_params())
        trainer.step(1)
        assert trainer.update_ratios()["net_bias"] == 0

    def test_deferred_shapes(self):
        net = nn.Dense(2, prefix="net_")
        net.initialize(mx.init.Normal(1))
        trainer = MultiLRTrainer(net, "sgd")
        trainer.update_ratios()
        x, y = batches(1)[0]
        net(x)
        before = snapshot(net)
        train(net, trainer, [(x, y)])
        after = snapshot(net)
        change = norm(after[name].astype(np.float64) - before[name] for name in before)
        assert trainer.update_ratios() == pytest.approx({"net": change / norm(before.values())}, rel=1e-6)


class TestGroups:
    def test_are_those_of_learning_rates(self):
        net, trainer = measured()
        train(net, trainer, batches(1))
        trainer.set_lr_mult({net[1].bias: 3})
        assert trainer.update_ratios().keys() == trainer.learning_rates.keys()

    def test_a_frozen_one_has_0_and_no_copies(self):
        net, trainer = measured(spec=lambda net: [net, (net[0], 0)])
        train(net, trainer, batches(1))
        ratios = trainer.update_ratios()
        assert ratios["0"] == 0
        assert ratios["net"] > 0
        assert set(trainer._measurement._both) == {net[1].weight, net[1].bias}

    def test_frozen_and_unfrozen_between_updates(self):
        net, trainer = measured()
        frozen = []
        for i, batch in enumerate(batches(3)):
            trainer.set_lr_mult({net[0]: i % 2})
            train(net, trainer, [batch])
            frozen.append(trainer.update_ratios()["0"] == 0)
        assert frozen == [True, False, True]

    def test_everything_frozen(self):
        net = network()
        trainer = MultiLRTrainer([(net, 0)], "sgd")
        trainer.update_ratios()
        trainer.step(4)
        assert trainer.update_ratios() == {"net": 0}


class TestSwitch:
    def test_off_until_asked(self):
        net, trainer = build()
        train(net, trainer, batches(1))
        assert trainer._measurement._both is None
        assert trainer.update_ratios() == {}
        assert trainer.update_ratios() == {}
        train(net, trainer, batches(1))
        assert trainer.update_ratios().keys() == {"net", "0"}

    def test_off_again(self):
        net, trainer = measured()
        train(net, trainer, batches(1))
        ratios = trainer.update_ratios()
        assert trainer.update_ratios(measure=False) == ratios
        assert trainer._measurement._both is None
        train(net, trainer, batches(1))
        assert trainer._measurement._both is None
        assert trainer.update_ratios(measure=False) == {}
        assert trainer.update_ratios() == {}

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
    def test_copies_go_on(self, way):
        net, trainer = measured()
        train(net, trainer, batches(1))
        twin, other = way((net, trainer))
        assert other.update_ratios() == trainer.update_ratios()
        twin.collect_params().setattr("grad_req", "null")  # MXNet does not copy gradients
        twin.collect_params().setattr("grad_req", "write")
        data = batches(2)[1:]
        train(net, trainer, data)
        train(twin, other, data)
        assert other.update_ratios() == trainer.update_ratios()


class TestBits:
    @pytest.mark.parametrize("store", STORES)
    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_stay_the_same(self, optimizer, store):
        def history(on):
            net, trainer = build(store=store, optimizer=optimizer)
            if on:
                trainer.update_ratios()
            return train(net, trainer, batches(), contexts(store))

        assert same(history(True), history(False))

    @pytest.mark.parametrize("optimizer", ["sgd", "nag", "adam"])
    def test_stay_the_same_under_the_fused_update(self, optimizer, monkeypatch):
        require_kernels()

        def history(on, fast):
            monkeypatch.setenv(update.ENVIRONMENT_SWITCH, fast)
            net, trainer = build(optimizer=optimizer)
            ratios = []

            def step(batch_size):
                if on:
                    trainer.update_ratios()
                trainer.step(batch_size)
                if on:
                    ratios.append(trainer.update_ratios())

            found = train(net, trainer, batches(), step=step)
            fused = any(each._prepared and each._prepared.operation for each in trainer._fused._updates)
            assert fused == (fast == "1")
            return found, ratios

        expected = history(False, "0")[0]
        (fused, ratios), (plain, others) = history(True, "1"), history(True, "0")
        assert same(fused, expected)
        assert same(plain, expected)
        assert ratios == others


class TestFailures:
    def test_an_update_that_fails_is_not_the_last_one(self):
        net, trainer = measured()
        train(net, trainer, batches(1))
        before = trainer.update_ratios()
        with pytest.raises(UserWarning, match="has not been updated"):
            trainer.step(4)
        assert trainer.update_ratios() == before
        weights = snapshot(net)
        train(net, trainer, batches(2)[1:])
        assert trainer.update_ratios() == pytest.approx(expected(weights, snapshot(net)), rel=1e-6)

    def test_an_update_that_amp_skips_changed_nothing(self):
        net, trainer = measured()
        trainer._amp_loss_scaler = LossScaler()
        backward(net, *batches(1)[0])
        net[0].weight.grad()[0, 0] = np.inf
        trainer.step(4)
        assert trainer.update_ratios() == {"net": 0, "0": 0}

    def test_sparse_weights(self):
        params = gluon.ParameterDict()
        params.get("sparse", shape=(4, 2), stype="row_sparse", grad_stype="row_sparse")
        params.initialize(ctx=CONTEXTS)
        trainer = MultiLRTrainer(params, "sgd")
        with pytest.raises(ValueError, match=r"row_sparse ones in the kvstore\. Use dense weights"):
            trainer.update_ratios()
        assert trainer.update_ratios(measure=False) == {}
