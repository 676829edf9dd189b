"""A multiplier takes effect at the next step, whichever way it was set, and changes no other."""

import mxnet as mx
import pytest
from mxnet.gluon import Trainer

from multiplier_support import ALL_WEIGHTS, FIRST_LAYER, STORES, WAYS_TO_SET, build, changed_by
from multitrainer import MultiLRTrainer
from support import CONTEXTS, backward, batches, mlp, same, train


class TestWaysToSetMultipliers:
    @pytest.mark.parametrize("store", STORES, ids=str)
    @pytest.mark.parametrize("way", WAYS_TO_SET)
    def test_takes_effect_at_the_next_step(self, way, store):
        """The weights move as those of stock Trainer with the same multiplier on the Parameters."""
        net, trainer = build(store=store, momentum=0.9)
        twin = mlp(CONTEXTS if store else None)
        stock = Trainer(twin.collect_params(), "sgd", {"learning_rate": 0.1, "momentum": 0.9}, **(store or {}))
        for multiplier in (1.0, 0.25, 3.0):
            WAYS_TO_SET[way](net, trainer, multiplier)
            twin[0].collect_params().setattr("lr_mult", multiplier)
            ctx = CONTEXTS if store else None
            assert same(train(net, trainer, batches(2), ctx), train(twin, stock, batches(2), ctx))
        assert trainer.learning_rates == pytest.approx({"net lr_mult=3": 0.3, "net lr_mult=1": 0.1})

    @pytest.mark.parametrize("store", STORES, ids=str)
    @pytest.mark.parametrize("way", WAYS_TO_SET)
    def test_0_freezes_and_a_larger_number_unfreezes(self, way, store):
        net, trainer = build(store=store, momentum=0.9, wd=0.1)
        assert changed_by(net, trainer, store) == ALL_WEIGHTS
        WAYS_TO_SET[way](net, trainer, 0)
        assert changed_by(net, trainer, store, count=3) == ALL_WEIGHTS - FIRST_LAYER
        assert net[0].weight.grad_req == "null"
        WAYS_TO_SET[way](net, trainer, 0.5)
        if "trainer" not in way:  # noticed at the next step, after a backward pass without it
            assert changed_by(net, trainer, store) == ALL_WEIGHTS - FIRST_LAYER
        assert changed_by(net, trainer, store) == ALL_WEIGHTS
        assert net[0].weight.grad_req == "write"

    @pytest.mark.parametrize("way", WAYS_TO_SET)
    def test_other_parameters_keep_their_multipliers(self, way):
        net, trainer = build(lambda net: [net, (net[2], 5)])
        WAYS_TO_SET[way](net, trainer, 0.5)
        train(net, trainer, batches(1))
        assert (net[0].weight.lr_mult, net[1].gamma.lr_mult, net[2].weight.lr_mult) == (0.5, 1, 5)

    def test_calls_for_one_parameter_each_add_up(self):
        net, trainer = build()
        trainer.set_lr_mult({"net_dense0_weight": 0})
        trainer.set_lr_mult({"net_dense0_bias": 0})
        trainer.optimizer.set_lr_mult({"net_dense1_bias": 0})
        assert changed_by(net, trainer) == ALL_WEIGHTS - FIRST_LAYER - {"net_dense1_bias"}

    def test_a_call_keeps_what_was_set_in_other_ways_before(self):
        net, trainer = build()
        trainer.optimizer.set_lr_mult({"net_dense0_weight": 0.5})
        net[0].bias.lr_mult = 0
        trainer.set_lr_mult({net[2]: 2})
        assert (net[0].weight.lr_mult, net[0].bias.lr_mult, net[2].bias.lr_mult) == (0.5, 0, 2)
        net[1].gamma.lr_mult = "x"
        with pytest.raises(TypeError, match="'net_batchnorm0_gamma'"):
            trainer.set_lr_mult({net[2]: 3})
        assert net[2].bias.lr_mult == 2

    def test_weight_decay_multipliers_set_in_two_ways(self):
        net, trainer = build(wd=0.5)
        trainer.set_wd_mult({net[0]: 0.5})
        net[2].weight.wd_mult = 3
        train(net, trainer, batches(1))
        assert trainer.optimizer.wd_mult["net_dense0_bias"] == 0.5
        assert trainer.optimizer.wd_mult["net_dense1_weight"] == 3
        assert trainer.optimizer._get_wd(trainer._param2idx["net_dense1_weight"]) == 1.5

    def test_set_lr_mult_replaces_the_value_that_an_error_named(self):
        net, trainer = build()
        net[0].weight.lr_mult = -2
        with pytest.raises(ValueError, match="got -2"):
            trainer.set_lr_mult({net[2]: 1})
        trainer.set_lr_mult({net[0].weight: 1})
        assert changed_by(net, trainer) == ALL_WEIGHTS
        net, trainer = build(optimizer="adadelta")
        trainer.optimizer.set_lr_mult({"net_dense0_weight": 0.5})
        with pytest.raises(ValueError, match="would have no effect"):
            trainer.step(1)
        assert net[0].weight.lr_mult == 1
        trainer.set_lr_mult({"net_dense0_weight": 1})
        assert changed_by(net, trainer) == ALL_WEIGHTS

    def test_one_optimizer_for_two_trainers_is_refused(self):
        optimizer = mx.optimizer.SGD(learning_rate=0.1)
        one, two = mlp(prefix="one_"), mlp(prefix="two_")
        first = MultiLRTrainer([(one, 0.5)], optimizer)
        second = MultiLRTrainer([(two, 2)], optimizer)
        backward(one, *batches(1)[0])
        with pytest.raises(RuntimeError, match="given to another Trainer since"):
            first.step(4)
        train(two, second, batches(1))

    def test_a_new_trainer_for_the_same_network_and_optimizer(self):
        optimizer = mx.optimizer.SGD(learning_rate=0.1)
        net = mlp()
        MultiLRTrainer([net, (net[0], 0.5)], optimizer)
        net[0].weight.lr_mult = 0.25
        train(net, MultiLRTrainer(net, optimizer), batches(1))
        assert net[0].weight.lr_mult == 0.25


