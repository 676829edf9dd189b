"""N steps make one update with the sum of their gradients, whatever happens between them."""

import copy
import pickle
import sys

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from mxnet.gluon import Trainer, nn

from fused_support import backward_pass, parameters
from multitrainer import MultiLRTrainer, _mxnet
from multitrainer.gradients import accumulation
from support import CONTEXTS, Overflow, backward, batches, bits, close, mlp, moved, same, snapshot, train

OPTIMIZERS = [("sgd", {"learning_rate": 0.1, "momentum": 0.9, "wd": 1e-3}), ("adam", {"learning_rate": 0.01})]
FIRST, SECOND = {"net_dense0_weight", "net_dense0_bias"}, {"net_dense1_weight", "net_dense1_bias"}


def build(steps=4, ctx=None, spec=lambda net: net, optimizer="sgd", params=None, **options):
    net = mlp(ctx, batchnorm=False)
    return net, MultiLRTrainer(spec(net), optimizer, params or {"learning_rate": 0.1}, accumulate=steps, **options)


def in_parts(data, *sizes):
    """Cut every batch into parts of these sizes."""
    ends = np.cumsum(sizes)
    return [(x[end - size : end], y[end - size : end]) for x, y in data for end, size in zip(ends, sizes)]


def gradient(net, x, y):
    """Return the gradients of a batch by name, and change nothing else."""
    twin = mlp(batchnorm=False)
    for param, other in zip(net.collect_params().values(), twin.collect_params().values()):
        other.set_data(param.data())
    backward(twin, x, y)
    return {name: param.grad().asnumpy() for name, param in twin.collect_params().items()}


class StockWithSums:
    """Gives stock Trainer the sum of the gradients that it has at every few steps."""

    def __init__(self, net, steps, optimizer="sgd", params=None, **options):
        self.params, self.steps = net.collect_params(), steps
        self.trainer = Trainer(self.params, optimizer, params or {"learning_rate": 0.1}, **options)
        self.sums, self.sizes = {}, []

    def step(self, size):
        self.sizes.append(size)
        for name, param in self.params.items():
            grads = param.list_grad()
            before = self.sums.get(name)
            self.sums[name] = [grad.copy() if before is None else before[i] + grad for i, grad in enumerate(grads)]
        if len(self.sizes) == self.steps:
            for name, param in self.params.items():
                for array, grad in zip(self.sums[name], param.list_grad()):
                    array.copyto(grad)
            self.trainer.step(sum(self.sizes))
            self.sums, self.sizes = {}, []


