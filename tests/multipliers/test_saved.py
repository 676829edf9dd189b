"""What a checkpoint holds about the multipliers of a Parameter, and how it is restored."""

import pytest

from multiplier_support import build
from multitrainer import MultiLRTrainer
from multitrainer.multipliers.saved import ACTS, ENDED, SavedMultipliers
from support import backward, batches, mlp, train

FIELDS = ("lr_mult", "wd_mult")


def saved(trainer):
    return {param: trainer._multipliers.saved(param) for param in trainer._params}


def restore(trainer, values, num_update=0, was_frozen=False, fields=FIELDS):
    multipliers = trainer._multipliers
    multipliers.restore(multipliers.prepare_restore(values, num_update, was_frozen, fields))


class TestSaved:
    def test_multipliers_and_gradient_request(self):
        net, trainer = build()
        net[0].weight.lr_mult, net[0].weight.wd_mult, net[0].weight.grad_req = 0.5, 2, "add"
        assert trainer._multipliers.saved(net[0].weight) == SavedMultipliers(0.5, 2.0, "add", 0.5, {})

    def test_a_frozen_parameter_has_those_from_before(self):
        net, trainer = build(lambda net: [net, (net[0], 0.5)])
        net[0].weight.grad_req = "add"
        trainer.set_lr_mult({net[0]: 0})
        assert net[0].weight.grad_req == "null"
        assert trainer._multipliers.saved(net[0].weight) == SavedMultipliers(0.0, 1.0, "add", 0.5, {})

    def test_a_schedule_acts_until_it_is_ended(self):
        net, trainer = build(lambda net: [net, (net[0], lambda num_update: 0.5)])
        trainer.set_wd_mult({net[0]: lambda num_update: 1})
        assert trainer._multipliers.saved(net[0].weight).schedules == {"lr_mult": ACTS, "wd_mult": ACTS}
        trainer.set_lr_mult({net[0]: 0.25})
        assert trainer._multipliers.saved(net[0].weight).schedules == {"lr_mult": ENDED, "wd_mult": ACTS}
        assert trainer._multipliers.saved(net[2].weight).schedules == {}
        trainer.set_lr_mult({net[0]: lambda num_update: 0.5})
        assert trainer._multipliers.saved(net[0].weight).schedules == {"lr_mult": ACTS, "wd_mult": ACTS}


