"""The tracker finds what was assigned to Parameters or to the optimizer's table, and checks it."""

import mxnet as mx
import pytest
from mxnet.gluon import Trainer

from multiplier_support import ALL_WEIGHTS, build, changed_by
from multitrainer.multipliers.tracker import ChangeTracker
from support import backward, batches, mlp, moved, snapshot, train, weights

NOTHING = {"lr_mult": {}, "wd_mult": {}}


class TestChanges:
    def build(self):
        net = mlp(batchnorm=False)
        trainer = Trainer(net.collect_params(), "sgd")
        return net, trainer.optimizer, ChangeTracker(trainer._params, trainer._params, [trainer.optimizer])

    def test_are_none_at_first(self):
        net, _, tracker = self.build()
        assert tracker.changes({}) == NOTHING
        assert tracker.changed_parameters() == []
        assert tracker.previous("lr_mult") == dict.fromkeys(net.collect_params().values(), 1.0)

    def test_on_parameters(self):
        net, optimizer, tracker = self.build()
        net[0].weight.lr_mult, net[1].bias.wd_mult = 0.5, 0.25
        assert tracker.changes({}) == {"lr_mult": {net[0].weight: 0.5}, "wd_mult": {net[1].bias: 0.25}}
        assert tracker.changed_parameters() == [net[0].weight, net[1].bias]
        assert tracker.previous("lr_mult")[net[0].weight] == 1
        tracker.remember()
        assert tracker.changes({}) == NOTHING
        assert tracker.changed_parameters() == []
        assert tracker.previous("lr_mult")[net[0].weight] == 0.5
        assert optimizer.lr_mult["net_dense0_weight"] == 0.5

    def test_in_the_table(self):
        net, optimizer, tracker = self.build()
        optimizer.set_lr_mult({"net_dense0_weight": 0.5})
        optimizer.wd_mult["net_dense1_bias"] = 0.25
        assert tracker.changes({}) == {"lr_mult": {net[0].weight: 0.5}, "wd_mult": {net[1].bias: 0.25}}
        assert tracker.changed_parameters() == []  # the numbers are not on the Parameters yet

    def test_the_same_value_on_a_parameter_and_in_the_table(self):
        net, optimizer, tracker = self.build()
        net[0].weight.lr_mult = 0.5
        optimizer.set_lr_mult({"net_dense0_weight": 0.5})
        assert tracker.changes({})["lr_mult"] == {net[0].weight: 0.5}

    def test_in_the_tables_of_several_optimizers(self):
        net, optimizer, _ = self.build()
        params, other = list(net.collect_params().values()), mx.optimizer.Adam()
        other.param_dict = dict(enumerate(params))
        tracker = ChangeTracker(params, params, [optimizer, other])
        optimizer.set_lr_mult({"net_dense0_weight": 0.5})
        other.set_lr_mult({"net_dense1_bias": 0.25})
        assert tracker.changes({})["lr_mult"] == {net[0].weight: 0.5, net[1].bias: 0.25}
        other.set_lr_mult({"net_dense0_weight": 0.25})
        with pytest.raises(ValueError, match=r"'net_dense0_weight' was set to 0\.5 .* and to 0\.25 by"):
            tracker.changes({})
        tracker.remember()
        assert optimizer.lr_mult == other.lr_mult == dict.fromkeys(net.collect_params(), 1.0)

    def test_different_values_on_a_parameter_and_in_the_table_raise(self):
        net, optimizer, tracker = self.build()
        net[0].weight.lr_mult, net[0].bias.lr_mult = 0.5, 0.125
        optimizer.set_lr_mult({"net_dense0_weight": 0.25})
        with pytest.raises(ValueError, match=r"'net_dense0_weight' was set to 0\.5 on the Parameter and to 0\.25 by"):
            tracker.changes({"lr_mult": [net[0].bias]})
        overridden = {"lr_mult": [net[0].weight]}
        assert tracker.changes(overridden) == {"lr_mult": {net[0].bias: 0.125}, "wd_mult": {}}

    def test_an_invalid_value_raises_unless_it_is_overridden(self):
        net, _, tracker = self.build()
        net[0].weight.wd_mult = -1
        with pytest.raises(ValueError, match=r"wd_mult of Parameter 'net_dense0_weight' .*got -1"):
            tracker.changes({"lr_mult": [net[0].weight]})
        assert tracker.changes({"wd_mult": [net[0].weight]}) == NOTHING


@pytest.mark.parametrize("invalid", [-1, float("nan"), float("inf"), "0.1", None])
def test_the_next_step_names_an_invalid_value_on_a_parameter(invalid):
    net, trainer = build()
    net[0].bias.lr_mult = invalid
    before = snapshot(net)
    backward(net, *batches(1)[0])
    with pytest.raises((TypeError, ValueError), match=f"lr_mult of Parameter 'net_dense0_bias' .*got {invalid!r}"):
        trainer.step(4)
    assert not weights(moved(before, snapshot(net)))


def test_the_next_step_raises_if_the_table_repeats_its_old_number():
    net, trainer = build(lambda net: [net, (net[0], 0)])
    train(net, trainer, batches(1))
    net[0].weight.lr_mult = 1
    trainer.optimizer.set_lr_mult({"net_dense0_weight": 0})  # the number that the table holds already
    backward(net, *batches(1)[0])
    with pytest.raises(ValueError, match=r"set to 1 on the Parameter and to 0.*trainer.set_lr_mult"):
        trainer.step(4)
    trainer.set_lr_mult({net[0].weight: 0.5})
    assert changed_by(net, trainer) == ALL_WEIGHTS - {"net_dense0_bias"}
