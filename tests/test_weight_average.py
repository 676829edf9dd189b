"""`WeightAverage` follows its formula, swaps averages in and out without a trace, and resumes bit for bit."""

import copy
import gc
import pickle
import weakref

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from mxnet.gluon import nn

from multitrainer import MultiLRTrainer, WeightAverage
from support import (
    CONTEXTS,
    Overflow,
    backward,
    batches,
    convolution,
    mlp,
    moved,
    same,
    snapshot,
    train,
    with_gradients,
)

FIRST, LAST = {"net_dense0_weight", "net_dense0_bias"}, {"net_dense1_weight", "net_dense1_bias"}


def cast_and_predict(net, _):
    net.cast("float64")
    net(batches(1)[0][0].astype("float64")).wait_to_read()


def cast_and_back(net, path):
    net.cast("float16")
    net.save_parameters(str(path))
    net.cast("float32")


def move_and_back(net, _):
    net.collect_params().reset_ctx(mx.cpu(1))
    net(batches(1)[0][0].as_in_context(mx.cpu(1))).wait_to_read()
    net.collect_params().reset_ctx(mx.cpu(0))


# What users do to a network to save or serve it, which replaces its arrays.
CHANGES = {
    "cast": cast_and_predict,
    "cast and back": cast_and_back,
    "cast parameters": lambda net, _: net.collect_params().setattr("dtype", "float64"),
    "move": lambda net, _: net.collect_params().reset_ctx(mx.cpu(1)),
    "move and back": move_and_back,
    "initialize": lambda net, _: net.initialize(force_reinit=True),
}


def trainer_of(net, spec=None, optimizer="sgd", **options):
    params = {"learning_rate": 0.1, "momentum": 0.9} if optimizer == "sgd" else {"learning_rate": 0.05}
    return MultiLRTrainer([net, *(spec or [])], optimizer, params, **options)


def averaged(net, average):
    """Return the averages by name, as the network sees them."""
    with average.applied():
        return snapshot(net)


def held(average):
    """Return the names of the Parameters that take memory."""
    return {param.name for param in average._arrays}


def all_arrays(net):
    """Return the arrays of a network on all contexts."""
    return [array.asnumpy() for param in net.collect_params().values() for array in param.list_data()]


def same_arrays(one, other):
    return all((a == b).all() for a, b in zip(one, other))


class Reference:
    """The formula, in float64, for all Parameters of a network from the beginning."""

    def __init__(self, net):
        self.net, self.n = net, 0
        self.values = self._weights()

    def _weights(self):
        values = {name: array.astype("float64") for name, array in snapshot(self.net).items()}
        return {name: array for name, array in values.items() if "running" not in name}

    def update(self, decay, warmup=False):
        self.n += 1
        decay = min(decay, (1 + self.n) / (10 + self.n)) if warmup else decay
        for name, weight in self._weights().items():
            self.values[name] = decay * self.values[name] + (1 - decay) * weight

    def assert_equals(self, average):
        found = averaged(self.net, average)
        for name, expected in self.values.items():
            assert abs(found[name] - expected).max() <= 1e-6 * abs(expected).max(), name