class TestRestore:
    def test_sets_multipliers(self):
        net, trainer = build(lambda net: [net, (net[0], 0.5)])
        trainer.set_wd_mult({net[2]: 3})
        values = saved(trainer)
        trainer.set_lr_mult({net: 7})
        trainer.set_wd_mult({net: 7})
        restore(trainer, values)
        assert (net[0].weight.lr_mult, net[2].weight.lr_mult) == (0.5, 1)
        assert (net[0].weight.wd_mult, net[2].weight.wd_mult) == (1, 3)
        assert trainer.optimizer.lr_mult["net_dense0_weight"] == 0.5
        assert saved(trainer) == values

    @pytest.mark.parametrize("field", FIELDS)
    def test_sets_only_the_fields_named(self, field):
        net, trainer = build()
        values = saved(trainer)
        trainer.set_lr_mult({net: 7})
        trainer.set_wd_mult({net: 7})
        restore(trainer, values, fields=(field,))
        assert getattr(net[0].weight, field) == 1
        assert {net[0].weight.lr_mult, net[0].weight.wd_mult} == {1, 7}

    def test_freezes_and_unfreezes(self):
        net, trainer = build(lambda net: [net, (net[0], 0)])
        values = saved(trainer)
        trainer.set_lr_mult({net[0]: 1, net[2]: 0})
        restore(trainer, values)
        assert (net[0].weight.grad_req, net[2].weight.grad_req) == ("null", "write")
        assert saved(trainer) == values

    def test_a_restored_frozen_parameter_gets_back_what_was_saved(self):
        net, trainer = build(lambda net: [net, (net[0], 0.5)])
        net[0].collect_params().setattr("grad_req", "add")
        trainer.set_lr_mult({net[0]: 0})
        values = saved(trainer)
        other, fresh = build()
        restore(fresh, {fresh._params[i]: values[param] for i, param in enumerate(trainer._params)})
        assert saved(fresh)[other[0].weight] == values[net[0].weight]
        fresh.set_lr_mult({other[0]: 1})
        assert other[0].weight.grad_req == "add"

    def test_a_parameter_that_is_frozen_already_gets_back_what_was_saved(self):
        net, trainer = build(lambda net: [net, (net[0], 0.5)])
        values = {**saved(trainer), net[0].weight: SavedMultipliers(0.0, 1.0, "add", 0.125, {})}
        trainer.set_lr_mult({net[0]: 0})
        restore(trainer, values)
        assert trainer._multipliers.saved(net[0].weight) == values[net[0].weight]

    @pytest.mark.parametrize("frozen", [False, True])
    def test_keeps_the_gradient_request_of_the_network(self, frozen):
        net = mlp()
        trainer = MultiLRTrainer(net.collect_params(), "sgd")  # without Blocks, so it switches off no gradient
        net[0].weight.grad_req = "null" if frozen else "write"
        values = {**saved(trainer), net[0].weight: SavedMultipliers(float(not frozen), 1.0, "add", 1.0, {})}
        restore(trainer, values)
        assert net[0].weight.grad_req == ("null" if frozen else "write")

    def test_a_frozen_weight_that_keeps_its_gradient_requests_it_as_saved(self):
        net, trainer = build(lambda net: [net, (net[0].weight, 0)])
        assert net[0].weight.grad_req == "write"
        values = {**saved(trainer), net[0].weight: SavedMultipliers(0.0, 1.0, "add", 0.5, {})}
        restore(trainer, values)
        assert net[0].weight.grad_req == "add"
        assert saved(trainer) == values

    def test_keeps_frozen_layers_if_lr_mult_is_not_restored(self):
        net, trainer = build()
        values = saved(trainer)
        trainer.set_lr_mult({net[0]: 0})
        restore(trainer, values, fields=("wd_mult",))
        assert (net[0].weight.lr_mult, net[0].weight.grad_req) == (0, "null")
        assert trainer._multipliers.was_frozen

    def test_a_schedule_continues_at_the_saved_update(self):
        net, trainer = build(lambda net: [net, (net[0], lambda num_update: 1 / num_update)])
        values = saved(trainer)
        for fields in (FIELDS, ()):
            restore(trainer, values, num_update=7, fields=fields)
            assert net[0].weight.lr_mult == 1 / 8

    def test_an_ended_schedule_stays_ended(self):
        net, trainer = build(lambda net: [net, (net[0], lambda num_update: 1 / num_update)])
        trainer.set_lr_mult({net[0]: 0.5})
        values = saved(trainer)
        other, fresh = build(lambda net: [net, (net[0], lambda num_update: 1 / num_update)])
        restore(fresh, {fresh._params[i]: values[param] for i, param in enumerate(trainer._params)}, num_update=7)
        assert other[0].weight.lr_mult == 0.5
        train(other, fresh, batches(1))
        assert other[0].weight.lr_mult == 0.5

    def test_a_schedule_that_the_trainer_does_not_have_raises(self):
        net, trainer = build()
        values = {**saved(trainer), net[0].weight: SavedMultipliers(1.0, 1.0, "write", 1.0, {"wd_mult": ACTS})}
        with pytest.raises(ValueError, match=r"the wd_mult of net_dense0_weight went by a schedule .*keep='wd_mult'"):
            restore(trainer, values)
        restore(trainer, values, fields=("lr_mult",))

    def test_an_invalid_value_of_a_schedule_raises_before_anything_changes(self):
        net, trainer = build(lambda net: [net, (net[0], lambda num_update: 1 if num_update < 7 else -1)])
        values = {param: was._replace(lr_mult=0.25) for param, was in saved(trainer).items()}
        with pytest.raises(ValueError, match=r"schedule at update 8, .*got -1"):
            restore(trainer, values, num_update=7)
        assert (net[0].weight.lr_mult, net[2].weight.lr_mult) == (1, 1)
        restore(trainer, values, num_update=3)
        assert (net[0].weight.lr_mult, net[2].weight.lr_mult) == (1, 0.25)

    def test_a_multiplier_that_the_optimizer_does_not_support_raises(self):
        net, trainer = build(optimizer="adadelta")
        values = {**saved(trainer), net[0].weight: SavedMultipliers(0.5, 1.0, "write", 0.5, {})}
        with pytest.raises(ValueError, match="would have no effect"):
            restore(trainer, values)

    @pytest.mark.parametrize("was_frozen", [False, True])
    def test_num_update_counts_updates_from_then_on_if_it_did(self, was_frozen):
        net, trainer = build()
        values = saved(trainer)
        trainer.set_lr_mult({net[0]: 0})
        restore(trainer, values, was_frozen=was_frozen)
        assert trainer._multipliers.was_frozen is was_frozen
        backward(net, *batches(1)[0])
        trainer.step(4)
        assert trainer.optimizer.num_update == 1

    @pytest.mark.parametrize("fields", [FIELDS, ("lr_mult",), ("wd_mult",), ()], ids=str)
    def test_looks_at_all_known_blocks_again(self, fields):
        net = mlp()
        trainer = MultiLRTrainer(net.collect_params(), "sgd")
        with pytest.warns(UserWarning, match="statistics still move"):
            trainer.set_lr_mult({net[1].gamma: 0, net[1].beta: 0})
        with pytest.warns(UserWarning, match="statistics still move"):
            restore(trainer, saved(trainer), fields=fields)
