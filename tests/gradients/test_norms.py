"""`grad_norms` are those of the gradients that the update used, whoever asks and when."""

import copy
import math
import pickle

import mxnet as mx
import numpy as np
import pytest
from mxnet import gluon
from mxnet.gluon import nn

from gradients_support import STORES, contexts, gradients, network, norm
from multitrainer import MultiLRTrainer
from multitrainer.gradients.norms import sum_of_squares, sum_of_squares_on_device
from optimizer_zoo import Embedder, mark_fresh
from support import CONTEXTS, backward, batches, same, train


def stepped(spec=lambda net: [net, (net[0], 0.5)], store=None, count=1, **kwargs):
    """Return a network after ``count`` steps, its trainer, and its gradients of the last one."""
    net = network(store)
    trainer = MultiLRTrainer(spec(net), "sgd", {"learning_rate": 0.1}, **(store or {}), **kwargs)
    for x, y in batches(count):
        backward(net, x, y, contexts(store))
        found = gradients(net)
        trainer.step(len(x))
    return net, trainer, found


def expected(found, batch=4):
    return {
        "net": norm(found[name] for name in ("net_dense1_weight", "net_dense1_bias")) / batch,
        "0": norm(found[name] for name in ("net_dense0_weight", "net_dense0_bias")) / batch,
    }


class TestSumOfSquares:
    @pytest.mark.parametrize("of", [sum_of_squares, sum_of_squares_on_device])
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    @pytest.mark.parametrize("shape", [(1,), (65535,), (65536,), (3, 65537), (16, 3, 7, 7)])
    def test_is_that_of_float64(self, shape, dtype, of):
        values = np.random.RandomState(1).randn(*shape).astype(dtype)
        wide = values.astype(np.float64).ravel()
        assert of(mx.nd.array(values, dtype=dtype)) == pytest.approx(float(wide @ wide), rel=1e-12)

    @pytest.mark.parametrize("of", [sum_of_squares, sum_of_squares_on_device])
    def test_neither_overflows_nor_underflows(self, of):
        assert of(mx.nd.full((4,), 1e30)) == pytest.approx(4e60)
        assert of(mx.nd.full((4,), 1e-30)) == pytest.approx(4e-60)

    @pytest.mark.parametrize("rows", [[], [0], [1, 4]])
    def test_of_a_sparse_array(self, rows):
        values = np.random.RandomState(1).randn(len(rows), 3)
        array = mx.nd.sparse.row_sparse_array((values, rows), shape=(6, 3))
        assert sum_of_squares(array) == pytest.approx(float(np.square(values).sum()), rel=1e-6)


class TestGroups:
    @pytest.mark.parametrize("max_grad_norm", [None, 1e-3, 1e3])
    @pytest.mark.parametrize("store", STORES)
    def test_each_has_the_norm_of_its_mean_gradient(self, store, max_grad_norm):
        _, trainer, found = stepped(store=store, count=2, max_grad_norm=max_grad_norm)
        assert trainer.grad_norms() == pytest.approx(expected(found), rel=1e-6)
        assert trainer.total_grad_norm() == pytest.approx(norm(found.values()) / 4, rel=1e-6)
        assert math.hypot(*trainer.grad_norms().values()) == pytest.approx(trainer.total_grad_norm(), rel=1e-12)

    @pytest.mark.parametrize("store", STORES[1:])
    def test_do_not_depend_on_the_number_of_contexts(self, store):
        for max_grad_norm in (None, 0.1):
            norms = [
                stepped(store=each, count=3, max_grad_norm=max_grad_norm)[1].grad_norms() for each in (None, store)
            ]
            assert norms[0] == pytest.approx(norms[1], rel=1e-6)

    def test_are_those_of_learning_rates(self):
        net, trainer, found = stepped()
        trainer.set_lr_mult({net[1].bias: 3})
        norms = trainer.grad_norms()
        assert norms.keys() == trainer.learning_rates.keys()
        assert len(norms) == 3
        (split,) = (value for name, value in norms.items() if "lr_mult=3" in name)
        assert split == pytest.approx(norm([found["net_dense1_bias"]]) / 4, rel=1e-6)

    def test_a_frozen_one_counts_as_0(self):
        _, trainer, found = stepped(lambda net: [net, (net[0], 0)])
        assert trainer.grad_norms() == pytest.approx({"net": norm(found.values()) / 4, "0": 0}, rel=1e-6)
        assert trainer.total_grad_norm() == trainer.grad_norms()["net"]

    def test_everything_frozen(self):
        net = network()
        trainer = MultiLRTrainer([(net, 0)], "sgd", max_grad_norm=1)
        trainer.step(4)
        assert trainer.grad_norms() == {"net": 0}
        assert trainer.total_grad_norm() == 0


