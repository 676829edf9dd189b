"""Schedules that keep count of their calls can be called for an earlier update."""

import copy
import functools
import gc
import pickle
import weakref

import mxnet as mx
import numpy as np
import pytest

from multitrainer import MultiLRTrainer, ParamGroup
from multitrainer.multipliers.rewinding import call_at
from support import batches, fingerprint, mlp, same, train


def scheduler(name):
    schedulers = mx.lr_scheduler
    return {
        "factor": lambda: schedulers.FactorScheduler(2, 0.5, base_lr=1),
        "factor, stopped": lambda: schedulers.FactorScheduler(1, 0.5, stop_factor_lr=0.1, base_lr=1),
        "factor, warmed up": lambda: schedulers.FactorScheduler(2, 0.5, base_lr=1, warmup_steps=3),
        "multifactor": lambda: schedulers.MultiFactorScheduler([2, 3, 7, 9], 0.5, base_lr=1),
        "poly": lambda: schedulers.PolyScheduler(12, base_lr=1),
        "cosine": lambda: schedulers.CosineScheduler(12, base_lr=1, final_lr=0.1),
        "chain": lambda: Chain(schedulers.FactorScheduler(2, 0.5, base_lr=1), np.linspace(1, 0.1, 20)),
        "method": lambda: Chain(schedulers.FactorScheduler(2, 0.5, base_lr=1), np.linspace(1, 0.1, 20)).rate,
        "partial": lambda: functools.partial(schedulers.FactorScheduler(2, 0.5, base_lr=1)),
    }[name]()


class Chain:
    """A schedule that calls another one, and keeps its result."""

    def __init__(self, first, then):
        self.first, self.then, self.last = first, then, {"said": []}

    def __call__(self, num_update):
        self.last["said"] = [self.first(num_update) * self.then[num_update % 20]]
        return self.last["said"][0]

    def rate(self, num_update):
        return self(num_update)


NAMES = [
    "factor",
    "factor, stopped",
    "factor, warmed up",
    "multifactor",
    "poly",
    "cosine",
    "chain",
    "method",
    "partial",
]


class Run:
    def __init__(self, name, step_back=None):
        self.net = mlp()
        self.schedule = scheduler(name)
        groups = [self.net, ParamGroup(self.net[0], lr_mult=self.schedule, wd_mult=self.schedule), (self.net[2], 0.5)]
        self.trainer = MultiLRTrainer(groups, "sgd", {"momentum": 0.9, "wd": 0.01})

    def save(self, folder):
        self.net.save_parameters(str(folder / "net"))
        self.trainer.save_states(folder / "states")

    def load(self, folder):
        self.net.load_parameters(str(folder / "net"))
        self.trainer.load_states(folder / "states")

    def train(self, steps):
        return train(self.net, self.trainer, batches(steps, seed=steps))


@pytest.mark.parametrize("name", NAMES)
def test_states_are_loaded_into_a_trainer_that_trained_longer(name, tmp_path):
    """Its schedules give the same multipliers again."""
    run = Run(name)
    run.train(3)
    run.save(tmp_path)
    saved = fingerprint(run.trainer, run.net)
    then = run.train(9)
    for _ in range(2):
        run.load(tmp_path)
        assert fingerprint(run.trainer, run.net) == saved
        assert same(run.train(9), then)
    fresh = Run(name)
    fresh.load(tmp_path)
    assert same(fresh.train(9), then)


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_file_leaves_the_schedule_as_it_was(name, tmp_path):
    run, other = Run(name), Run(name)
    run.train(9)
    run.save(tmp_path)
    other.train(2)
    other.trainer.set_lr_mult({other.net[2]: lambda num_update: 1 if num_update < 6 else "much"})
    with pytest.raises(TypeError, match="much"):
        other.trainer.load_states(tmp_path / "states")
    twin = Run(name)
    twin.train(2)
    other.trainer.set_lr_mult({other.net[2]: 0.5})
    assert same(twin.train(5), other.train(5))


