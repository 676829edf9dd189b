"""`supports_multiplier` says what optimizers do: stock's when they run, and a user's however it is written."""

import functools
import types

import mxnet as mx
import numpy as np
import pytest
from mxnet.optimizer import Optimizer

from multitrainer._mxnet import supports_multiplier
from optimizer_zoo import REGISTERED

STOCK = list(REGISTERED)


def weight_after(name, **multipliers):
    """Return a weight after two updates by a stock optimizer under such multipliers."""
    kind = Optimizer.opt_registry[name]
    optimizer = kind(**({} if name == "groupadagrad" else {"wd": 0.3}), learning_rate=0.1)
    for field, value in multipliers.items():
        setattr(optimizer, field, {0: value})
    mx.random.seed(1)
    weight, updater = mx.nd.array([[1.0, 2.0], [-1.5, 0.5]]), mx.optimizer.get_updater(optimizer)
    for _ in range(2):
        updater(0, mx.nd.array([[0.3, -0.2], [0.1, 0.4]]), weight)
    return weight.asnumpy()


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_optimizer_applies_the_learning_rate_multiplier_if_it_is_supported(name):
    applied = not np.array_equal(weight_after(name), weight_after(name, lr_mult=0.5))
    assert supports_multiplier(Optimizer.opt_registry[name], "lr_mult") == applied


@pytest.mark.parametrize("name", [name for name in STOCK if name != "groupadagrad"])
def test_a_stock_optimizer_applies_the_weight_decay_multiplier_only_if_it_is_supported(name):
    if not np.array_equal(weight_after(name), weight_after(name, wd_mult=0.5)):
        assert supports_multiplier(Optimizer.opt_registry[name], "wd_mult")


def helper(optimizer, index):
    return optimizer._get_lr(index)


def deaf_helper(optimizer, index):
    return optimizer.lr


module = types.ModuleType("helpers_of_a_user")
module.rate_of = helper


class Method(Optimizer):
    def update(self, index, weight, grad, state):
        weight[:] -= self.rate(index) * grad

    def rate(self, index):
        return self._get_lr(index)


class Inherited(Method):
    pass


class Super(Method):
    def update(self, index, weight, grad, state):
        super().update(index, weight, grad, state)


class Overridden(Method):
    def rate(self, index):
        return self.lr


class Property(Optimizer):
    @property
    def rates(self):
        return self.lr_mult

    def update(self, index, weight, grad, state):
        weight[:] -= self.rates[index] * grad


class Static(Optimizer):
    @staticmethod
    def rate(optimizer, index):
        return optimizer._get_lrs([index])[0]

    def update(self, index, weight, grad, state):
        weight[:] -= self.rate(self, index) * grad


class Function(Optimizer):
    def update(self, index, weight, grad, state):
        weight[:] -= helper(self, index) * grad


class OfModule(Optimizer):
    def update(self, index, weight, grad, state):
        weight[:] -= module.rate_of(self, index) * grad


class Inner(Optimizer):
    def update(self, index, weight, grad, state):
        rates = [self._get_lr(i) for i in (index,)]
        weight[:] -= rates[0] * grad


class Mixed(Optimizer):
    def update(self, index, weight, grad, state):
        weight[:] -= self.lr * grad

    def update_multi_precision(self, index, weight, grad, state):
        self.update(index, weight, self._get_lr(index) * grad, state)


class Deaf(Optimizer):
    def update(self, index, weight, grad, state):
        self._update_count(index)
        weight[:] -= deaf_helper(self, index) * grad


def wrapped(update):
    @functools.wraps(update)
    def wrapper(self, *args):
        return update(self, *args)

    return wrapper


class Closure(Optimizer):
    update = wrapped(Method.update)
    rate = Method.rate


class Compiled(Optimizer):
    update = len


SUPPORTED = [Method, Inherited, Super, Property, Static, Function, OfModule, Inner, Mixed, Closure]


@pytest.mark.parametrize("kind", SUPPORTED)
def test_an_update_that_looks_the_multiplier_up_in_any_way_supports_it(kind):
    assert supports_multiplier(kind, "lr_mult")
    assert not supports_multiplier(kind, "wd_mult")


@pytest.mark.parametrize("kind", [Overridden, Deaf])
def test_an_update_that_does_not_look_it_up_does_not_support_it(kind):
    assert not supports_multiplier(kind, "lr_mult")


@pytest.mark.parametrize("kind", [Compiled, Optimizer])
def test_an_update_that_cannot_be_read_counts_as_supporting_it(kind):
    assert supports_multiplier(kind, "lr_mult")
    assert supports_multiplier(kind, "wd_mult")