class TestOneUpdateOfManySteps:
    @pytest.mark.parametrize("ctx", [None, CONTEXTS], ids=["one context", "two contexts"])
    @pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True}], ids=str)
    @pytest.mark.parametrize(("optimizer", "params"), OPTIMIZERS, ids=["sgd", "adam"])
    def test_four_batches_of_eight_equal_one_of_32(self, optimizer, params, hybridize, ctx):
        def run(parts, steps):
            scheduler = mx.lr_scheduler.FactorScheduler(2, 0.5, base_lr=params["learning_rate"])
            options = {**params, "lr_scheduler": scheduler}
            net, trainer = build(
                steps, ctx, lambda net: [net, (net[0], lambda num_update: 1 / num_update)], optimizer, options
            )
            if hybridize is not None:
                net.hybridize(**hybridize)
            train(net, trainer, in_parts(batches(5, 32), *parts), ctx)
            assert trainer.optimizer.num_update == 5
            return snapshot(net), trainer.learning_rates

        (one, rates), (four, same_rates) = run([32], 1), run([8] * 4, 4)
        assert rates == same_rates
        assert all(close(four[name], one[name]) for name in one)

    @pytest.mark.parametrize("ctx", [None, CONTEXTS], ids=["one context", "two contexts"])
    @pytest.mark.parametrize("kvstore", [None, "local", "device"])
    @pytest.mark.parametrize(("optimizer", "params"), OPTIMIZERS, ids=["sgd", "adam"])
    def test_as_stock_with_the_sum_in_every_bit(self, optimizer, params, kvstore, ctx):
        data = in_parts(batches(3, 24), 12, 2, 10)
        net, trainer = build(3, ctx, optimizer=optimizer, params=params, kvstore=kvstore)
        ours = train(net, trainer, data, ctx)
        net = mlp(ctx, batchnorm=False)
        stock = StockWithSums(net, 3, optimizer, params, kvstore=kvstore)
        assert same(ours, train(net, stock, data, ctx))

    @pytest.mark.parametrize("kvstore", ["local", "device"])
    def test_a_kvstore_that_updates(self, kvstore):
        data, options = batches(6), {"kvstore": kvstore, "update_on_kvstore": True}
        net, trainer = build(3, CONTEXTS, **options)
        ours = train(net, trainer, data, CONTEXTS)
        net = mlp(CONTEXTS, batchnorm=False)
        assert same(ours, train(net, StockWithSums(net, 3, **options), data, CONTEXTS))
        with pytest.raises(UserWarning, match="has not been updated by backward"):
            trainer.step(4)  # or it would collect the sum of the last update

    def test_only_the_last_step_of_a_cycle_updates(self):
        net, trainer = build(3)
        before, counts = snapshot(net), []
        for number, (x, y) in enumerate(batches(6)):
            if number == 3:
                before = snapshot(net)
            backward(net, x, y)
            trainer.step(4)
            assert bool(moved(before, snapshot(net))) == (number % 3 == 2)
            counts.append((trainer.accumulated, trainer.optimizer.num_update))
        assert counts == [(1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 2)]
        assert not trainer._accumulation.collected.gradients  # the memory is free between updates

    def test_one_step_is_as_under_stock(self):
        net, trainer = build(1, params={"learning_rate": 0.1, "momentum": 0.9})
        ours = train(net, trainer, batches())
        net = mlp(batchnorm=False)
        stock = Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1, "momentum": 0.9})
        assert same(ours, train(net, stock, batches()))
        assert trainer.accumulated == 0

    def test_mean_losses_and_a_batch_size_of_1_average(self):
        net, trainer = build(2)
        data = batches(2)
        expected = [gradient(net, x, y) for x, y in data]
        before = snapshot(net)
        for x, y in data:
            with autograd.record():
                loss = gluon.loss.L2Loss()(net(x), y).mean()
            loss.backward()
            trainer.step(1)
        for name, weight in snapshot(net).items():
            mean = (expected[0][name] + expected[1][name]) / 4 / 2
            assert close(weight - before[name], -0.1 * mean)

    def test_several_backward_passes_before_each_step(self):
        """With grad_req 'add', a step takes what the gradients hold; they are set to 0 after every step."""
        data = batches(8, 2)

        def run(steps, passes, trainer_class, **options):
            net = mlp(batchnorm=False)
            net.collect_params().setattr("grad_req", "add")
            trainer = trainer_class(net.collect_params(), "adam", **options)
            for start in range(0, 8, passes):
                net.collect_params().zero_grad()
                for x, y in data[start : start + passes]:
                    backward(net, x, y)
                trainer.step(2 * passes)
            return snapshot(net)

        ours, stock = run(2, 2, MultiLRTrainer, accumulate=2), run(1, 4, Trainer)
        assert all(close(ours[name], stock[name]) for name in stock)

    @pytest.mark.parametrize("ctx", [CONTEXTS[:1], CONTEXTS], ids=["one context", "two contexts"])
    @pytest.mark.parametrize("layer", ["dense weight", "dense weight, kvstore updates", "sparse weight"])
    def test_sparse_gradients(self, layer, ctx):
        def run(steps):
            mx.random.seed(3)
            kind = gluon.contrib.nn.SparseEmbedding if layer == "sparse weight" else nn.Embedding
            net = kind(10, 4, **({} if layer == "sparse weight" else {"sparse_grad": True}))
            net.initialize(ctx=ctx)
            options = {"update_on_kvstore": True} if "kvstore" in layer else {}
            trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.5, "momentum": 0.9}, accumulate=steps, **options)
            for rows in ([[1, 3], [3, 4]], [[3, 9], [0, 1]]):
                for part in [rows] if steps == 1 else [[row] for row in zip(*rows)]:
                    flat = mx.nd.array([i for row in part for i in row])
                    parts = gluon.utils.split_and_load(flat, ctx)
                    with autograd.record():
                        losses = [(net(rows) ** 2).sum() for rows in parts]
                    autograd.backward(losses)
                    trainer.step(len(flat))
            rows = mx.nd.arange(10, ctx=ctx[0])
            return net(rows).asnumpy(), trainer.optimizer.num_update

        (one, made), (two, made_again) = run(1), run(2)
        assert made == made_again == 2
        assert close(two, one)

    @pytest.mark.parametrize("fast", ["0", "1"])
    def test_the_fused_update_changes_no_bit(self, fast, monkeypatch):
        monkeypatch.setenv("MULTITRAINER_FAST", fast)

        def run(kind, steps, add):
            params = parameters([(16, 3, 7, 7), (200, 513), (7,)])
            trainer = kind(params, "adam", **({"accumulate": steps} if steps > 1 else {}))
            values = np.random.RandomState(3)
            for _ in range(3):
                sums = []
                for _ in range(3):
                    backward_pass(params, values)
                    if steps > 1:
                        trainer.step(5)
                    elif not sums:
                        sums = [param.grad().copy() for param in params]
                    else:
                        sums = [a + param.grad() for a, param in zip(sums, params)]
                if add:
                    for array, param in zip(sums, params):
                        array.copyto(param.grad())
                    trainer.step(15)
            return bits([param.list_data() for param in params]), bits(trainer._updaters[0].states)

        assert run(MultiLRTrainer, 3, False) == run(Trainer, 1, True)

    def test_numpy_arrays(self):
        """Under mx.npx.set_np, Parameters hold arrays of another class."""
        net = mlp(batchnorm=False)
        expected = train(net, MultiLRTrainer(net, "adam", accumulate=2), batches(4))[-1]
        with mx.util.np_shape(True), mx.util.np_array(True):
            net = nn.Sequential(prefix="np_")
            with net.name_scope():
                net.add(nn.Dense(4, in_units=3), nn.Dense(2, in_units=4))
            net.initialize()
            first = mlp(batchnorm=False)
            for param, other in zip(net.collect_params().values(), first.collect_params().values()):
                param.set_data(other.data().as_np_ndarray())
            trainer = MultiLRTrainer(net, "adam", accumulate=2)
            for x, y in batches(4):
                with autograd.record():
                    loss = ((net(x.as_np_ndarray()) - y.as_np_ndarray()) ** 2).mean(axis=1) / 2
                loss.backward()
                trainer.step(4)
            for param, name in zip(net.collect_params().values(), expected):
                assert close(param.data().asnumpy(), expected[name])

    def test_shapes_that_the_first_forward_pass_finds(self):
        net = nn.Dense(2)
        net.initialize(mx.init.One())
        trainer = MultiLRTrainer(net, "sgd", accumulate=2)
        with pytest.raises(gluon.parameter.DeferredInitializationError):
            trainer.step(4)
        assert trainer.accumulated == 0
        train(net, trainer, batches(2))
        assert trainer.optimizer.num_update == 1

    def test_two_networks_in_turn(self):
        """As in a GAN: each backward pass gives gradients to both networks, and one of the trainers makes a step."""

        def run(make_trainer):
            nets = [mlp(prefix=prefix, batchnorm=False) for prefix in ("a_", "b_")]
            trainers = [make_trainer(net) for net in nets]
            for x, y in batches(6):
                for trainer in trainers:
                    with autograd.record():
                        loss = gluon.loss.L2Loss()(nets[0](x) * nets[1](x), y)
                    loss.backward()
                    trainer.step(4)
            return [snapshot(net) for net in nets]

        ours = run(lambda net: MultiLRTrainer(net, "adam", accumulate=3))
        assert same(ours, run(lambda net: StockWithSums(net, 3, "adam", {"learning_rate": 0.001})))