class TestOnDemand:
    def test_before_the_first_update(self):
        trainer = MultiLRTrainer(network(), "sgd")
        for ask in (trainer.grad_norms, trainer.total_grad_norm):
            with pytest.raises(RuntimeError, match=r"nothing was updated yet.*after a step"):
                ask()

    def test_gradients_that_were_replaced_raise(self):
        net, trainer, _ = stepped()
        backward(net, *batches(1)[0])
        with pytest.raises(RuntimeError, match=r"'net_dense._(weight|bias)' has a new gradient.*right after the step"):
            trainer.grad_norms()

    def test_a_freeze_leaves_them(self):
        net, trainer, found = stepped()
        trainer.set_lr_mult({net[0]: 0})
        assert trainer.grad_norms() == pytest.approx(expected(found), rel=1e-6)

    def test_a_schedule_that_freezes_within_the_step_leaves_them(self):
        def schedule(num_update):
            return float(num_update == 1)

        net, trainer, found = stepped(lambda net: [net, (net[0], schedule)])
        assert net[0].weight.grad_req == "null"
        assert trainer.grad_norms() == pytest.approx(expected(found), rel=1e-6)
        backward(net, *batches(1)[0])
        trainer.step(4)
        assert trainer.grad_norms()["0"] == 0

    def test_a_copy_has_no_gradients(self):
        net, trainer, _ = stepped()
        _, twin = copy.deepcopy((net, trainer))
        with pytest.raises(RuntimeError, match="gone: this trainer is a copy"):
            twin.grad_norms()

    def test_asked_once_they_stay(self):
        net, trainer, _ = stepped()
        before = trainer.grad_norms()
        backward(net, *batches(2)[1])
        assert trainer.grad_norms() == before
        trainer.set_lr_mult({net[0]: 0})
        assert trainer.grad_norms() == before

    def test_with_clipping_they_stay(self):
        net, trainer, found = stepped(max_grad_norm=1e-3)
        backward(net, *batches(2)[1])
        net.collect_params().zero_grad()
        trainer.set_lr_mult({net[0]: 0})
        assert trainer.grad_norms() == pytest.approx(expected(found), rel=1e-6)

    def test_an_update_that_fails_is_not_the_last_one(self):
        for max_grad_norm in (None, 1e-3):
            net, trainer, found = stepped(max_grad_norm=max_grad_norm)
            before = trainer.grad_norms()
            net[1].weight.grad()[:] = 7
            with pytest.raises(UserWarning, match="has not been updated"):
                trainer.step(4)
            assert trainer.grad_norms() == before == pytest.approx(expected(found), rel=1e-6)

    def test_asking_changes_no_bit(self):
        def history(asks):
            net = network()
            trainer = MultiLRTrainer(net, "nag", {"learning_rate": 0.1, "momentum": 0.9})

            def step(batch_size):
                trainer.step(batch_size)
                if asks:
                    trainer.grad_norms()

            return train(net, trainer, batches(), step=step)

        assert same(history(True), history(False))


