"""``num_update`` counts updates, whichever Parameters take part in them."""

import contextlib

import mxnet as mx
import pytest

from multiplier_support import ALL_WEIGHTS, FIRST_LAYER, build, changed_by
from multitrainer import MultiLRTrainer, freeze, unfreeze
from multitrainer.multipliers.clock import UpdateClock
from multitrainer.optimizers.partition import Partition
from support import Overflow, backward, batches, mlp, moved, snapshot, train


class TestUpdateClock:
    def build(self, counts_updates):
        optimizer = mx.optimizer.SGD()
        clock = UpdateClock(Partition([], optimizer))
        clock.counts_updates = counts_updates
        return optimizer, clock

    def test_next_update_follows_the_optimizer(self):
        optimizer, clock = self.build(False)
        assert clock.next_update == 1
        optimizer.num_update = 6
        assert clock.next_update == 7

    def test_tells_whether_an_update_was_made(self):
        for part in (0, 1):
            partition = Partition([], mx.optimizer.SGD(begin_num_update=5))
            partition.add("other", mx.optimizer.SGD(), [])
            clock = UpdateClock(partition)
            assert not clock.has_updates
            partition.optimizers[part]._update_count(0)
            assert clock.has_updates

    def test_leaves_the_count_to_mxnet_until_something_is_frozen(self):
        optimizer, clock = self.build(False)
        assert UpdateClock(Partition([], optimizer)).counts_updates is False
        with clock.update([True]):
            assert optimizer.num_update == 0
        assert optimizer.num_update == 0

    def test_counts_an_update_before_it_is_made(self):
        optimizer, clock = self.build(True)
        optimizer.num_update = 6
        with clock.update([True]):
            assert optimizer.num_update == 7
            optimizer._update_count(3)  # the first update of this Parameter
        assert optimizer.num_update == 7

    def build_two(self):
        main, clock = self.build(True)
        own = mx.optimizer.SGD()
        clock._partition.add("head", own, [])
        return main, own, clock

    def test_counts_an_update_in_which_one_of_two_optimizers_trains(self):
        main, own, clock = self.build_two()
        own.num_update = 3
        for trained, trains in [(main, [True, False]), (own, [False, True])]:
            with clock.update(trains):
                trained._update_count(0)
        assert (main.num_update, own.num_update) == (2, 5)

    @pytest.mark.parametrize("counts_updates", [False, True])
    def test_counts_for_an_optimizer_whose_gradients_were_all_stale(self, counts_updates):
        main, own, clock = self.build_two()
        clock.counts_updates = counts_updates
        for _ in range(2):
            with clock.update([True, True]):
                own._update_count(0)
        assert (main.num_update, own.num_update) == (2, 2)
        assert clock.counts_updates

    def test_does_not_count_for_an_optimizer_that_failed(self):
        main, own, clock = self.build_two()
        step = contextlib.ExitStack()
        step.enter_context(clock.update([True, True]))
        own._update_count(0)
        step.__exit__(KeyError, KeyError(), None)
        assert (main.num_update, own.num_update) == (0, 1)

    def test_leaves_the_count_to_mxnet_while_both_train(self):
        main, own, clock = self.build_two()
        clock.counts_updates = False
        with clock.update([True, True]):
            for optimizer in (main, own):
                assert optimizer.num_update == 0
                optimizer._update_count(0)
        assert (main.num_update, own.num_update, clock.counts_updates) == (1, 1, False)

    def test_does_not_count_an_update_that_no_optimizer_made(self):
        main, own, clock = self.build_two()
        with clock.update([False, True]):
            pass
        assert (main.num_update, own.num_update) == (0, 0)

    def test_counts_an_update_in_which_nothing_trains(self):
        optimizer, clock = self.build(True)
        with clock.update([False]):
            pass
        assert optimizer.num_update == 1

    @pytest.mark.parametrize("fails", [False, True])
    def test_does_not_count_an_update_that_was_not_made(self, fails):
        optimizer, clock = self.build(True)
        optimizer.num_update = 6
        with pytest.raises(KeyError) if fails else contextlib.nullcontext(), clock.update([True]):
            if fails:
                raise KeyError
        assert optimizer.num_update == 6


def test_counts_while_everything_is_frozen():
    net, trainer = build(lambda net: [(net, lambda t: 0 if t < 3 else 1)])
    before = snapshot(net)
    trainer.step(1)
    trainer.step(1)
    assert not moved(before, snapshot(net))
    assert changed_by(net, trainer) == ALL_WEIGHTS