class TestFormula:
    @pytest.mark.parametrize("decay", [0, 0.2, 0.9, 0.999])
    @pytest.mark.parametrize("warmup", [False, True])
    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_with_freezing_and_unfreezing(self, decay, warmup, optimizer):
        net = mlp()
        trainer = trainer_of(net, [(net[0], 0)], optimizer)
        average, reference = WeightAverage(trainer, decay, warmup), Reference(net)
        changes = {15: (net[0], 1), 30: (net[2], 0), 35: (net[0].weight, 0), 45: (net[2], lambda n: 1 / n)}
        for step, batch in enumerate(batches(60)):
            if step in changes:
                trainer.set_lr_mult(dict([changes[step]]))
            train(net, trainer, [batch])
            average.update()
            reference.update(decay, warmup)
        assert average.num_updates == 60
        reference.assert_equals(average)

    @pytest.mark.parametrize("hybridize", [{}, {"static_alloc": True, "static_shape": True}])
    def test_of_a_hybridized_network(self, hybridize):
        net = mlp()
        net.hybridize(**hybridize)
        trainer = trainer_of(net)
        average, reference = WeightAverage(trainer, 0.9), Reference(net)
        for batch in batches(10):
            train(net, trainer, [batch])
            average.update()
            reference.update(0.9)
            averaged(net, average)
        reference.assert_equals(average)

    @pytest.mark.parametrize("kvstore", ["local", "device"])
    @pytest.mark.parametrize("update_on_kvstore", [None, False])
    def test_on_two_contexts(self, kvstore, update_on_kvstore):
        net = mlp(CONTEXTS, batchnorm=False)
        trainer = trainer_of(net, kvstore=kvstore, update_on_kvstore=update_on_kvstore)
        average, reference = WeightAverage(trainer, 0.9), Reference(net)
        for batch in batches(10):
            train(net, trainer, [batch], CONTEXTS)
            average.update()
            reference.update(0.9)
        reference.assert_equals(average)
        with average.applied():
            for param in net.collect_params().values():
                one, two = (array.asnumpy() for array in param.list_data())
                assert (one == two).all()

    def test_a_long_average_of_weights_that_stand_still_does_not_drift(self):
        net = mlp()
        trainer = trainer_of(net)
        average = WeightAverage(trainer, 0.999)
        train(net, trainer, batches(1))
        average.update()
        before = averaged(net, average)
        trainer.set_learning_rate(0)
        trainer.optimizer.momentum = 0
        for batch in batches(3) * 200:
            train(net, trainer, [batch])
            average.update()
        weights, after = snapshot(net), averaged(net, average)
        for name in FIRST | LAST:
            expected = weights[name] + 0.999**600 * (before[name].astype("float64") - weights[name])
            assert abs(after[name] - expected).max() <= 2e-6 * abs(expected).max()

    @pytest.mark.parametrize("decay", [0.2, 0.9])
    def test_after_a_prediction(self, decay):
        """A prediction leaves weights in a layout of MKL-DNN."""
        net = convolution()
        net.hybridize()
        trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.1})
        average, reference = WeightAverage(trainer, decay), Reference(net)
        for batch in batches(4):
            backward(net, *batch)
            net(batch[0]).wait_to_read()
            trainer.step(4)
            net(batch[0]).wait_to_read()
            average.update()
            net(batch[0]).wait_to_read()
            reference.update(decay)
        reference.assert_equals(average)

    def test_of_deferred_parameters(self):
        mx.random.seed(1)
        net = nn.HybridSequential()
        net.add(nn.Dense(4), nn.Dense(2))
        net.initialize()
        trainer = trainer_of(net)
        average = WeightAverage(trainer, 0.9)
        net(mx.nd.ones((1, 3)))
        reference = Reference(net)
        for batch in batches(5):
            train(net, trainer, [batch])
            average.update()
            reference.update(0.9)
        reference.assert_equals(average)

    def test_of_float16_weights_is_kept_in_float32(self):
        net = nn.Dense(1, use_bias=False, in_units=1, dtype="float16")
        net.initialize(mx.init.One())
        trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 2**-10})
        average = WeightAverage(trainer, 0.999)
        expected = 1.0
        for _ in range(20):
            net.weight.list_grad()[0][:] = 1
            net.weight.data()._fresh_grad = True
            trainer.step(1)
            average.update()
            expected = 0.999 * expected + 0.001 * net.weight.data().asnumpy().item()
        (array,) = average._arrays.values()
        assert array.dtype == np.float32
        assert abs(array.asnumpy().item() - expected) < 1e-7
        before = net.weight.data().asnumpy()
        with average.applied():
            assert net.weight.data().asnumpy().item() == np.float16(array.asnumpy().item())
        assert (net.weight.data().asnumpy() == before).all()

    def test_float64_and_sparse_gradients(self):
        net = nn.Embedding(5, 3, sparse_grad=True, dtype="float64")
        net.initialize()
        trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.1})
        average, reference = WeightAverage(trainer, 0.9), Reference(net)
        for step in range(5):
            with autograd.record():
                loss = (net(mx.nd.array([step, 0])) ** 2).sum()
            loss.backward()
            trainer.step(1)
            average.update()
            reference.update(0.9)
        reference.assert_equals(average)
        assert next(iter(average._arrays.values())).dtype == np.float64

    def test_of_weights_that_were_assigned_by_hand(self, tmp_path):
        net, other = mlp(), mlp()
        other.initialize(mx.init.Uniform(1), force_reinit=True)
        other.save_parameters(str(tmp_path / "net"))
        trainer = trainer_of(net)
        average, reference = WeightAverage(trainer, 0.9), Reference(net)
        for step, batch in enumerate(batches(6)):
            if step == 3:
                net.load_parameters(str(tmp_path / "net"))
            train(net, trainer, [batch])
            average.update()
            reference.update(0.9)
        reference.assert_equals(average)

    def test_begins_with_the_weights_before_the_first_update(self, tmp_path):
        net = mlp()
        average = WeightAverage(trainer_of(net), 0.9)
        net.initialize(mx.init.Uniform(1), force_reinit=True)
        reference = Reference(net)
        train(net, average._trainer, batches(1))
        average.update()
        reference.update(0.9)
        reference.assert_equals(average)