class TestStaleGradients:
    def test_noticed_at_every_step(self):
        net, trainer = build(3)
        data = batches(4)
        for number, (x, y) in enumerate(data):
            with pytest.raises(UserWarning, match=r"`net_dense0_bias` on context cpu\(0\) has not been updated"):
                trainer.step(4)
            assert trainer.accumulated == number % 3
            backward(net, x, y)
            trainer.step(4)
        assert trainer.optimizer.num_update == 1

    @pytest.mark.parametrize("without", [(0,), (2,), (0, 1), (1, 2), (0, 1, 2)])
    def test_ignored_for_a_layer_that_some_batches_do_not_use(self, without):
        net, trainer = build(3)
        before, sums = snapshot(net), {}
        for number in range(3):
            with autograd.record():
                hidden = mx.nd.ones((2, 4)) if number in without else net[0](mx.nd.ones((2, 3)))
                loss = ((number + 1) * net[1](hidden) ** 2).sum()
            loss.backward()
            for name, param in net.collect_params().items():
                if number not in without or name in SECOND:
                    sums[name] = sums.get(name, 0) + param.grad().asnumpy()
            trainer.step(2, ignore_stale_grad=True)
        for name, weight in snapshot(net).items():
            if name in sums:
                assert close(weight, before[name] - 0.1 / 6 * sums[name])
            else:
                assert (weight == before[name]).all()


