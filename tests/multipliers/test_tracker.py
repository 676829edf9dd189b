"""What was assigned to a Parameter or to the optimizer is checked at the next step."""

import pytest

from multiplier_support import ALL_WEIGHTS, build, changed_by
from support import backward, batches, moved, snapshot, train, weights


@pytest.mark.parametrize("invalid", [-1, float("nan"), float("inf"), "0.1", None])
def test_the_next_step_names_an_invalid_value_on_a_parameter(invalid):
    net, trainer = build()
    net[0].bias.lr_mult = invalid
    before = snapshot(net)
    backward(net, *batches(1)[0])
    with pytest.raises((TypeError, ValueError), match=f"lr_mult of Parameter 'net_dense0_bias' .*got {invalid!r}"):
        trainer.step(4)
    assert not weights(moved(before, snapshot(net)))


def test_different_values_on_the_parameter_and_in_the_table_are_refused():
    net, trainer = build(lambda net: [net, (net[0], 0)])
    train(net, trainer, batches(1))
    net[0].weight.lr_mult = 1
    trainer.optimizer.set_lr_mult({"net_dense0_weight": 0})  # the number that the table holds already
    backward(net, *batches(1)[0])
    with pytest.raises(ValueError, match=r"set to 1 on the Parameter and to 0.*trainer.set_lr_mult"):
        trainer.step(4)
    trainer.set_lr_mult({net[0].weight: 0.5})
    assert changed_by(net, trainer) == ALL_WEIGHTS - {"net_dense0_bias"}
