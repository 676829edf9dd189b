"""A schedule gives the multiplier of the update that comes, until another multiplier ends it."""

import gc

import mxnet as mx
import pytest
from mxnet.gluon import Trainer

from multiplier_support import ALL_WEIGHTS, STORES, WAYS_TO_SET, build, changed_by
from multitrainer import MultiLRTrainer, ParamGroup
from multitrainer.multipliers.schedules import Schedules, evaluate
from support import CONTEXTS, backward, batches, mlp, moved, same, snapshot, train, weights


class TestSchedules:
    def test_gives_the_multiplier_of_the_next_update(self):
        seen = []

        def schedule(num_update):
            seen.append(num_update)
            return 1 / num_update

        net, trainer = build(lambda net: [net, (net[0], schedule)])
        for t in range(1, 4):
            assert net[0].weight.lr_mult == 1 / t
            assert trainer.learning_rates == pytest.approx({"0": 0.1 / t, "net": 0.1})
            train(net, trainer, batches(1))
        assert seen[-1] == 4

    @pytest.mark.parametrize("store", STORES, ids=str)
    def test_moves_weights_as_the_same_numbers_do(self, store):
        net, trainer = build(lambda net: [net, (net[0], lambda t: 0.5**t)], store=store)
        twin, by_hand = build(store=store)
        for t, batch in enumerate(batches(4), 1):
            by_hand.set_lr_mult({twin[0]: 0.5**t})
            ctx = CONTEXTS if store else None
            assert same(train(net, trainer, [batch], ctx), train(twin, by_hand, [batch], ctx))

    def test_is_evaluated_for_the_same_updates_as_the_lr_scheduler(self):
        asked = []

        class Scheduler(mx.lr_scheduler.LRScheduler):
            def __call__(self, num_update):
                asked.append(num_update)
                return 0.1

        multiplied = []
        net, trainer = build(
            lambda net: [net, (net[0], lambda t: multiplied.append(t) or 1)], lr_scheduler=Scheduler(base_lr=0.1)
        )
        train(net, trainer, batches(3))
        assert sorted(set(asked)) == [1, 2, 3]
        assert sorted(set(multiplied)) == [1, 2, 3, 4]

    def test_lr_scheduler_as_multiplier(self):
        halves = mx.lr_scheduler.FactorScheduler(step=2, factor=0.5, base_lr=1)
        net, trainer = build(lambda net: [net, (net[0], halves)])
        multipliers = []
        for _ in range(6):
            multipliers.append(net[0].weight.lr_mult)
            train(net, trainer, batches(1))
        assert multipliers == [1, 1, 0.5, 0.5, 0.25, 0.25]

    @pytest.mark.parametrize("store", STORES, ids=str)
    @pytest.mark.parametrize("hybridize", [None, {}, {"static_alloc": True, "static_shape": True}], ids=str)
    def test_unfreezes_at_the_update_of_its_first_number_above_0(self, store, hybridize):
        net, trainer = build(lambda net: [net, (net[:2], lambda t: 0 if t < 3 else 0.5)], store=store)
        if hybridize is not None:
            net.hybridize(**hybridize)
        late = {name for name in ALL_WEIGHTS if "dense1" not in name}
        assert [changed_by(net, trainer, store) for _ in range(4)] == [ALL_WEIGHTS - late] * 2 + [ALL_WEIGHTS] * 2

    def test_loading_states_continues_it_at_the_update_in_the_file(self, tmp_path):
        net, trainer = build(lambda net: [net, (net[0], lambda t: 1 / t)])
        train(net, trainer, batches(3))
        trainer.save_states(str(tmp_path / "states"))
        other, fresh = build(lambda net: [net, (net[0], lambda t: 1 / t)])
        fresh.load_states(str(tmp_path / "states"))
        assert other[0].weight.lr_mult == 0.25

    def test_a_number_set_in_any_way_ends_it(self):
        for way in WAYS_TO_SET:
            net, trainer = build(lambda net: [net, (net[0], lambda t: 0.5)])
            WAYS_TO_SET[way](net, trainer, 0.25)
            train(net, trainer, batches(2))
            assert net[0].weight.lr_mult == 0.25, way

    def test_set_lr_mult_replaces_a_number_by_a_schedule_and_back(self):
        net, trainer = build()
        trainer.set_lr_mult({net[0]: lambda t: t})
        train(net, trainer, batches(2))
        assert net[0].weight.lr_mult == 3
        trainer.set_lr_mult({net[0]: 2})
        train(net, trainer, batches(2))
        assert net[0].weight.lr_mult == 2

    def test_wd_mult_schedule(self):
        net, trainer = build(lambda net: [net, ParamGroup(net[0], wd_mult=lambda t: 1 / t)], wd=0.1)
        train(net, trainer, batches(3))
        assert net[0].weight.wd_mult == 0.25

    def test_an_invalid_value_during_training_is_named(self):
        net, trainer = build(lambda net: [net, (net[0], lambda t: 1 if t < 3 else -1)])
        with pytest.raises(ValueError, match=r"'net_dense0_\w+', from its schedule at update 3, .*got -1"):
            train(net, trainer, batches(3))

    def test_one_that_raises_is_named_before_the_update_it_was_evaluated_for(self):
        net, trainer = build(lambda net: [net, (net[0], lambda t: {1: 1, 2: 2}[t])])
        train(net, trainer, batches(2))
        before = snapshot(net)
        with pytest.raises(RuntimeError, match=r"'net_dense0_\w+', from its schedule at update 3, .*KeyError\(3\)"):
            train(net, trainer, batches(1))
        assert not weights(moved(before, snapshot(net)))
        trainer.set_lr_mult({net[0]: 1})
        assert changed_by(net, trainer) == ALL_WEIGHTS

    def test_loading_a_file_of_stock_keeps_what_was_assigned_before(self, tmp_path):
        net, trainer = build(lambda net: [net, (net[0], 0), (net[2], lambda t: 1)])
        train(net, trainer, batches(1))
        Trainer.save_states(trainer, str(tmp_path / "states"))  # a file of stock holds no multipliers
        net[0].collect_params().setattr("lr_mult", 1)
        net[2].collect_params().setattr("lr_mult", 0.25)
        trainer.optimizer.set_lr_mult({"net_batchnorm0_gamma": 0.5})
        trainer.load_states(str(tmp_path / "states"), allow_pickle=True)
        assert (net[0].weight.lr_mult, net[1].gamma.lr_mult, net[2].weight.lr_mult) == (1, 0.5, 0.25)
        assert changed_by(net, trainer) == ALL_WEIGHTS