class TestMultipliersThatChangeBetween:
    def collect(self, net, trainer, data, sums, names):
        for x, y in data:
            for name, array in gradient(net, x, y).items():
                if name in names:
                    sums[name] = sums.get(name, 0) + array
            backward(net, x, y)
            trainer.step(len(x))

    def check(self, net, before, sums, total, rates=None):
        for name, weight in snapshot(net).items():
            if name in sums:
                assert close(weight, before[name] - 0.1 * (rates or {}).get(name, 1) / total * sums[name])
            else:
                assert (weight == before[name]).all()

    @pytest.mark.parametrize("assign", [False, True])
    def test_a_multiplier_acts_at_the_update(self, assign):
        net, trainer = build(2)
        before, sums, data = snapshot(net), {}, batches(2)
        self.collect(net, trainer, data[:1], sums, FIRST | SECOND)
        if assign:
            net[0].collect_params().setattr("lr_mult", 0.5)
        else:
            trainer.set_lr_mult({net[0]: 0.5})
        self.collect(net, trainer, data[1:], sums, FIRST | SECOND)
        self.check(net, before, sums, 8, dict.fromkeys(FIRST, 0.5))

    @pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True, "static_shape": True}], ids=str)
    @pytest.mark.parametrize("assign", [False, True])
    @pytest.mark.parametrize("at", [1, 2, 3])
    def test_what_is_frozen_is_frozen_at_once(self, at, assign, hybridize):
        net, trainer = build(4)
        if hybridize is not None:
            net.hybridize(**hybridize)
        before, sums, data = snapshot(net), {}, batches(8)
        self.collect(net, trainer, data[:at], sums, SECOND)
        if assign:
            net[0].collect_params().setattr("lr_mult", 0)
        else:
            trainer.set_lr_mult({net[0]: 0})
        self.collect(net, trainer, data[at:4], sums, SECOND)
        self.check(net, before, sums, 16)
        before, sums = snapshot(net), {}
        self.collect(net, trainer, data[4:], sums, SECOND)
        self.check(net, before, sums, 16)

    @pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True, "static_shape": True}], ids=str)
    @pytest.mark.parametrize("at", [0, 1, 2, 3])
    def test_what_is_unfrozen_takes_part_with_the_batches_since(self, at, hybridize):
        net, trainer = build(4, spec=lambda net: [net, (net[0], 0)])
        if hybridize is not None:
            net.hybridize(**hybridize)
        before, sums, data = snapshot(net), {}, batches(4)
        self.collect(net, trainer, data[:at], sums, SECOND)
        trainer.set_lr_mult({net[0]: 1})
        self.collect(net, trainer, data[at:], sums, FIRST | SECOND)
        self.check(net, before, sums, 16)

    @pytest.mark.parametrize("assign", [False, True])
    @pytest.mark.parametrize("at", [0, 1, 2, 3])
    def test_unfrozen_between_a_backward_pass_and_its_step(self, at, assign):
        """That batch gives it no gradient; the next ones do, and must."""
        net, trainer = build(4, spec=lambda net: [net, (net[0], 0)])
        before, sums, data = snapshot(net), {}, batches(4)
        self.collect(net, trainer, data[:at], sums, SECOND)
        backward(net, *data[at])
        for name, array in gradient(net, *data[at]).items():
            if name in SECOND:
                sums[name] = sums.get(name, 0) + array
        if assign:
            net[0].collect_params().setattr("lr_mult", 1)
        else:
            trainer.set_lr_mult({net[0]: 1})
        trainer.step(4)
        self.collect(net, trainer, data[at + 1 :], sums, FIRST | SECOND)
        self.check(net, before, sums, 16)
        assert trainer.accumulated == 0
        with pytest.raises(UserWarning, match="net_dense0_bias"):
            trainer.step(4)

    def test_frozen_and_unfrozen_again_begins_from_nothing(self):
        net, trainer = build(4)
        before, sums, data = snapshot(net), {}, batches(4)
        self.collect(net, trainer, data[:1], sums, SECOND)
        trainer.set_lr_mult({net[0]: 0})
        self.collect(net, trainer, data[1:2], sums, SECOND)
        trainer.set_lr_mult({net[0]: 1})
        self.collect(net, trainer, data[2:], sums, FIRST | SECOND)
        self.check(net, before, sums, 16)

    def test_gradients_that_the_user_switches_off(self):
        net, trainer = build(2)
        before, sums, data = snapshot(net), {}, batches(2)
        self.collect(net, trainer, data[:1], sums, SECOND)
        net[0].collect_params().setattr("grad_req", "null")
        self.collect(net, trainer, data[1:], sums, SECOND)
        self.check(net, before, sums, 8)

    def test_schedules_count_updates(self):
        seen = []

        def schedule(num_update):
            seen.append(num_update)
            return float(num_update > 1)

        net, trainer = build(3, spec=lambda net: [net, (net[0], schedule)])
        before = snapshot(net)
        train(net, trainer, batches(3))
        assert moved(before, snapshot(net)) == SECOND
        train(net, trainer, batches(3))
        assert moved(before, snapshot(net)) == FIRST | SECOND
        assert sorted(set(seen)) == [1, 2, 3]

    def test_everything_frozen(self):
        net, trainer = build(2, spec=lambda net: {net: 0})
        before = snapshot(net)
        for _ in range(4):
            trainer.step(4)
        assert trainer.optimizer.num_update == 2
        assert not moved(before, snapshot(net))

    def test_a_layer_that_no_trainer_owns(self):
        net, trainer = build(3)
        backward(net, *batches(1)[0])
        trainer.step(4)
        net.register_child(nn.Dense(2, in_units=2, prefix="new_"))
        net[2].initialize()
        backward(net, *batches(1)[0])
        with pytest.raises(ValueError, match=r"new_weight.*belong to no trainer"):
            trainer.step(4)
        assert trainer.accumulated == 1