class TestMemory:
    """It holds the Parameters that were trained, and nothing else."""

    def test_is_that_of_the_trained_parameters(self):
        net = mlp()
        trainer = trainer_of(net, [(net[0], 0)])
        average = WeightAverage(trainer)
        assert held(average) == set()
        train(net, trainer, batches(2))
        average.update()
        assert held(average) == LAST | {"net_batchnorm0_gamma", "net_batchnorm0_beta"}
        trainer.set_lr_mult({net: 1})
        train(net, trainer, batches(1))
        trained = [param for param in net.collect_params().values() if "running" not in param.name]
        arrays = [value for value in vars(average).values() if isinstance(value, dict)]
        assert sum(array.size for by_param in arrays for array in by_param.values()) == sum(
            param.data().size for param in trained
        )

    def test_all_of_it_is_given_back(self):
        net = mlp()
        trainer = trainer_of(net)
        average = WeightAverage(trainer)
        train(net, trainer, batches(1))
        gone = weakref.ref(average)
        del average
        gc.collect()
        assert gone() is None
        train(net, trainer, batches(1))

    def test_grad_req_null_by_hand(self):
        net = mlp()
        net[0].collect_params().setattr("grad_req", "null")
        trainer = MultiLRTrainer(net.collect_params(), "sgd")
        average = WeightAverage(trainer)
        train(net, trainer, batches(1))
        assert not held(average) & FIRST