class TestTwoTrainers:
    def build(self):
        net, first = build(lambda net: [net, (net[0], lambda t: 1 / t)])
        second = MultiLRTrainer([net, (net[0], lambda t: 2 / t)], "sgd", {"learning_rate": 0.1})
        return net, first, second

    def test_the_first_raises_if_the_second_has_a_schedule_too(self):
        net, first, second = self.build()
        train(net, second, batches(2))
        before = snapshot(net)
        backward(net, *batches(1)[0])
        with pytest.raises(RuntimeError, match=r"'net_dense0_\w+' has a schedule in this trainer.*second trainer"):
            first.step(4)
        assert not weights(moved(before, snapshot(net)))

    def test_a_number_in_either_trainer_resolves_it(self):
        net, first, second = self.build()
        first.set_lr_mult({net[0]: 0.5})
        train(net, first, batches(1))
        train(net, second, batches(1))
        assert net[0].weight.lr_mult == 0.5
        net, first, second = self.build()
        second.set_lr_mult({net[0]: 0.5})
        train(net, second, batches(1))
        train(net, first, batches(1))
        assert net[0].weight.lr_mult == 0.5

    def test_a_trainer_that_makes_no_step_does_not_matter(self):
        net, _, second = self.build()
        train(net, second, batches(3))
        assert net[0].weight.lr_mult == 2 / 4

    def test_the_first_can_still_set_the_others(self):
        """The check leaves out only what the call itself replaces."""
        net, first, _ = self.build()
        with pytest.raises(RuntimeError, match="has a schedule in this trainer"):
            first.set_lr_mult({net[0].weight: 0.5})
        first.set_lr_mult({net[0]: 0.5})
        net, first, _ = self.build()
        with pytest.raises(RuntimeError, match="has a schedule in this trainer"):
            first.set_wd_mult({net[0]: 0.5})

    def test_the_first_may_be_given_its_schedule_again(self):
        net, first, second = self.build()
        first.set_lr_mult({net[0]: lambda t: 3 / t})
        train(net, first, batches(1))
        assert net[0].weight.lr_mult == 3 / 2
        with pytest.raises(RuntimeError, match="has a schedule in this trainer"):
            second.step(1)

    def test_a_deleted_second_trainer_does_not_matter(self):
        """Its last number counts as an assignment, which ends the schedule of the first."""
        net, first, second = self.build()
        for param in net.collect_params().values():
            param._trainer = first
        del second
        gc.collect()
        train(net, first, batches(1))
        assert net[0].weight.lr_mult == 2

    def test_schedules_of_different_fields_or_layers_do_not_conflict(self):
        net, first = build(lambda net: [net, (net[0], lambda t: 1 / t)])
        second = MultiLRTrainer(
            [net, ParamGroup(net[0], wd_mult=lambda t: 2 / t), (net[2], lambda t: 3 / t)], "sgd", {"learning_rate": 0.1}
        )
        train(net, first, batches(1))
        train(net, second, batches(1))
        assert (net[0].weight.lr_mult, net[0].weight.wd_mult, net[2].weight.lr_mult) == (1 / 2, 2 / 2, 3 / 2)