class TestHowMany:
    @pytest.mark.parametrize("steps", [True, 2.0, "4", None, np.bool_(True), np.float32(2)], ids=repr)
    def test_not_an_int(self, steps):
        net = mlp()
        owner = MultiLRTrainer(net, "sgd")
        with pytest.raises(TypeError, match=r"accumulate must be a whole number of steps, 1 or more, not"):
            MultiLRTrainer(net, "sgd", accumulate=steps)
        assert net[0].weight._trainer is owner
        with pytest.raises(TypeError, match="accumulate must be a whole"):
            owner.accumulate = steps
        assert owner.accumulate == 1

    @pytest.mark.parametrize("steps", [0, -4])
    def test_not_positive(self, steps):
        with pytest.raises(ValueError, match=f"accumulate must be 1 or more, not {steps}"):
            build(steps)

    def test_keyword_only(self):
        with pytest.raises(TypeError):
            MultiLRTrainer(mlp(), "sgd", {}, "device", None, None, 4)

    def test_numpy_int(self):
        _, trainer = build(np.int64(3))
        assert (trainer.accumulate, type(trainer.accumulate)) == (3, int)

    def test_set_between_updates_only(self):
        net, trainer = build(2)
        train(net, trainer, batches(3))
        for steps in (1, 3):
            with pytest.raises(ValueError, match=f"cannot be set to {steps} now: 1 of 2 steps were collected.*flush"):
                trainer.accumulate = steps
        trainer.accumulate = 2
        train(net, trainer, batches(1))
        trainer.accumulate = 3
        train(net, trainer, batches(3))
        trainer.accumulate = 1
        train(net, trainer, batches(1))
        assert trainer.optimizer.num_update == 4

    @pytest.mark.parametrize("size", [-1, float("nan"), float("inf")])
    def test_batch_sizes_that_are_not(self, size):
        net, trainer = build(2)
        backward(net, *batches(1)[0])
        with pytest.raises(ValueError, match="batch_size must be a finite number, 0 or more, not"):
            trainer.step(size)
        assert trainer.accumulated == 0
        assert _mxnet.has_fresh_gradient(net[0].weight)

    def test_parts_of_a_step_are_refused(self):
        net, trainer = build(4, update_on_kvstore=False)
        backward(net, *batches(1)[0])
        with pytest.raises(RuntimeError, match=r"allreduce_grads\(\) cannot be called with accumulate=4"):
            trainer.allreduce_grads()
        with pytest.raises(RuntimeError, match=r"update\(\) cannot be called with accumulate=4.*Call step\(\)"):
            trainer.update(4)
        trainer.accumulate = 1
        trainer.allreduce_grads()
        trainer.update(4)