class TestCounting:
    """An update is averaged once, if it was made."""

    def test_a_second_call_does_nothing(self):
        net = mlp()
        trainer = trainer_of(net)
        average = WeightAverage(trainer, 0.5)
        average.update()
        assert average.num_updates == 0
        train(net, trainer, batches(1))
        average.update()
        before = averaged(net, average)
        average.update()
        assert average.num_updates == 1
        assert not moved(before, averaged(net, average))

    def test_after_another_trainer_was_built(self):
        net = mlp()
        first = trainer_of(net)
        average = WeightAverage(first, 0.5)
        train(net, first, batches(1))
        average.update()
        train(net, trainer_of(net), batches(1))
        message = r"no update since the last average.update.*another trainer was built for .*WeightAverage\(trainer\)"
        with pytest.raises(RuntimeError, match=message):
            average.update()

    def test_updates_that_amp_skips(self):
        net = mlp()
        trainer = trainer_of(net)
        average, reference = WeightAverage(trainer, 0.9), Reference(net)
        trainer._amp_loss_scaler = Overflow({2, 3})
        trainer._amp_original_scale = 1
        for step, batch in enumerate(batches(5)):
            train(net, trainer, [batch])
            average.update()
            if step not in (1, 2):
                reference.update(0.9)
        assert average.num_updates == 3
        reference.assert_equals(average)

    def test_a_step_that_fails(self):
        net = mlp()
        trainer = trainer_of(net)
        average = WeightAverage(trainer)
        with pytest.raises(UserWarning, match="has not been updated"):
            trainer.step(1)
        average.update()
        assert average.num_updates == 0

    def test_allreduce_grads_and_update(self):
        net = mlp()
        trainer = trainer_of(net, update_on_kvstore=False)
        average, reference = WeightAverage(trainer, 0.9), Reference(net)
        for x, y in batches(3):
            backward(net, x, y)
            trainer.allreduce_grads()
            trainer.update(len(x))
            average.update()
            reference.update(0.9)
        reference.assert_equals(average)

    def test_several_steps_between_calls_count_as_one(self):
        net = mlp()
        trainer = trainer_of(net)
        average, reference = WeightAverage(trainer, 0.9), Reference(net)
        for _ in range(3):
            train(net, trainer, batches(2))
            average.update()
            reference.update(0.9)
        reference.assert_equals(average)

    def test_two_trainers(self):
        one, two = mlp(prefix="one_"), mlp(prefix="two_")
        first, second = WeightAverage(trainer_of(one), 0.5), WeightAverage(trainer_of(two), 0.9)
        references = Reference(one), Reference(two)
        for batch in batches(3):
            train(one, first._trainer, [batch])
            first.update()
            second.update()
            references[0].update(0.5)
        assert second.num_updates == 0
        with first.applied():
            train(two, second._trainer, batches(1))
        second.update()
        references[0].assert_equals(first)
        assert second.num_updates == 1

    def test_two_averages_of_one_trainer(self):
        net = mlp()
        trainer = trainer_of(net)
        short, long = WeightAverage(trainer, 0.5), WeightAverage(trainer, 0.99)
        references = Reference(net), Reference(net)
        for batch in batches(5):
            train(net, trainer, [batch])
            for average, reference in zip((short, long), references):
                average.update()
                reference.update(average.decay)
        references[0].assert_equals(short)
        references[1].assert_equals(long)


