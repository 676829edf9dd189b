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
from multitrainer_cli.interrupts import Interrupts
from multitrainer_cli.ranks.exchange import Ranks
from multitrainer_cli.training.loop import fit, seed_everything, split_batch
from multitrainer_cli.training.losses import Objective, SoftTargets
from multitrainer_cli.training.mixup import Mixup


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
        val_loss = sum(loss_function(net(x), y).sum().asscalar() for x, y in data[:2]) / 8
        expected.append((round(losses / 10, 6), correct / 10, round(val_loss, 6), val))
    fitted, trainer = make()
    rows = run(fitted, trainer, data, data[:2])
    fields = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    assert [tuple(row[field] for field in fields) for row in rows] == expected
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


def test_between_measurements_nothing_is_measured_and_the_last_epoch_ends_with_one(data):
    rows = run(*make(), data, data, epochs=5, measure_every=2)
    for field in ("val_accuracy", "val_loss"):
        assert [row[field] is None for row in rows] == [True, False, True, False, False]


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


def linear(objective, epochs=1, contexts=None, batches=()):
    """Train a linear network that begins with zeros; return it, and its rows of metrics."""
    net = gluon.nn.Dense(3, in_units=4)
    net.initialize(mx.init.Zero(), ctx=contexts or [mx.cpu()])
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.1})
    return net, run(net, trainer, batches, batches, epochs, contexts, objective=objective, seed=7)


@pytest.fixture
def labelled():
    """Two batches of eight images of three classes."""
    generator = np.random.RandomState(2)
    return [(mx.nd.array(generator.normal(size=(8, 4))), mx.nd.array(generator.randint(0, 3, 8))) for _ in range(2)]


WEIGHTS = np.array([0.5, 1.0, 1.75])


def test_an_update_follows_the_gradient_of_smoothed_weighted_and_mixed_targets(labelled):
    """Computed with NumPy for a linear network, whose gradient is the sum of (softmax * sum(t) - t) x."""
    objective = Objective(SoftTargets(3, 0.1, WEIGHTS), Mixup(0.4, 1))
    net, rows = linear(objective, epochs=2, batches=labelled)
    weight, bias, losses = np.zeros((3, 4)), np.zeros(3), []
    for epoch in (1, 2):
        loss = 0.0
        for (images, labels), share in zip(labelled, Mixup(0.4, 1).shares(7, epoch)):
            images, targets = images.asnumpy(), (0.9 * np.eye(3)[labels.asnumpy().astype(int)] + 0.1 / 3) * WEIGHTS
            images, targets = (share * each + (1 - share) * np.roll(each, 4, axis=0) for each in (images, targets))
            outputs = images @ weight.T + bias
            softmax = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
            loss -= (targets * np.log(softmax)).sum() / 16
            gradient = (softmax * targets.sum(axis=1, keepdims=True) - targets) / 8
            weight, bias = weight - 0.1 * gradient.T @ images, bias - 0.1 * gradient.sum(axis=0)
        losses.append(loss)
    assert [row["train_loss"] for row in rows] == pytest.approx(losses, rel=1e-4)
    np.testing.assert_allclose(net.weight.data().asnumpy(), weight, atol=1e-5)
    np.testing.assert_allclose(net.bias.data().asnumpy(), bias, atol=1e-5)


def test_over_all_images_the_weighted_loss_is_that_of_torch(labelled):
    """If the weights have a mean of 1 over the images, dividing by their sum or by the number of images is the same."""
    images, labels = labelled[0]
    of_images = WEIGHTS[labels.asnumpy().astype(int)]
    scaled = Objective(SoftTargets(3, 0.0, WEIGHTS / of_images.mean()))
    _, rows = linear(scaled, batches=[(images, labels)])
    assert rows[0]["train_loss"] == pytest.approx((of_images * np.log(3)).sum() / of_images.sum(), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.4, 5.0])
def test_two_devices_mix_the_images_that_one_mixes(labelled, alpha):
    objective = Objective(SoftTargets(3, 0.1, WEIGHTS), Mixup(alpha, 3))
    one, rows = linear(objective, 3, batches=labelled)
    two, rows_of_two = linear(objective, 3, [mx.cpu(0), mx.cpu(1)], batches=labelled)
    for field in ("train_loss", "train_accuracy", "val_loss"):
        assert [row[field] for row in rows_of_two] == pytest.approx([row[field] for row in rows], rel=1e-5)
    np.testing.assert_allclose(two.weight.data(mx.cpu(0)).asnumpy(), one.weight.data().asnumpy(), atol=1e-6)


def test_the_validation_loss_is_the_cross_entropy_whatever_is_minimized(labelled):
    images, labels = labelled[0]
    objective = Objective(SoftTargets(3, 0.5, [0.0, 0.0, 0.0]), Mixup(1, 1))
    _, rows = linear(objective, batches=[(images, labels)])
    assert (rows[0]["train_loss"], rows[0]["val_loss"]) == pytest.approx((0, np.log(3)), rel=1e-5)


def test_what_mixup_draws_does_not_depend_on_the_epochs_before(labelled):
    def train(epochs, done):
        options = {"objective": Objective(SoftTargets(3), Mixup(0.4, 3)), "seed": 3, "epochs_done": done}
        return run(net, trainer, labelled, labelled, epochs, **options)

    rows = []
    for parts in ([4], [1, 3, 4]):
        net = gluon.nn.Dense(3, in_units=4)
        net.initialize(mx.init.Zero())
        trainer = MultiLRTrainer(net, "sgd")
        found = [row for done, epochs in zip([0, *parts], parts) for row in train(epochs, done)]
        rows.append([(row["epoch"], row["train_loss"], row["val_loss"]) for row in found])
    assert rows[0] == rows[1]


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


def test_a_network_that_diverged_with_the_last_update_is_a_user_error(data):
    net, _ = make()
    with pytest.raises(UserError, match="training diverged"):
        run(net, MultiLRTrainer(net, "sgd", {"learning_rate": 1e38}), data[:1], data, epochs=1)


class Huge(Ranks):
    """Ranks whose sum is too large for float32."""

    def sum(self, numbers):
        return numbers * np.array([np.inf, 1, 1])


def test_losses_that_only_the_ranks_together_cannot_add_are_a_user_error(data):
    with pytest.raises(UserError, match="training diverged"):
        run(*make(), data, data, ranks=Huge())


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
    for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert shared[0][key] == pytest.approx(alone[0][key])
    assert ranks.broadcasts == [["net_batchnorm0_running_mean", "net_batchnorm0_running_var"]]
    assert capsys.readouterr().err == ""


def test_seeding_makes_all_generators_repeat_themselves():
    def draw():
        seed_everything(7)
        return random.random(), np.random.rand(), mx.nd.random.uniform(shape=1).asscalar()

    assert draw() == draw()