class TestFlush:
    @pytest.mark.parametrize("ctx", [None, CONTEXTS], ids=["one context", "two contexts"])
    def test_updates_with_what_was_collected(self, ctx):
        data = batches(2)
        net, trainer = build(4, ctx, params={"learning_rate": 0.1, "momentum": 0.9})
        train(net, trainer, data, ctx)
        trainer.flush()
        other = mlp(ctx, batchnorm=False)
        stock = StockWithSums(other, 2, params={"learning_rate": 0.1, "momentum": 0.9})
        expected = train(other, stock, data, ctx)[-1]
        assert not moved(expected, snapshot(net))
        assert (trainer.accumulated, trainer.optimizer.num_update) == (0, 1)

    @pytest.mark.parametrize("steps", [1, 2])
    def test_nothing_to_do(self, steps):
        net, trainer = build(steps)
        trainer.flush()
        before = train(net, trainer, batches(2))[-1]
        trainer.flush()
        assert trainer.optimizer.num_update == 2 // steps
        assert not moved(before, snapshot(net))

    def test_a_backward_pass_that_no_step_has_used(self):
        net, trainer = build(4)
        data = batches(2)
        train(net, trainer, data[:1])
        backward(net, *data[1])
        with pytest.raises(RuntimeError, match="'net_dense0_bias' is from a backward pass that no step has used"):
            trainer.flush()
        trainer.step(4)
        assert trainer.accumulated == 2

    def test_gradients_that_backward_passes_add_to(self):
        """The gradients are 0 after it, as a loop with grad_req 'add' leaves them after a step."""
        net = mlp(batchnorm=False)
        net.collect_params().setattr("grad_req", "add")
        trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.1}, accumulate=4)

        def step(size):
            trainer.step(size)
            net.collect_params().zero_grad()

        data = batches(3)
        train(net, trainer, data[:2], step=step)
        trainer.flush()
        before = snapshot(net)
        expected = gradient(net, *data[2])
        train(net, trainer, data[2:], step=step)
        trainer.flush()
        for name, weight in snapshot(net).items():
            assert close(weight - before[name], -0.1 / 4 * expected[name], 1e-4)

    @pytest.mark.parametrize("ctx", [None, CONTEXTS], ids=["one context", "two contexts"])
    def test_leaves_out_what_no_step_collected(self, ctx):
        """On two contexts a kvstore updates, with whatever the gradients hold."""
        net, trainer = build(4, ctx)
        train(net, trainer, batches(4), ctx)
        trainer.set_lr_mult({net[0].bias: 0})
        train(net, trainer, batches(1), ctx)
        backward(net, *batches(1)[0], ctx)
        trainer.set_lr_mult({net[0].bias: 1})
        trainer.step(4)
        before = snapshot(net)
        trainer.flush()
        assert moved(before, snapshot(net)) == (FIRST | SECOND) - {"net_dense0_bias"}

    def test_leaves_out_what_was_frozen_and_what_was_just_unfrozen(self):
        net, trainer = build(4, spec=lambda net: [net, (net[0], 0)])
        train(net, trainer, batches(2))
        before = snapshot(net)
        net[0].collect_params().setattr("lr_mult", 1)
        net[1].bias.lr_mult = 0
        trainer.flush()
        assert moved(before, snapshot(net)) == {"net_dense1_weight"}


class _Failing(MultiLRTrainer):
    """Its exchange fails when it is told to."""

    fails = False

    def _allreduce_grads(self):
        super()._allreduce_grads()
        if self.fails:
            raise OSError("the network is down")