class TestApplied:
    @pytest.mark.parametrize("make", [mlp, convolution])
    @pytest.mark.parametrize("fast", ["0", "1"])
    def test_leaves_no_trace_in_the_training(self, make, fast, monkeypatch):
        monkeypatch.setenv("MULTITRAINER_FAST", fast)
        histories = []
        for averages, evaluates in ((False, False), (True, False), (True, True)):
            net = make()
            net.hybridize()
            trainer = trainer_of(net)
            average = WeightAverage(trainer, 0.9) if averages else None
            history = []
            for batch in batches(6):
                history += train(net, trainer, [batch])
                if averages:
                    average.update()
                if evaluates:
                    with average.applied():
                        net(batch[0]).wait_to_read()
                    history[-1] = snapshot(net)
            histories.append(history)
        assert same(histories[0], histories[1])
        assert same(histories[0], histories[2])

    @pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True, "static_shape": True}])
    def test_the_network_predicts_with_the_averages(self, hybridize):
        net, twin = mlp(), mlp()
        if hybridize is not None:
            net.hybridize(**hybridize)
        trainer = trainer_of(net)
        average = WeightAverage(trainer, 0.9)
        (x, _), *_ = batches()
        for batch in batches():
            train(net, trainer, [batch])
            average.update()
        trained = net(x).asnumpy()
        with average.applied():
            found = net(x).asnumpy()
            for param, other in zip(net.collect_params().values(), twin.collect_params().values()):
                other.set_data(param.data())
        assert abs(found - twin(x).asnumpy()).max() < 1e-5 * abs(found).max()
        assert abs(found - trained).max() > 1e-3 * abs(found).max()
        assert (net(x).asnumpy() == trained).all()

    def test_between_backward_and_step(self):
        histories = []
        for applies in (False, True):
            net = mlp()
            trainer = trainer_of(net)
            average = WeightAverage(trainer, 0.9)
            history = train(net, trainer, batches(1))
            for x, y in batches(3):
                backward(net, x, y)
                if applies:
                    with average.applied():
                        snapshot(net)
                trainer.step(len(x))
                history.append(snapshot(net))
            histories.append(history)
        assert same(*histories)

    def test_puts_the_weights_back_after_an_exception(self):
        net = mlp(CONTEXTS, batchnorm=False)
        trainer = trainer_of(net)
        average = WeightAverage(trainer, 0.9)
        train(net, trainer, batches(), CONTEXTS)
        before = all_arrays(net)

        def stop():
            with average.applied():
                assert not same_arrays(before, all_arrays(net))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            stop()
        assert same_arrays(before, all_arrays(net))
        train(net, trainer, batches(1), CONTEXTS)

    @pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True, "static_shape": True}])
    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("pending", [False, True])
    def test_a_network_that_was_cast_moved_or_initialized_inside(self, change, hybridize, pending, tmp_path):
        def run(applies):
            net = mlp()
            if hybridize is not None:
                net.hybridize(**hybridize)
            trainer = trainer_of(net)
            average = WeightAverage(trainer, 0.9)
            history = train(net, trainer, batches(2))
            trainer.set_lr_mult({net[0]: 0})
            average.update()
            for x, y in batches(3, seed=6):
                if pending:
                    backward(net, x, y)
                if applies:
                    with average.applied():
                        CHANGES[change](net, tmp_path / "net")
                if not pending:
                    backward(net, x, y)
                trainer.step(len(x))
                average.update()
                history.append(snapshot(net))
            assert np.dtype(net[0].weight.dtype) == net[0].weight.data().dtype == np.float32
            assert net[0].weight.list_ctx() == [mx.cpu(0)]
            return [*history, averaged(net, average)]

        assert same(run(False), run(True))

    def test_two_contexts_of_a_network_that_was_moved_inside(self):
        net = mlp(CONTEXTS, batchnorm=False)
        trainer = trainer_of(net)
        average = WeightAverage(trainer, 0.9)
        train(net, trainer, batches(1), CONTEXTS)
        net[0].weight.list_data()[1][:] = 7
        before = all_arrays(net)
        with average.applied():
            net.collect_params().reset_ctx(mx.cpu(2))
        assert same_arrays(before, all_arrays(net))
        assert net[0].weight.list_ctx() == CONTEXTS
        train(net, trainer, batches(1), CONTEXTS)

    def test_a_layer_cast_and_frozen_inside(self):
        net = mlp()
        trainer = trainer_of(net)
        average = WeightAverage(trainer, 0.9)
        train(net, trainer, batches(1))
        before = snapshot(net)
        with average.applied():
            net.cast("float16")
            trainer.set_lr_mult({net[0]: 0})
        assert not moved(before, snapshot(net))
        assert net[0].weight.grad_req == "null"
        train(net, trainer, batches(1))
        assert moved(before, snapshot(net)) & (FIRST | LAST) == LAST

    def test_contexts_whose_weights_differ_get_their_own_back(self):
        net = mlp(CONTEXTS, batchnorm=False)
        trainer = trainer_of(net)
        average = WeightAverage(trainer, 0.9)
        train(net, trainer, batches(1), CONTEXTS)
        net[0].weight.list_data()[1][:] = 7
        before = all_arrays(net)
        averaged(net, average)
        assert same_arrays(before, all_arrays(net))

    @pytest.mark.parametrize(
        "call",
        ["step", "update", "average.update", "average.load", "average.applied", "other.update", "other.applied"],
    )
    def test_what_must_wait_for_its_end(self, call, tmp_path):
        net = mlp()
        trainer = trainer_of(net, update_on_kvstore=False)
        average, other = WeightAverage(trainer, 0.9), WeightAverage(trainer, 0.5)
        train(net, trainer, batches(1))
        average.save(tmp_path / "average")
        backward(net, *batches(1)[0])
        before, num_update = snapshot(net), trainer.optimizer.num_update
        calls = {
            "step": lambda: trainer.step(4),
            "update": lambda: trainer.update(4),
            "average.update": average.update,
            "average.load": lambda: average.load(tmp_path / "average"),
            "average.applied": lambda: average.applied().__enter__(),
            "other.update": other.update,
            "other.applied": lambda: other.applied().__enter__(),
        }
        with average.applied(), pytest.raises(RuntimeError, match="leave the block first"):
            calls[call]()
        assert not moved(before, snapshot(net))
        assert trainer.optimizer.num_update == num_update
        trainer.step(4)
        average.update()
        other.update()
        assert (average.num_updates, other.num_updates) == (1, 1)

    def test_weights_loaded_inside(self, tmp_path):
        """As documented: what has an average is put back, and all else stays as it was loaded."""
        net, other = mlp(), mlp()
        for param in other.collect_params().values():
            param.set_data(param.data() + 1)
        other.save_parameters(str(tmp_path / "net"))
        trainer = trainer_of(net, [(net[0], 0)])
        average = WeightAverage(trainer, 0.9)
        train(net, trainer, batches(2))
        average.update()
        before = snapshot(net)
        with average.applied():
            net.load_parameters(str(tmp_path / "net"))
        after, loaded = snapshot(net), snapshot(other)
        assert moved(before, after) == set(before) - held(average) > FIRST
        assert moved(after, loaded) == held(average) > LAST

    def test_a_layer_frozen_inside(self):
        net = mlp()
        trainer = trainer_of(net)
        average = WeightAverage(trainer, 0.9)
        train(net, trainer, batches(1))
        before = snapshot(net)
        with average.applied():
            trainer.set_lr_mult({net[0]: 0})
        assert not moved(before, snapshot(net))
        train(net, trainer, batches(1))
        assert not moved(before, snapshot(net)) & FIRST

    def test_statistics_are_those_of_the_network(self):
        net = mlp()
        trainer = trainer_of(net)
        average = WeightAverage(trainer, 0.9)
        train(net, trainer, batches())
        average.update()
        statistics = {name for name in snapshot(net) if "running" in name}
        assert len(statistics) == 2
        assert not moved(snapshot(net), averaged(net, average)) & statistics

    def test_saves_the_averaged_network(self, tmp_path):
        net, other = mlp(), mlp()
        trainer = trainer_of(net)
        average = WeightAverage(trainer, 0.9)
        train(net, trainer, batches())
        average.update()
        with average.applied():
            net.save_parameters(str(tmp_path / "net"))
        other.load_parameters(str(tmp_path / "net"))
        assert not moved(averaged(net, average), snapshot(other))

    def test_while_a_forward_pass_is_recorded(self):
        net = mlp()
        trainer = trainer_of(net)
        average = WeightAverage(trainer, 0.9)
        train(net, trainer, batches(1))
        with autograd.record():
            average.update()
            with average.applied():
                pass
            loss = net(batches(1)[0][0]).sum()
        loss.backward()
        trainer.step(4)


