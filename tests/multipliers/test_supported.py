"""A multiplier that the optimizer would not apply is refused."""

import mxnet as mx
import pytest
from mxnet.gluon import Trainer
from mxnet.optimizer import Optimizer

from multitrainer import MultiLRTrainer
from multitrainer.multipliers.supported import check_supported
from support import batches, mlp, moved, same, train, weights


@pytest.mark.parametrize("name", ["adadelta", "test"])
def test_an_optimizer_that_ignores_multipliers_takes_0_and_1_only(name):
    net = mlp()
    trainer = MultiLRTrainer([net, (net[0], 0), (net[2], 1)], name)
    with pytest.raises(ValueError, match="would have no effect"):
        trainer.set_lr_mult({net[2]: 0.5})
    assert net[2].weight.lr_mult == 1
    net[2].weight.lr_mult = 0.5
    with pytest.raises(ValueError, match=r"lr_mult 0\.5 of Parameter 'net_dense1_weight' would have no effect"):
        trainer.step(1)


class WithHelper(Optimizer):
    """Looks up the learning rate in a function outside the class."""

    def create_state(self, index, weight):
        return None

    def update(self, index, weight, grad, state):
        apply_sgd(self, index, weight, grad)


def apply_sgd(optimizer, index, weight, grad):
    optimizer._update_count(index)
    weight[:] -= optimizer._get_lr(index) * optimizer.rescale_grad * (grad + optimizer._get_wd(index) * weight)


class OneRateForAll(WithHelper):
    """Uses one learning rate for all Parameters."""

    def update(self, index, weight, grad, state):
        self._update_count(index)
        weight[:] -= self.lr * self.rescale_grad * grad


def test_optimizers_written_by_a_user():
    def run(trainer_class, multiplier):
        net = mlp()
        net.collect_params(".*dense0.*").setattr("lr_mult", multiplier)
        return train(net, trainer_class(net.collect_params(), WithHelper(learning_rate=0.1)), batches())

    assert same(run(Trainer, 0.5), run(MultiLRTrainer, 0.5))
    assert weights(moved(*run(MultiLRTrainer, 0)[:2])).isdisjoint({"net_dense0_weight", "net_dense0_bias"})
    with pytest.raises(ValueError, match="OneRateForAll never asks for it"):
        MultiLRTrainer([(mlp(), 0.5)], OneRateForAll(learning_rate=0.1))


class Centralized(mx.optimizer.Adam):
    """Changes the gradient, then calls the update of its base class through super."""

    def update(self, index, weight, grad, state):
        super().update(index, weight, grad - grad.mean(), state)


class Explicit(mx.optimizer.RMSProp):
    """Changes the gradient, then calls the update of its base class by name."""

    def update(self, index, weight, grad, state):
        mx.optimizer.RMSProp.update(self, index, weight, grad - grad.mean(), state)


@pytest.mark.parametrize("optimizer", [Centralized, Explicit])
def test_an_optimizer_that_calls_the_update_of_its_base_class(optimizer):
    def run(trainer_class):
        net = mlp()
        net[0].weight.lr_mult = 0.5
        return train(net, trainer_class(net.collect_params(), optimizer(learning_rate=0.1)), batches())

    assert same(run(Trainer), run(MultiLRTrainer))


def test_a_schedule_is_checked_only_once_it_was_evaluated():
    weight = mlp()[0].weight
    check_supported(mx.optimizer.AdaDelta, "lr_mult", {weight: lambda num_update: 0.5})
    check_supported(mx.optimizer.AdaDelta, "lr_mult", {weight: 0.0})
    check_supported(mx.optimizer.AdaDelta, "wd_mult", {weight: 0.5})
    check_supported(mx.optimizer.SGD, "lr_mult", {weight: 0.5})
    with pytest.raises(
        ValueError, match=r"lr_mult 0\.5 of Parameter 'net_dense0_weight' would have no effect: AdaDelta"
    ):
        check_supported(mx.optimizer.AdaDelta, "lr_mult", {weight: 0.5})