class TestEvaluate:
    def test_numbers_stay(self):
        one, two = mlp(batchnorm=False)
        numbers = {one.weight: 0.5, two.weight: 0}
        assert evaluate(numbers, "lr_mult", 3) == numbers
        mixed = {**numbers, one.bias: lambda num_update: 1 / num_update}
        assert evaluate(mixed, "lr_mult", 4) == {**numbers, one.bias: 1 / 4}

    def test_a_shared_schedule_is_evaluated_once(self):
        asked = []

        def schedule(num_update):
            asked.append(num_update)
            return 0.5

        layer = mlp()[0]
        found = evaluate({layer.weight: schedule, layer.bias: schedule}, "lr_mult", 3)
        assert found == {layer.weight: 0.5, layer.bias: 0.5}
        assert asked == [3]

    @pytest.mark.parametrize(
        ("schedule", "error", "message"),
        [
            (lambda num_update: {}[num_update], RuntimeError, r"update 3, cannot be evaluated: KeyError\(3\)"),
            (lambda num_update: -1, ValueError, "update 3, must be a finite number >= 0, got -1"),
            (lambda num_update: "x", TypeError, "update 3, must be a number >= 0"),
            (lambda num_update: lambda _: 1, TypeError, "update 3, must be a number, got another schedule"),
        ],
    )
    def test_errors_name_the_parameter(self, schedule, error, message):
        weight = mlp()[0].weight
        with pytest.raises(error, match="^wd_mult of Parameter 'net_dense0_weight', from its schedule at " + message):
            evaluate({weight: schedule}, "wd_mult", 3)


def test_schedules_act_until_they_are_ended():
    schedules, (one, two) = Schedules(), mlp(batchnorm=False)
    assert not schedules
    assert schedules.evaluated_for is None
    schedules.assign("lr_mult", {one.weight: max, two.weight: 0.5})
    assert schedules
    assert schedules.acting == {"lr_mult": {one.weight: max}, "wd_mult": {}}
    schedules.assign("wd_mult", {two.weight: max})
    schedules.end("lr_mult", [one.weight, two.weight])
    assert schedules.acting == {"lr_mult": {}, "wd_mult": {two.weight: max}}
    assert schedules.ended == {"lr_mult": {one.weight}, "wd_mult": set()}
    schedules.assign("lr_mult", {one.weight: max})
    assert schedules.ended == {"lr_mult": set(), "wd_mult": set()}