class TestArguments:
    @pytest.mark.parametrize("decay", [1, -0.1, 1.5, float("nan"), float("inf")])
    def test_a_decay_outside_of_its_range(self, decay):
        trainer = trainer_of(mlp())
        with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), not"):
            WeightAverage(trainer, decay)
        average = WeightAverage(trainer, 0.5)
        with pytest.raises(ValueError, match="decay must be in"):
            average.decay = decay
        assert average.decay == 0.5

    @pytest.mark.parametrize("decay", ["0.9", None, True, 1j, np.zeros(1)])
    def test_a_decay_that_is_not_a_number(self, decay):
        with pytest.raises(TypeError, match="decay must be a number, not"):
            WeightAverage(trainer_of(mlp()), decay)

    def test_a_decay_of_another_type(self):
        assert WeightAverage(trainer_of(mlp()), np.float64(0.5)).decay == 0.5

    def test_a_warmup_that_is_a_number_of_steps(self):
        with pytest.raises(TypeError, match="warmup must be True or False, not 100"):
            WeightAverage(trainer_of(mlp()), 0.9, 100)

    def test_another_trainer(self):
        net = mlp()
        with pytest.raises(TypeError, match=r"^trainer must be a MultiLRTrainer, got Trainer$"):
            WeightAverage(gluon.Trainer(net.collect_params(), "sgd"))
        with pytest.raises(TypeError, match=r"^trainer must be a MultiLRTrainer, got HybridSequential$"):
            WeightAverage(net)

    def test_row_sparse_weights(self):
        param = gluon.Parameter("embedding", shape=(4, 2), stype="row_sparse", grad_stype="row_sparse")
        param.initialize()
        trainer = MultiLRTrainer([param], "sgd")
        with pytest.raises(ValueError, match=r"embedding.*Use a dense weight"):
            WeightAverage(trainer)

    def test_a_decay_that_is_set_later(self):
        net = mlp()
        trainer = trainer_of(net)
        average, reference = WeightAverage(trainer, 0.9), Reference(net)
        for decay in (0.9, 0.5, 0.0):
            average.decay = decay
            train(net, trainer, batches(1))
            average.update()
            reference.update(decay)
        reference.assert_equals(average)
        assert not moved(snapshot(net), averaged(net, average))

    def test_repr(self):
        net = mlp()
        average = WeightAverage(trainer_of(net), warmup=True)
        train(net, average._trainer, batches(1))
        average.update()
        assert repr(average) == "WeightAverage(decay=0.999, warmup=True, 1 updates, 6 parameters)"