@pytest.mark.parametrize(
    "copy_of", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_a_schedule_after_calls(name, copy_of):
    schedule = scheduler(name)
    expected = [call_at(schedule, update) for update in range(1, 10)]
    copied = copy_of(schedule)
    assert [call_at(copied, update) for update in range(1, 10)] == expected
    assert [call_at(schedule, update) for update in range(1, 10)] == expected


def test_files_of_stock_trainer(tmp_path):
    run = Run("factor")
    run.train(3)
    mx.gluon.Trainer.save_states(run.trainer, str(tmp_path / "states"))
    assert run.net[0].weight.lr_mult == 0.5
    run.train(9)
    assert run.net[0].weight.lr_mult < 0.1
    run.trainer.load_states(tmp_path / "states", allow_pickle=True)
    assert run.net[0].weight.lr_mult == 0.5


def test_one_schedule_of_two_trainers():
    schedule = scheduler("factor")
    runs = []
    for _ in range(2):
        net = mlp()
        runs.append((net, MultiLRTrainer([(net, schedule)], "sgd")))
    for net, trainer in runs:
        found = []
        for batch in batches(6):
            train(net, trainer, [batch])
            found.append(net[0].weight.lr_mult)
        assert found == [1, 0.5, 0.5, 0.25, 0.25, 0.125]


class Plateau:
    """A schedule whose result somebody else sets."""

    def __init__(self):
        self.now = 1.0

    def __call__(self, num_update):
        return self.now


def test_an_attribute_that_somebody_else_changed_is_kept(tmp_path):
    """For example, load the last states after a bad batch, and halve the rate."""
    net, plateau = mlp(), Plateau()
    trainer = MultiLRTrainer([(net, plateau)], "sgd")
    train(net, trainer, batches(3))
    trainer.save_states(tmp_path / "states")
    train(net, trainer, batches(3))
    plateau.now = 0.5
    trainer.load_states(tmp_path / "states")
    assert net[0].weight.lr_mult == 0.5
    plateau.now = 0.25
    train(net, trainer, batches(1))
    assert net[0].weight.lr_mult == 0.25


def test_somebody_else_changed_a_factor(tmp_path):
    schedule = scheduler("factor")
    assert [call_at(schedule, update) for update in (1, 9)] == [1, 0.0625]
    schedule.base_lr = 7
    assert call_at(schedule, 1) == 7


class Holder:
    """A schedule with an attribute that cannot be copied."""

    def __init__(self, net):
        self.net, self.count = net, 0

    def rate(self, num_update):
        self.count += 1
        return 1 / self.count

    __call__ = rate


@pytest.mark.parametrize("of", [lambda holder: holder, lambda holder: holder.rate], ids=["object", "method"])
def test_a_schedule_that_cannot_be_copied_is_called_as_it_is(of):
    net = mlp()
    holder = Holder(net)
    schedule = of(holder)
    assert [call_at(schedule, update) for update in (5, 1, 3)] == [1, 1 / 2, 1 / 3]
    assert holder.net is net


def test_functions_are_called_once():
    calls = []

    def schedule(num_update):
        calls.append(num_update)
        return 1

    for update in (5, 1, 3):
        call_at(schedule, update)
    assert calls == [5, 1, 3]


@pytest.mark.parametrize("name", ["factor", "chain", "method"])
def test_a_schedule_is_not_kept_alive(name):
    schedule = scheduler(name)
    call_at(schedule, 9)
    call_at(schedule, 1)
    gone = weakref.ref(getattr(schedule, "__self__", schedule))
    del schedule
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("steps", [1, 10])
def test_a_schedule_that_would_take_too_long_is_refused(steps, tmp_path):
    """MXNet's scheduler gets to an update in a loop, and a file can claim any number of updates."""
    schedule = mx.lr_scheduler.FactorScheduler(steps, 0.5, base_lr=1)
    net = mlp()
    trainer = MultiLRTrainer([net, (net[0], schedule)], "sgd")
    trainer.optimizer.num_update = 10**15  # what a file would say
    with pytest.raises(RuntimeError, match=r"FactorScheduler with step=\d+ needs more than .* iterations"):
        trainer.save_states(tmp_path / "states")
    # It may well have come so far step by step.
    schedule.count = 10**15 - steps
    assert call_at(schedule, 10**15) > 0
    far = mx.lr_scheduler.FactorScheduler(10**12, 0.5, base_lr=1)
    assert call_at(far, 10**15) > 0


class First:
    """A schedule that remembers the update of its first call."""

    def __call__(self, num_update):
        self.first = getattr(self, "first", num_update)
        return self.first


def test_attributes_that_calls_added_are_removed():
    schedule = First()
    assert [call_at(schedule, update) for update in (5, 7, 3)] == [5, 5, 5]  # not rewound: calls alone give first=7
    schedule = First()
    assert [call_at(schedule, update) for update in (5, 3, 4)] == [5, 3, 3]