class TestAssign:
    """`Multipliers.assign` checks everything before it changes anything."""

    def test_an_error_in_one_field_leaves_the_other_as_it_was(self):
        net, trainer = build()
        with pytest.raises(ValueError, match="got -1"):
            trainer._multipliers.assign({"lr_mult": {net[0].weight: 0.5}, "wd_mult": {net[0].weight: lambda t: -1}})
        assert (net[0].weight.lr_mult, net[0].weight.wd_mult) == (1, 1)
        trainer._multipliers.assign({"lr_mult": {net[0].weight: 0.5}, "wd_mult": {net[0].weight: 2.0}})
        assert (net[0].weight.lr_mult, net[0].weight.wd_mult) == (0.5, 2)

    def test_an_unsupported_multiplier_of_another_layer_raises_too(self):
        net, trainer = build(optimizer="adadelta")
        net[0].weight.lr_mult = 0.5
        with pytest.raises(ValueError, match="of Parameter 'net_dense0_weight' would have no effect"):
            trainer.set_lr_mult({net[2]: 0})
        assert net[2].weight.lr_mult == 1

    def test_follows_the_schedules_for_the_update_that_comes(self):
        net, trainer = build(lambda net: [net, (net[0], lambda t: 1 / t)])
        trainer.optimizer.num_update = 3
        trainer.set_lr_mult({net[2]: 2})
        assert (net[0].weight.lr_mult, net[2].weight.lr_mult) == (1 / 4, 2)
        trainer.optimizer.num_update = 4
        trainer.set_lr_mult({net[2]: lambda t: 2 / t})
        assert (net[0].weight.lr_mult, net[2].weight.lr_mult) == (1 / 5, 2 / 5)

    def test_a_schedule_for_weight_decay_alone_requests_no_gradient(self):
        net, trainer = build(wd=0.1)
        net[0].weight.grad_req = "null"
        trainer.set_wd_mult({net[0]: lambda t: 1 / t})
        assert net[0].weight.grad_req == "null"
        trainer.set_lr_mult({net[0]: lambda t: 1 / t})
        assert net[0].weight.grad_req == "write"

    def test_a_schedule_above_0_requests_the_gradient_that_it_needs(self):
        net, trainer = build(lambda net: [net, (net[0], lambda t: 1)])
        net[0].collect_params().setattr("grad_req", "null")
        train(net, trainer, batches(1))
        assert net[0].weight.grad_req == "write"

    def test_symbols_hold_the_multipliers_that_are_set(self):
        net, trainer = build()
        net.hybridize()
        train(net, trainer, batches(1))
        trainer.set_lr_mult({net[0]: 0.5})
        assert net._cached_graph[1].attr_dict()["net_dense0_weight"]["__lr_mult__"] == "0.5"
        net[0].weight.lr_mult = 0.25
        trainer.step(1, ignore_stale_grad=True)
        assert net._cached_graph[1].attr_dict()["net_dense0_weight"]["__lr_mult__"] == "0.25"


class TestExchange:
    def test_acts_on_assignments_and_leaves_out_frozen_parameters(self):
        net, trainer = build(store={"update_on_kvstore": False})
        backward(net, *batches(1)[0], CONTEXTS)
        net[0].weight.lr_mult = 0
        before = [array.asnumpy() for array in net[0].weight.list_grad()]
        trainer.allreduce_grads()
        assert all((array.asnumpy() == was).all() for array, was in zip(net[0].weight.list_grad(), before))
        one, two = (array.asnumpy() for array in net[2].weight.list_grad())
        assert (one == two).all()
        assert trainer.optimizer.num_update == 0
        trainer.update(4)
        assert trainer.optimizer.num_update == 1