class TestCases:
    @pytest.mark.parametrize("max_grad_norm", [None, 1])
    def test_stale_gradients_that_are_ignored_are_left_out(self, max_grad_norm):
        net = network()
        trainer = MultiLRTrainer([net, (net[0], 0.5)], "sgd", max_grad_norm=max_grad_norm)
        x, y = batches(1)[0]
        backward(net, x, y)
        trainer.step(4)
        with mx.autograd.record():
            loss = gluon.loss.L2Loss()(net[1](mx.nd.ones((4, 4))), y)
        loss.backward()
        found = gradients(net)
        trainer.step(4, ignore_stale_grad=True)
        assert trainer.grad_norms() == pytest.approx({**expected(found), "0": 0}, rel=1e-6)

    def test_gradients_that_are_added_up(self):
        net = network()
        net.collect_params().setattr("grad_req", "add")
        trainer = MultiLRTrainer([net, (net[0], 0.5)], "sgd", max_grad_norm=1e-3)
        for x, y in batches(3):
            backward(net, x, y)
        found = gradients(net)
        trainer.step(12)
        net.collect_params().zero_grad()
        assert trainer.grad_norms() == pytest.approx(expected(found, 12), rel=1e-6)

    def test_deferred_shapes(self):
        net = nn.Dense(2, prefix="net_")
        net.initialize()
        trainer = MultiLRTrainer(net, "sgd", max_grad_norm=1e-3)
        backward(net, *batches(1)[0])
        found = gradients(net)
        trainer.step(4)
        assert trainer.total_grad_norm() == pytest.approx(norm(found.values()) / 4, rel=1e-6)

    @pytest.mark.parametrize("max_grad_norm", [None, 1e-3])
    @pytest.mark.parametrize("stores", [None, {}, {"update_on_kvstore": True}], ids=str)
    def test_sparse_gradients(self, stores, max_grad_norm):
        if stores and max_grad_norm:
            pytest.skip("refused: see the tests of clipping")
        net = Embedder()
        ctx = [mx.cpu(0)] if stores is None else CONTEXTS
        net.initialize(ctx=ctx)
        trainer = MultiLRTrainer(net, "sgd", max_grad_norm=max_grad_norm, **(stores or {}))
        parts = gluon.utils.split_and_load(mx.nd.array([[1, 3], [0, 0]]), ctx)
        with mx.autograd.record():
            losses = [(net(part) ** 2).sum() for part in parts]
        mx.autograd.backward(losses)
        found = gradients(net)
        trainer.step(2)
        assert trainer.total_grad_norm() == pytest.approx(norm(found.values()) / 2, rel=1e-6)

    def test_half_precision(self):
        params = gluon.ParameterDict("half_")
        values = np.random.RandomState(1).randn(300).astype(np.float16)
        param = params.get("weight", shape=(300,), dtype="float16")
        params.initialize()
        trainer = MultiLRTrainer(params, "sgd", {"multi_precision": True}, max_grad_norm=1)
        param.grad()[:] = mx.nd.array(values, dtype="float16")
        mark_fresh(params)
        trainer.step(1000)
        assert trainer.total_grad_norm() == pytest.approx(norm([values]) / 1000, rel=1e-12)

    def test_an_exchange_apart_from_the_update(self):
        store = {"update_on_kvstore": False}
        net = network(store)
        trainer = MultiLRTrainer([net, (net[0], 0.5)], "sgd", **store)
        backward(net, *batches(1)[0], CONTEXTS)
        found = gradients(net)
        trainer.allreduce_grads()
        trainer.update(4)
        assert trainer.grad_norms() == pytest.approx(expected(found), rel=1e-6)

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
    def test_copies(self, way):
        net, trainer, found = stepped(max_grad_norm=1e-3)
        _, twin = way((net, trainer))
        assert twin.max_grad_norm == 1e-3
        train(net, trainer, batches(2))
        assert twin.grad_norms() == pytest.approx(expected(found), rel=1e-6)


class TestAccumulation:
    """The norms are those of the last update, or are said to be gone."""

    def build(self, store=None, grad_req="write", **kwargs):
        net = network(store)
        net.collect_params().setattr("grad_req", grad_req)
        return net, MultiLRTrainer([net, (net[0], 0.5)], "sgd", accumulate=2, **(store or {}), **kwargs)

    def updated(self, net, trainer, steps=2, store=None):
        """Make one update; return its gradients, summed over the steps and contexts."""
        total = {}
        for x, y in batches(steps):
            net.collect_params().zero_grad()
            backward(net, x, y, contexts(store))
            total = {name: grad + total.get(name, 0) for name, grad in gradients(net).items()}
            trainer.step(len(x))
        return total

    @pytest.mark.parametrize("store", STORES, ids=str)
    def test_after_the_call_that_updates(self, store):
        net, trainer = self.build(store)
        found = self.updated(net, trainer, store=store)
        assert trainer.grad_norms() == pytest.approx(expected(found, 8), rel=1e-6)

    @pytest.mark.parametrize("store", STORES, ids=str)
    def test_a_call_that_collects_replaces_them(self, store):
        net, trainer = self.build(store)
        self.updated(net, trainer, steps=3, store=store)
        with pytest.raises(RuntimeError, match="gone: a later step has begun"):
            trainer.grad_norms()

    def test_what_was_read_stays(self):
        net, trainer = self.build()
        found = self.updated(net, trainer)
        norms = trainer.grad_norms()
        backward(net, *batches(1)[0])
        trainer.step(4)
        assert trainer.grad_norms() == norms == pytest.approx(expected(found, 8), rel=1e-6)

    def test_with_max_grad_norm_they_are_those_of_the_last_update(self):
        net, trainer = self.build(max_grad_norm=1e-3)
        found = self.updated(net, trainer)
        backward(net, *batches(1)[0])
        trainer.step(4)
        assert trainer.grad_norms() == pytest.approx(expected(found, 8), rel=1e-6)

    @pytest.mark.parametrize("grad_req", ["write", "add"])
    def test_after_flush(self, grad_req):
        net, trainer = self.build(grad_req=grad_req)
        found = self.updated(net, trainer, steps=1)
        trainer.flush()
        assert trainer.grad_norms() == pytest.approx(expected(found, 4), rel=1e-6)