class TestCopies:
    @pytest.mark.parametrize("way", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (2, 1, 0)])
    def test_go_on_alike_and_apart(self, way, order):
        net = mlp()
        trainer = trainer_of(net, [(net[0], 0)])
        average = WeightAverage(trainer, 0.9, warmup=True)
        train(net, trainer, batches(2))
        average.update()
        copied = dict(zip(order, way(tuple((net, trainer, average)[i] for i in order))))
        twin, other, again = copied[0], copied[1], copied[2]
        assert again._trainer is other
        with_gradients(twin)
        for one, two, three in ((net, trainer, average), (twin, other, again)):
            three.update()  # nothing
            two.set_lr_mult({one[0]: 1})
            train(one, two, batches(3))
            three.update()
        assert average.num_updates == again.num_updates == 2
        assert held(again) == held(average) > FIRST
        assert not moved(averaged(net, average), averaged(twin, again))
        before = averaged(net, average)
        train(twin, other, batches(1))
        again.update()
        assert not moved(before, averaged(net, average))
        assert moved(before, averaged(twin, again))

    def test_a_shallow_copy_has_arrays_of_its_own(self):
        net = mlp()
        average, reference = WeightAverage(trainer_of(net), 0.9), Reference(net)
        for step in range(4):
            if step == 2:
                other = copy.copy(average)
            train(net, average._trainer, batches(1))
            average.update()
            reference.update(0.9)
        other.update()
        reference.assert_equals(average)
        assert other.num_updates == 3

    def test_of_the_network_alone_inside_applied(self):
        net = mlp()
        trainer = trainer_of(net)
        average = WeightAverage(trainer, 0.9)
        train(net, trainer, batches(2))
        average.update()
        with average.applied():
            twin = copy.deepcopy(net)
        assert not moved(averaged(net, average), snapshot(twin))
        train(with_gradients(twin), twin[0].weight._trainer, batches(1))  # its trainer has no average


