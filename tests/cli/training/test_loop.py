from __future__ import annotations

import random

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from cli_support import default_sigint

pytest.importorskip("tqdm")

from multitrainer import MultiLRTrainer, WeightAverage
from multitrainer_cli.errors import UserError
from multitrainer_cli.ranks.exchange import Ranks
from multitrainer_cli.training.interrupts import Interrupts
from multitrainer_cli.training.loop import fit, seed_everything, split_batch


def make(dropout=0.0):
    mx.random.seed(1)
    net = gluon.nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(gluon.nn.Dense(8, in_units=4), gluon.nn.BatchNorm(in_channels=8), gluon.nn.Dropout(dropout))
        net.add(gluon.nn.Dense(2, in_units=8))
    net.initialize()
    return net, MultiLRTrainer(net, "sgd", {"learning_rate": 0.5})


@pytest.fixture
def data():
    generator = np.random.RandomState(0)
    images = generator.normal(size=(10, 4)).astype("float32")
    return [(mx.nd.array(images[i : i + 4]), mx.nd.array([0, 1, 1, 0][: len(images[i : i + 4])])) for i in (0, 4, 8)]


def run(net, trainer, train, val, epochs=2, contexts=None, **options):
    with Interrupts() as interrupts:
        return list(fit(net, trainer, train, val, contexts or [mx.cpu()], epochs, interrupts, **options))


def test_it_trains_as_a_plain_gluon_loop_does(data):
    net, _ = make()
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.5})
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss()
    expected = []
    for _ in range(2):
        losses, correct = 0.0, 0
        for x, y in data:
            with autograd.record():
                output = net(x)
                loss = loss_function(output, y)
            loss.backward()
            trainer.step(len(x))
            losses += loss.sum().asscalar()
            correct += (output.argmax(axis=1) == y).sum().asscalar()
        val = sum((net(x).argmax(axis=1) == y).sum().asscalar() for x, y in data[:2]) / 8
        expected.append((round(losses / 10, 6), correct / 10, val))
    fitted, trainer = make()
    rows = run(fitted, trainer, data, data[:2])
    assert [(row["train_loss"], row["train_accuracy"], row["val_accuracy"]) for row in rows] == expected
    for name, param in net._collect_params_with_prefix().items():
        same = fitted._collect_params_with_prefix()[name]
        np.testing.assert_array_equal(param.data().asnumpy(), same.data().asnumpy(), err_msg=name)


def test_a_row_holds_epoch_pace_and_the_rates_of_the_first_update(data):
    net, _ = make()
    groups = [(net, lambda update: 1 / update), (net[3], 0.1)]
    rows = run(net, MultiLRTrainer(groups, "sgd", {"learning_rate": 0.6}), data, data)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [[*row["learning_rates"].values()] for row in rows] == [
        pytest.approx([0.6, 0.06]),
        pytest.approx([0.15, 0.06]),  # the second epoch begins with update 4
    ]
    for row in rows:
        assert row["seconds"] > 0
        assert row["images_per_second"] == pytest.approx(10 / row["seconds"], rel=0.2)


def test_between_measurements_there_is_no_accuracy_and_the_last_epoch_has_one(data):
    rows = run(*make(), data, data, epochs=5, measure_every=2)
    assert [row["val_accuracy"] is None for row in rows] == [True, False, True, False, False]


def test_dropout_does_not_depend_on_the_epochs_before(data):
    whole = run(*make(dropout=0.5), data, data, epochs=4, seed=3)
    net, trainer = make(dropout=0.5)
    parts = run(net, trainer, data, data, epochs=2, seed=3)
    mx.nd.random.normal(shape=(100,)).wait_to_read()
    parts += run(net, trainer, data, data, epochs=4, seed=3, epochs_done=2)
    assert [row["epoch"] for row in parts] == [1, 2, 3, 4]
    assert [row["train_loss"] for row in parts] == [row["train_loss"] for row in whole]
    other = run(*make(dropout=0.5), data, data, epochs=4, seed=4)
    assert [row["train_loss"] for row in other] != [row["train_loss"] for row in whole]


