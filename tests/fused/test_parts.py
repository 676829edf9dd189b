"""The fused update covers each optimizer of a trainer for itself, and stock updates what it does not cover."""

import copy

import numpy as np
import pytest
from mxnet import gluon

from fused_support import SHAPES, backward_pass, build, parameters, run
from multitrainer import MultiLRTrainer, ParamGroup
from multitrainer.fused.parts import FusedUpdates
from multitrainer.optimizers.partition import Partition, PartitionedUpdater
from support import bits

HALF = len(SHAPES) // 2
SGD = {"learning_rate": 0.01, "momentum": 0.9, "wd": 1e-3}


def divided(optimizer, settings, **kwargs):
    """Return Parameters, the second half of which is under another optimizer, and their trainer."""
    params = parameters(SHAPES)
    group = ParamGroup(params[HALF:], name="second", optimizer=optimizer, optimizer_params=settings)
    return params, MultiLRTrainer([params, group], "sgd", SGD, **kwargs)


class TwoTrainers:
    """Stock trainers of the two halves, stepped together."""

    def __init__(self, params, optimizer, settings):
        self.first = gluon.Trainer(params[:HALF], "sgd", SGD)
        self.second = gluon.Trainer(params[HALF:], optimizer, settings)

    def step(self, *args, **kwargs):
        self.first.step(*args, **kwargs)
        self.second.step(*args, **kwargs)

    @property
    def _updaters(self):
        second = self.second._updaters[0].states
        states = {**self.first._updaters[0].states, **{i + HALF: state for i, state in second.items()}}
        return [type("Updater", (), {"states": states})]


@pytest.fixture
def stock_calls(monkeypatch):
    """Record the indices with which stock's loop calls the Updaters of trainers with several optimizers."""
    calls, update = [], PartitionedUpdater.__call__

    def record(self, index, grad, weight):
        calls.append(list(index))
        return update(self, index, grad, weight)

    monkeypatch.setattr(PartitionedUpdater, "__call__", record)
    return calls


@pytest.mark.parametrize(
    ("optimizer", "settings", "covered"),
    [
        ("adam", {"learning_rate": 0.01, "wd": 1e-3}, True),
        ("nag", {"learning_rate": 0.01, "momentum": 0.9}, True),
        ("sgd", {"learning_rate": 0.1, "clip_gradient": 1.0}, False),
        ("rmsprop", {}, False),
    ],
    ids=["adam", "nag", "clipped sgd", "rmsprop"],
)
@pytest.mark.parametrize("fast", ["1", "0"])
def test_equals_two_stock_trainers(optimizer, settings, covered, fast, stock_calls, monkeypatch):
    monkeypatch.setenv("MULTITRAINER_FAST", fast)
    params = parameters(SHAPES)
    expected = run(params, TwoTrainers(params, optimizer, settings))
    assert run(*divided(optimizer, settings)) == expected
    everything, second = list(range(len(SHAPES))), list(range(HALF, len(SHAPES)))
    later = [everything] * 3 if fast == "0" else [[], second][not covered] and [second] * 3
    assert stock_calls == [everything, *later]  # the first update creates the states


@pytest.mark.parametrize("stale", [0, -1], ids=["in the trainer's own part", "in the other part"])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_a_stale_gradient_raises_before_any_part_is_updated(stale, optimizer):
    params, trainer = divided(optimizer, {})
    run(params, trainer)
    values = run_state(params, trainer)
    backward_pass(params, np.random.RandomState(1))
    params[stale].data()._fresh_grad = False
    with pytest.raises(UserWarning, match=f"Gradient of Parameter `{params[stale].name}`"):
        trainer.step(2)
    assert run_state(params, trainer) == values


def run_state(params, trainer):
    counts = [part.optimizer._all_index_update_counts for part in trainer._partition.parts]
    weights = [param.data() for param in params]
    return bits(weights), bits(trainer._updaters[0].states), copy.deepcopy(counts)


def test_stale_gradients_may_be_ignored_in_one_part(stock_calls):
    def between(params):
        def make_stale(trainer, number):
            if number > 1:
                params[0].data()._fresh_grad = False

        return make_stale

    class Ignoring:
        def __init__(self, trainer):
            self.trainer = trainer

        def step(self, batch_size):
            self.trainer.step(batch_size, ignore_stale_grad=True)

        def __getattr__(self, name):
            return getattr(self.trainer, name)

    settings = {"learning_rate": 0.01}
    params = parameters(SHAPES)
    expected = run(params, Ignoring(TwoTrainers(params, "adam", settings)), between=between(params))
    params, trainer = divided("adam", settings)
    assert run(params, Ignoring(trainer), between=between(params)) == expected
    assert stock_calls == [list(range(len(SHAPES))), [1, 2], [1, 2]]  # Adam goes on in one operation


def test_nothing_is_prepared_for_a_part_without_gradients():
    params, trainer = divided("adam", {})
    run(params, trainer)
    trainer.set_lr_mult({"p000": 0, "p001": 0, "p002": 0})
    backward_pass(params[3:], np.random.RandomState(1))
    with trainer._multipliers.update(trainer):
        (prepared,) = trainer._fused.prepare(trainer._updaters[0], trainer._params)
    assert prepared.params == params[3:]


def test_preparing_changes_nothing():
    params, trainer = divided("adam", {})
    run(params, trainer)
    backward_pass(params, np.random.RandomState(1))
    before = run_state(params, trainer)
    prepared = trainer._fused.prepare(trainer._updaters[0], trainer._params)
    assert [part.params for part in prepared] == [params[:3], params[3:]]
    assert run_state(params, trainer) == before
    for part in prepared:
        part.run()
    assert run_state(params, trainer) != before


def test_with_one_optimizer_all_parameters_are_one_part():
    params, trainer = build(MultiLRTrainer, "sgd", SGD)
    run(params, trainer)
    backward_pass(params, np.random.RandomState(1))
    (prepared,) = FusedUpdates(Partition(params, trainer.optimizer)).prepare(trainer._updaters[0], params)
    assert prepared.params == params


def test_a_copy_prepares_its_own_operations():
    params, trainer = divided("adam", {})
    run(params, trainer)
    other = copy.deepcopy(trainer)
    for param in other._params:  # the copy of an array is not a variable, with stock either
        param.grad_req = "null"
        param.grad_req = "write"
    assert run(other._params, other) == run(params, trainer)
    assert not set(map(id, other._fused._updates)) & set(map(id, trainer._fused._updates))