class TestResume:
    """A training that is stopped and resumed has the same averages, bit for bit."""

    def resumed(self, folder, build, net, average, **options):
        """Save everything, build again and load it."""
        net.save_parameters(str(folder / "net"))
        average._trainer.save_states(folder / "states")
        average.save(folder / "average")
        twin = build()
        twin.load_parameters(str(folder / "net"))
        again = WeightAverage(trainer_of(twin, [(twin[0], 0)]), **options)
        again._trainer.load_states(folder / "states")
        assert again.load(folder / "average") == {}
        return twin, again

    @pytest.mark.parametrize("unfreeze_at", [0, 4, 5, 8])
    @pytest.mark.parametrize("updated", [True, False])
    def test_goes_on_bit_for_bit(self, tmp_path, unfreeze_at, updated):
        net = mlp()
        trainer = trainer_of(net, [(net[0], 0)])
        average = WeightAverage(trainer, 0.9, warmup=True)
        average.decay = 0.8
        both = [(net, average)]
        for step, batch in enumerate(batches(10)):
            if step == 5:
                both.append(self.resumed(tmp_path, mlp, net, average))
                assert repr(both[0][1]) == repr(both[1][1])
                assert held(both[1][1]) == held(average)
            for each, mean in both:
                if step == unfreeze_at:
                    mean._trainer.set_lr_mult({each: 1})
                if step == 5 and not updated:
                    mean.update()
                train(each, mean._trainer, [batch])
                if updated or step != 4:
                    mean.update()
        assert average.num_updates == both[1][1].num_updates == 10
        assert not moved(averaged(net, average), averaged(*both[1]))
        assert not moved(snapshot(net), snapshot(both[1][0]))

    def test_on_other_contexts(self, tmp_path):
        net, twin = mlp(batchnorm=False), mlp(CONTEXTS, batchnorm=False)
        average, again = WeightAverage(trainer_of(net), 0.9), WeightAverage(trainer_of(twin))
        train(net, average._trainer, batches(2))
        average.update()
        average.save(tmp_path / "average")
        again.load(tmp_path / "average")
        assert not moved(averaged(net, average), averaged(twin, again))
        with again.applied():
            arrays = all_arrays(twin)
            assert same_arrays(arrays[::2], arrays[1::2])

    @pytest.mark.parametrize("dtype", ["float16", "float64"])
    def test_of_a_network_that_was_cast(self, tmp_path, dtype):
        net = mlp(batchnorm=False)
        average = WeightAverage(trainer_of(net), 0.9)
        train(net, average._trainer, batches(2))
        average.update()
        before = averaged(net, average)
        net.cast(dtype)
        average.save(tmp_path / "average")
        again = WeightAverage(average._trainer)
        again.load(tmp_path / "average")
        found = averaged(net, again)
        assert all((found[name] == before[name].astype(dtype)).all() for name in before)

    def test_before_the_first_update(self, tmp_path):
        net = mlp()
        average = WeightAverage(trainer_of(net, [(net[0], 0)]), 0.9)
        twin, again = self.resumed(tmp_path, mlp, net, average)
        for each, mean in ((net, average), (twin, again)):
            train(each, mean._trainer, batches(2))
            mean.update()
        assert not moved(averaged(net, average), averaged(twin, again))

    def test_into_a_trainer_that_has_trained(self, tmp_path):
        net = mlp()
        average = WeightAverage(trainer_of(net), 0.9)
        train(net, average._trainer, batches(2))
        average.update()
        average.save(tmp_path / "average")
        before = averaged(net, average)
        train(net, average._trainer, batches(2))
        average.update()
        train(net, average._trainer, batches(1))
        average.load(tmp_path / "average")
        average.update()  # nothing
        assert average.num_updates == 1
        assert all("running" in name for name in moved(before, averaged(net, average)))

    def test_deferred_parameters(self, tmp_path):
        net = nn.Dense(2)
        net.initialize()
        average = WeightAverage(MultiLRTrainer(net, "sgd"))
        for call in (average.save, average.load):
            with pytest.raises(RuntimeError, match="have no values yet"):
                call(tmp_path / "average")
        assert not (tmp_path / "average").exists()