class TestFailures:
    @pytest.mark.parametrize("again", [False, True], ids=["same backward pass", "another backward pass"])
    @pytest.mark.parametrize("ctx", [None, CONTEXTS], ids=["one context", "two contexts"])
    def test_a_failed_exchange_can_be_repeated(self, ctx, again):
        data = batches(3)
        net = mlp(ctx, batchnorm=False)
        trainer = _Failing(net, "sgd", {"learning_rate": 0.1, "momentum": 0.9}, accumulate=3, update_on_kvstore=False)
        train(net, trainer, data[:2], ctx)
        before = snapshot(net)
        backward(net, *data[2], ctx)
        for _ in range(2):
            trainer.fails = True
            with pytest.raises(OSError, match="down"):
                trainer.step(4)
            assert trainer.accumulated == 2
            assert not moved(before, snapshot(net))
            if again:
                backward(net, *data[2], ctx)
        trainer.fails = False
        trainer.step(4)
        expected = train(*build(3, ctx, params={"learning_rate": 0.1, "momentum": 0.9}), data, ctx)[-1]
        assert not moved(expected, snapshot(net))

    def test_a_failed_exchange_of_sparse_gradients_can_be_repeated(self):
        def run(failures):
            mx.random.seed(3)
            net = nn.Embedding(10, 4, sparse_grad=True, prefix="net_")
            net.initialize(ctx=CONTEXTS)
            trainer = _Failing(net, "sgd", {"learning_rate": 0.5}, accumulate=2, update_on_kvstore=False)
            for rows in ([[1, 3], [3, 4]], [[3, 9], [0, 1]]):
                with autograd.record():
                    losses = [(net(mx.nd.array(row, ctx=ctx)) ** 2).sum() for row, ctx in zip(rows, CONTEXTS)]
                autograd.backward(losses)
                for _ in range(failures * trainer.accumulated):
                    trainer.fails = True
                    with pytest.raises(OSError, match="down"):
                        trainer.step(4)
                trainer.fails = False
                trainer.step(4)
            return snapshot(net)

        assert not moved(run(0), run(2))

    @pytest.mark.parametrize("fails_at", [0, 2])
    def test_an_optimizer_that_fails(self, fails_at):
        """If some Parameters were updated, what was collected is not used again."""

        class Breaking(mx.optimizer.NAG):
            def update(self, index, weight, grad, state):
                if index == fails_at:
                    raise OSError("broken")
                super().update(index, weight, grad, state)

            update_multi_precision = update

        net = mlp(batchnorm=False)
        trainer = MultiLRTrainer(net, Breaking(learning_rate=0.1), accumulate=2)
        train(net, trainer, batches(1))
        backward(net, *batches(1)[0])
        own = net[0].bias.grad().copy()
        with pytest.raises(OSError, match="broken"):
            trainer.step(4)
        assert trainer.accumulated == (1 if fails_at == 0 else 0)
        if fails_at == 0:
            assert (net[0].bias.grad() == own).asnumpy().all()

    @pytest.mark.parametrize("ignore_stale_grad", [False, True])
    def test_a_step_that_is_interrupted_anywhere_counts_once_or_not_at_all(self, ignore_stale_grad):
        data, files = batches(2), {accumulation.__file__, _mxnet.parameters.__file__}

        def step(trainer, interrupt_at):
            lines = [0]

            def trace(frame, event, _):
                if frame.f_code.co_filename not in files:
                    return None
                lines[0] += event == "line"
                if lines[0] == interrupt_at:
                    sys.settrace(None)
                    raise KeyboardInterrupt
                return trace

            sys.settrace(trace)
            try:
                trainer.step(4, ignore_stale_grad)
            finally:
                sys.settrace(None)
            return lines[0]

        def run(interrupted_step, interrupt_at):
            net, trainer = build(2, params={"learning_rate": 0.1, "momentum": 0.9})
            lines = 0
            for number, (x, y) in enumerate(data):
                backward(net, x, y)
                try:
                    lines = step(trainer, interrupt_at if number == interrupted_step else -1)
                except KeyboardInterrupt:
                    if trainer.accumulated == number:  # not counted
                        trainer.step(4, ignore_stale_grad)
                if number == interrupted_step and lines:
                    last = lines
            return snapshot(net), locals().get("last", 0)

        expected, _ = run(None, -1)
        for interrupted_step in (0, 1):
            interrupts = 0
            while True:
                interrupts += 1
                result, lines = run(interrupted_step, interrupts)
                assert not moved(expected, result), (interrupted_step, interrupts)
                if lines and lines < interrupts:
                    break
            assert interrupts > 20


class TestAmp:
    def trainer(self, scaler, steps=2):
        net, trainer = build(steps)
        trainer._amp_loss_scaler, trainer._amp_original_scale = scaler, 1.0
        return net, trainer

    def scaled_backward(self, net, trainer, x, y, scale):
        trainer._scale = 1 / scale  # as amp.scale_loss does
        with autograd.record():
            loss = gluon.loss.L2Loss()(net(x), y) * scale
        loss.backward()

    def test_an_overflow_skips_the_update_and_drops_the_cycle(self):
        scaler = Overflow(at=[1])
        net, trainer = self.trainer(scaler)
        before = snapshot(net)
        train(net, trainer, batches(2))
        assert not moved(before, snapshot(net))
        assert (scaler.calls, trainer.accumulated, trainer.optimizer.num_update) == (1, 0, 0)
        with pytest.raises(UserWarning, match="has not been updated by backward"):
            trainer.step(4)
        after = train(net, trainer, batches(2, seed=8))[-1]
        assert not moved(after, train(*build(2), batches(2, seed=8))[-1])

    def test_scaled_losses(self):
        net, trainer = self.trainer(Overflow(at=[]))
        for x, y in batches(2):
            self.scaled_backward(net, trainer, x, y, 1024.0)
            trainer.step(4)
        expected = train(*build(2), batches(2))[-1]
        assert all(close(array, expected[name]) for name, array in snapshot(net).items())

    def test_gradients_at_two_scales_are_refused(self):
        """As with amp.unscale after one of the backward passes."""
        net, trainer = self.trainer(Overflow(at=[]))
        first, second = batches(2)
        self.scaled_backward(net, trainer, *first, 1024.0)
        trainer.step(4)
        self.scaled_backward(net, trainer, *second, 1024.0)
        scale, trainer._scale = trainer._scale, 1.0
        with pytest.raises(
            RuntimeError, match=r"1 steps were collected at a scale of 0.000976562, .* have 1: under AMP"
        ):
            trainer.step(4)
        trainer._scale = scale
        trainer.step(4)
        assert trainer.optimizer.num_update == 1