@pytest.mark.parametrize("case", ["gradients switched off by the user", "gradients that frozen parameters keep"])
def test_counts_updates_in_which_nothing_trains(case):
    net = mlp(batchnorm=False)
    params = net.collect_params()
    if case == "gradients switched off by the user":
        trainer = MultiLRTrainer([net, (net[0], 0)], "sgd")
        params.setattr("grad_req", "null")
    else:
        trainer = MultiLRTrainer([(params, 0)], "sgd")  # without Blocks, so it switches off no gradient
        assert net[0].weight.grad_req == "write"
    trainer.step(1)
    trainer.step(1)
    assert trainer.optimizer.num_update == 2


def test_counts_when_the_parameter_with_the_most_updates_is_frozen():
    """MXNet's num_update is the largest count of any one Parameter, so it would stand still for the others."""
    net, trainer = build(
        lambda net: [net, (net[0], lambda t: 1 if t < 3 else 0), (net[1:], lambda t: 0 if t < 3 else 1)],
        lr_scheduler=mx.lr_scheduler.PolyScheduler(10, base_lr=1.0, pwr=1),
    )
    rates = []
    for _ in range(5):
        train(net, trainer, batches(1))
        rates.append(trainer.learning_rate)
    assert trainer.optimizer.num_update == 5
    assert rates == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])


def test_does_not_count_updates_that_amp_skips():
    """Neither the lr_scheduler nor the schedule of a multiplier advances."""
    net, trainer = build(
        lambda net: [net, (net[0], lambda t: 0 if t < 2 else 1)], lr_scheduler=mx.lr_scheduler.FactorScheduler(100)
    )
    trainer._amp_loss_scaler = Overflow([2, 4])
    rounds = [(trainer.optimizer.num_update, changed_by(net, trainer)) for _ in range(5)]
    assert rounds == [(0, ALL_WEIGHTS - FIRST_LAYER), (1, set()), (1, ALL_WEIGHTS), (2, set()), (2, ALL_WEIGHTS)]


def test_a_parameter_unfrozen_late_gets_the_learning_rate_of_the_update():
    """Stock uses that of the previous update if the Parameter comes first and has had fewer updates."""
    rates = {}

    class Spy(mx.optimizer.SGD):
        def _get_lrs(self, indices):
            lrs = super()._get_lrs(indices)
            rates.setdefault(self.num_update, []).extend(lrs)
            return lrs

    scheduler = mx.lr_scheduler.PolyScheduler(10, base_lr=1.0, pwr=1)
    net = mlp()
    optimizer = Spy(lr_scheduler=scheduler)
    optimizer.aggregate_num = 0
    trainer = MultiLRTrainer([net, (net[1], lambda t: 0 if t < 3 else 1)], optimizer)
    train(net, trainer, batches(4))
    assert {t: set(lrs) for t, lrs in rates.items()} == {t: {scheduler(t)} for t in (1, 2, 3, 4)}


def test_does_not_count_a_step_that_fails():
    net, trainer = build(lambda net: [net, (net[0], 0)], lr_scheduler=mx.lr_scheduler.FactorScheduler(100))
    train(net, trainer, batches(2))
    trainer.set_lr_mult({net[0]: 1})
    train(net, trainer, batches(1))
    with pytest.raises(UserWarning, match="has not been updated by backward"):
        trainer.step(4)
    assert trainer.optimizer.num_update == 3


def test_counts_if_layers_that_wait_for_a_backward_pass_are_left_out_in_turn():
    net, trainer = build()
    for layer in (net[0], net[1:]):
        backward(net, *batches(1)[0])
        freeze(layer, within=net)
        unfreeze(layer, within=net)
        trainer.step(4)
    assert trainer.optimizer.num_update == 2


def poly():
    return mx.lr_scheduler.PolyScheduler(20, base_lr=1.0, pwr=1)


@pytest.mark.parametrize("way", ["functions", "another trainer"])
def test_counts_if_functions_or_another_trainer_freeze_the_layers_in_turn(way, tmp_path):
    """MXNet's own count, that of the Parameter with the most updates, would lag."""
    net, trainer = build(lambda net: [net, (net[1], 1)], lr_scheduler=poly())
    other = MultiLRTrainer(net, "sgd")
    turn = {
        "functions": (lambda layer: freeze(layer, within=net), lambda layer: unfreeze(layer, within=net)),
        "another trainer": (lambda layer: other.set_lr_mult({layer: 0}), lambda layer: other.set_lr_mult({layer: 1})),
    }
    frozen, unfrozen = turn[way]
    rates = []
    for layer in (net[0], net[1:], None, net[0], None):
        if layer is not None:
            frozen(layer)
        train(net, trainer, batches(2))
        if layer is not None:
            unfrozen(layer)
        rates.append(trainer.learning_rate)
    assert trainer.optimizer.num_update == 10
    assert rates == pytest.approx([poly()(t) for t in (2, 4, 6, 8, 10)])
    trainer.save_states(tmp_path / "states")
    trainer.load_states(tmp_path / "states")
    assert trainer.optimizer.num_update == 10