def test_devices_share_a_batch(data):
    contexts = [mx.cpu(0), mx.cpu(1)]
    plain = gluon.nn.Dense(2, in_units=4)
    plain.initialize(mx.init.One())
    shared = gluon.nn.Dense(2, in_units=4)
    shared.initialize(mx.init.One(), ctx=contexts)
    one = run(plain, MultiLRTrainer(plain, "sgd"), data, data)
    two = run(shared, MultiLRTrainer(shared, "sgd"), data, data, contexts=contexts)
    assert [row["train_loss"] for row in two] == pytest.approx([row["train_loss"] for row in one], abs=1e-5)


def test_a_batch_smaller_than_the_devices_leaves_some_idle():
    contexts = [mx.cpu(0), mx.cpu(1), mx.cpu(2)]
    parts = split_batch(mx.nd.arange(2), contexts)
    assert [(part.context, part.asnumpy().tolist()) for part in parts] == [(mx.cpu(0), [0]), (mx.cpu(1), [1])]
    assert [len(part) for part in split_batch(mx.nd.arange(7), contexts)] == [3, 2, 2]


def test_divergence_is_a_user_error(data):
    net, _ = make()
    with pytest.raises(UserError, match="training diverged"):
        run(net, MultiLRTrainer(net, "sgd", {"learning_rate": 1e30}), data * 2, data)


@pytest.mark.parametrize("epochs", [1, 0])
def test_ctrl_c_stops_between_two_batches(data, epochs):
    seen = []

    def batches():
        for batch in data:
            seen.append(len(seen))
            if len(seen) == 2:
                press()
            yield batch

    class Loader:
        def __iter__(self):
            return batches()

        def __len__(self):
            return 3

    net, trainer = make()
    with default_sigint() as press, pytest.raises(KeyboardInterrupt):
        run(net, trainer, *((Loader(), data) if epochs else (data, Loader())))
    assert seen == [0, 1]


def plain():
    """Make a network without BatchNorm: two halves of a batch give it the gradients of the whole."""
    mx.random.seed(2)
    net = gluon.nn.HybridSequential(prefix="plain_")
    with net.name_scope():
        net.add(gluon.nn.Dense(8, activation="relu", in_units=4), gluon.nn.Dense(2, in_units=8))
    net.initialize(mx.init.Xavier())
    return net


def weights_of(net):
    return {name: param.data().asnumpy() for name, param in net._collect_params_with_prefix().items()}


def assert_close(one, other, tolerance):
    for name, array in weights_of(one).items():
        np.testing.assert_allclose(array, weights_of(other)[name], atol=tolerance, err_msg=name)


class TestAccumulation:
    SETTINGS = ("adam", {"learning_rate": 0.01})

    def test_two_batches_of_16_are_one_of_32(self):
        images, labels = mx.nd.random.normal(shape=(96, 4)), mx.nd.array([0, 1, 1, 0] * 24)
        cut = {size: [(images[i : i + size], labels[i : i + size]) for i in range(0, 96, size)] for size in (16, 32)}
        whole, halves = plain(), plain()
        expected = run(whole, MultiLRTrainer(whole, *self.SETTINGS), cut[32], cut[32], epochs=4)
        trainer = MultiLRTrainer(halves, *self.SETTINGS, accumulate=2)
        rows = run(halves, trainer, cut[16], cut[32], epochs=4)
        assert trainer.optimizer.num_update == 12
        assert_close(whole, halves, 1e-5)
        assert [row["train_loss"] for row in rows] == pytest.approx([row["train_loss"] for row in expected], abs=1e-5)

    def test_an_epoch_ends_with_an_update_of_the_batches_that_are_left(self, data):
        net, expected = plain(), plain()
        trainer = MultiLRTrainer(net, *self.SETTINGS, accumulate=2)
        run(net, trainer, data, data)
        joined = [tuple(mx.nd.concat(*parts, dim=0) for parts in zip(*data[:2])), data[2]]
        run(expected, MultiLRTrainer(expected, *self.SETTINGS), joined, data)
        assert (trainer.accumulated, trainer.optimizer.num_update) == (0, 4)
        assert_close(net, expected, 1e-6)