class TestCopies:
    @pytest.mark.parametrize("way", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
    def test_a_copy_goes_on_by_itself(self, way):
        data = batches(3)
        net, trainer = build(3, params={"learning_rate": 0.1, "momentum": 0.9})
        train(net, trainer, data[:2])
        twin, other = way((net, trainer))
        for param in twin.collect_params().values():  # MXNet does not copy gradients
            param.grad_req = "null"
            param.grad_req = "write"
        before = snapshot(net)
        copied = train(twin, other, data[2:])
        assert (other.accumulated, trainer.accumulated) == (0, 2)
        assert not moved(before, snapshot(net))
        assert same(copied, train(net, trainer, data[2:]))


class TestPartsOfANetwork:
    """A layer takes part with the batches that used it, and with nothing else."""

    CASES = ({}, {"update_on_kvstore": False})

    def build(self, **options):
        heads = [nn.Dense(1, in_units=2, use_bias=False, prefix=f"{name}_") for name in "ab"]
        for head in heads:
            head.initialize(mx.init.One(), ctx=CONTEXTS)
        return heads, MultiLRTrainer(heads, "sgd", {"learning_rate": 0.1}, accumulate=3, **options)

    def step(self, heads, trainer):
        with autograd.record():
            losses = [sum(head(mx.nd.ones((1, 2), ctx=ctx)) for head in heads).sum() for ctx in CONTEXTS]
        autograd.backward(losses)
        trainer.step(2, ignore_stale_grad=True)

    @pytest.mark.parametrize("options", CASES, ids=str)
    @pytest.mark.parametrize("flush", [False, True])
    def test_an_old_gradient_is_not_used_again(self, options, flush):
        (one, two), trainer = self.build(**options)
        for _ in range(3):
            self.step([one, two], trainer)
        before = {head: head.weight.data(CONTEXTS[0]).asnumpy() for head in (one, two)}
        for _ in range(1 if flush else 3):
            self.step([one], trainer)
        trainer.flush()
        assert (two.weight.data(CONTEXTS[0]).asnumpy() == before[two]).all()
        assert close(one.weight.data(CONTEXTS[0]).asnumpy(), before[one] - 0.1)

    @pytest.mark.parametrize("options", CASES, ids=str)
    def test_a_context_without_data_adds_nothing(self, options):
        (one, _), trainer = self.build(**options)
        for _ in range(3):
            self.step([one], trainer)
        for _ in range(3):
            with autograd.record():
                loss = one(mx.nd.full((1, 2), 4, ctx=CONTEXTS[0])).sum()
            loss.backward()
            trainer.step(1, ignore_stale_grad=True)
        for context in CONTEXTS:
            assert close(one.weight.data(context).asnumpy(), np.full((1, 2), 1 - 0.1 - 0.1 * 4))

    @pytest.mark.parametrize("assigned", [False, True])
    def test_heads_that_take_turns(self, assigned):
        """Whether a head is a child of the network at the call that updates makes no difference."""
        net = mlp(batchnorm=False)
        first, second = net[1], nn.Dense(2, in_units=4, prefix="second_")
        second.initialize()
        trainer = MultiLRTrainer([net, second], "sgd", {"learning_rate": 0.1}, accumulate=2)
        expected = {param: param.data().asnumpy() for param in trainer._params}
        for head, (x, _) in zip((first, second), batches(2)):
            if assigned:
                net._children["1"] = head
            with autograd.record():
                loss = (head(net[0](x)) ** 2).sum()
            loss.backward()
            for param in (*net[0].collect_params().values(), *head.collect_params().values()):
                expected[param] = expected[param] - 0.1 * param.grad().asnumpy() / (2 * len(x))
            trainer.step(len(x), ignore_stale_grad=True)
        for param, value in expected.items():
            assert close(param.data().asnumpy(), value)

    def test_a_step_of_batch_size_0_counts_no_example(self):
        other = mlp(batchnorm=False)
        trainer = MultiLRTrainer(other, "sgd", accumulate=2)
        backward(other, *batches(1)[0])
        trainer.step(0)
        assert trainer.accumulated == 1
        with pytest.raises(ValueError, match="batch_size must be a finite number"):
            trainer.step(float("nan"))