class TestUseOptimizer:
    def test_multipliers_and_count_go_over_to_it(self):
        net, trainer = build(lambda net: [net, (net[0], 0.5)])
        other = mx.optimizer.SGD(param_dict=dict(enumerate(trainer._params)))
        other.num_update = 6
        trainer._multipliers.use_optimizer(other)
        assert other.lr_mult["net_dense0_weight"] == 0.5
        trainer.set_lr_mult({net[0]: lambda t: 1 / t})
        assert net[0].weight.lr_mult == 1 / 7
        assert other.lr_mult["net_dense0_weight"] == 1 / 7


def test_was_frozen_from_the_first_freezing_on():
    net, trainer = build()
    assert not trainer._multipliers.was_frozen
    trainer.set_lr_mult({net[0]: 0})
    trainer.set_lr_mult({net[0]: 1})
    assert trainer._multipliers.was_frozen
    assert build(lambda net: [net, (net[0], 0)])[1]._multipliers.was_frozen


def test_a_step_without_schedules_or_assignments_writes_nothing():
    net, trainer = build(lambda net: [net, (net[0], 0)])
    tables = trainer.optimizer.lr_mult, trainer.optimizer.wd_mult
    train(net, trainer, batches(2))
    assert trainer.optimizer.lr_mult is tables[0]
    assert trainer.optimizer.wd_mult is tables[1]


def test_a_schedule_that_failed_is_evaluated_again_at_the_next_step():
    failing = [True]

    def schedule(num_update):
        if num_update > 1 and failing:
            raise KeyError(num_update)
        return 1 / num_update

    net, trainer = build(lambda net: [net, (net[0], schedule)])
    train(net, trainer, batches(1))
    assert net[0].weight.lr_mult == 1
    with pytest.raises(RuntimeError, match=r"KeyError\(2\)"):
        train(net, trainer, batches(1))
    failing.clear()
    train(net, trainer, batches(1))
    assert net[0].weight.lr_mult == 1 / 3
    assert trainer.optimizer.num_update == 2


class TestHeld:
    def test_schedules_stand_still_and_then_go_on(self):
        net, asked = mlp(), []
        schedule = lambda num_update: asked.append(num_update) or 1 / num_update  # noqa: E731
        trainer = MultiLRTrainer([net, (net[0], schedule)], "sgd", {"learning_rate": 0.1})
        train(net, trainer, batches(1))
        asked.clear()
        with trainer._multipliers.held():
            train(net, trainer, batches(3))
            assert net[0].weight.lr_mult == 0.5
        assert asked == []
        train(net, trainer, batches(1))
        assert net[0].weight.lr_mult == 1 / 6

    def test_what_was_assigned_before_takes_effect_first(self):
        net = mlp()
        trainer = MultiLRTrainer(net, "sgd")
        net[0].weight.lr_mult = net[0].bias.lr_mult = 0
        with trainer._multipliers.held():
            assert net[0].weight.grad_req == "null"

    def test_they_go_on_after_an_error(self):
        net = mlp()
        trainer = MultiLRTrainer([net, (net[0], lambda num_update: num_update)], "sgd")
        schedules = trainer._multipliers.schedules

        def fail():
            with trainer._multipliers.held():
                assert trainer._multipliers.schedules["lr_mult"] == {}
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert trainer._multipliers.schedules == schedules
        assert schedules["lr_mult"]


def test_known_parameters_are_those_of_the_trainer_and_of_its_blocks():
    net = mlp()
    trainer = MultiLRTrainer([net[0], net[0].bias], "sgd")
    assert set(trainer._multipliers.known_parameters()) == set(net[0].collect_params().values())
    trainer.set_lr_mult({net[0]: 0.5})
    net[0].register_child(mx.gluon.nn.BatchNorm(in_channels=4, prefix="extra_"))
    names = [param.name for param in trainer._multipliers.known_parameters()]
    assert "extra_running_mean" in names
    assert len(names) == len(set(names)) == 6


def test_collecting_is_a_step_that_counts_no_update():
    net, trainer = build(lambda net: [net, (net[0], lambda num_update: float(num_update > 1))])
    backward(net, *batches(1)[0])
    trainer.optimizer.set_lr_mult({net[-1].weight.name: 0.5})
    params = trainer._params
    with trainer._multipliers.collect(trainer):
        trained = {param.name for param in trainer._params if param.grad_req != "null"}
    assert trained == ALL_WEIGHTS - FIRST_LAYER
    assert trainer._params is params
    assert net[-1].weight.lr_mult == 0.5
    assert trainer.optimizer.num_update == 0
    assert net[0].weight.lr_mult == 0


def test_parameters_cannot_be_added_while_multipliers_are_held():
    _, trainer = build(lambda net: [net])
    new = mx.gluon.nn.Dense(1, in_units=2, prefix="new_")
    new.initialize()
    with trainer._multipliers.held(), pytest.raises(ValueError, match="'new_bias'"):
        trainer.add(new)
    assert new.weight._trainer is None
    trainer.add(new)
    assert new.weight._trainer is trainer