class TestAverage:
    def test_the_averages_are_validated_and_the_weights_train_on(self, data):
        """The averages are those of the formula, and the training is what it is without them."""
        alone, averaged = plain(), plain()
        without = run(alone, MultiLRTrainer(alone, "sgd", {"learning_rate": 0.5}), data, data, epochs=1)
        trainer = MultiLRTrainer(averaged, "sgd", {"learning_rate": 0.5}, accumulate=2)
        expected = weights_of(averaged)
        average = WeightAverage(trainer, 0.9, warmup=True)
        seen = []

        class Spy:
            def __iter__(self):
                seen.append(weights_of(averaged))
                return iter(data)

        for epoch in (1, 2):
            run(averaged, trainer, data, Spy(), epochs=epoch, epochs_done=epoch - 1, average=average)
        assert average.num_updates == 4  # two of each epoch
        assert len(without) == 1
        # The weights after every update, from the same training step by step.
        stepped = plain()
        trainer = MultiLRTrainer(stepped, "sgd", {"learning_rate": 0.5}, accumulate=2)
        loss_function = gluon.loss.SoftmaxCrossEntropyLoss()
        updates = 0
        for epoch in (0, 1):
            for number, (x, y) in enumerate(data, 1):
                with autograd.record():
                    loss = loss_function(stepped(x), y)
                loss.backward()
                trainer.step(len(x))
                if number == 3:
                    trainer.flush()
                if not trainer.accumulated:
                    updates += 1
                    decay = min(0.9, (1 + updates) / (10 + updates))
                    for name, weight in weights_of(stepped).items():
                        expected[name] = decay * expected[name] + (1 - decay) * weight
            for name, array in expected.items():
                np.testing.assert_allclose(seen[epoch][name], array, atol=1e-6, err_msg=name)
        assert_close(averaged, stepped, 0)

    def test_without_updates_since_nothing_is_averaged_twice(self, data):
        net = plain()
        trainer = MultiLRTrainer(net, "sgd")
        average = WeightAverage(trainer, 0.9)
        run(net, trainer, data, data, epochs=1, average=average)
        assert average.num_updates == 3


class SecondOfTwo(Ranks):
    """The view of rank 1 of two ranks that have equal sums, without a second process."""

    rank, size = 1, 2

    def __init__(self):
        super().__init__()
        self.broadcasts = []

    def sum(self, numbers):
        return 2 * numbers

    def step_batch_size(self, mine):
        return 2 * mine

    def broadcast_parameters(self, params):
        self.broadcasts.append([param.name for param in params])


def test_ranks_add_up_their_metrics_and_take_the_statistics_of_rank_0(data, capsys):
    ranks = SecondOfTwo()
    net, _ = make()
    alone = run(*make(), data[:1], data, epochs=1)
    shared = run(net, MultiLRTrainer(net, "sgd", {"learning_rate": 1.0}), data[:1], data, epochs=1, ranks=ranks)
    for key in ("train_loss", "train_accuracy", "val_accuracy"):
        assert shared[0][key] == pytest.approx(alone[0][key])
    assert ranks.broadcasts == [["net_batchnorm0_running_mean", "net_batchnorm0_running_var"]]
    assert capsys.readouterr().err == ""


def test_seeding_makes_all_generators_repeat_themselves():
    def draw():
        seed_everything(7)
        return random.random(), np.random.rand(), mx.nd.random.uniform(shape=1).asscalar()

    assert draw() == draw()
