"""The multipliers that Parameters have before the groups of a new trainer are applied, and the check of all of them."""

import mxnet as mx
import pytest
from mxnet.gluon import SymbolBlock

from multitrainer import MultiLRTrainer, ParamGroup
from multitrainer.groups import resolve
from multitrainer.multipliers.initial import inherited_multipliers
from support import mlp


def test_learning_rate_multipliers_of_a_ready_made_optimizer_are_kept():
    """Stock Gluon ignores them. A group overrides them."""
    net = mlp()
    optimizer = mx.optimizer.SGD(learning_rate=0.1)
    optimizer.set_lr_mult({"net_dense0_weight": 0.5, "net_dense1_weight": 0.5})
    MultiLRTrainer([net, (net[2], 3)], optimizer)
    assert (net[0].weight.lr_mult, net[2].weight.lr_mult) == (0.5, 3)
    optimizer = mx.optimizer.SGD()
    optimizer.set_lr_mult({"conv0_weight": 0.5})
    with pytest.raises(ValueError, match=r"optimizer.lr_mult.*'conv0_weight'"):
        MultiLRTrainer(net, optimizer)


def test_weight_decay_multipliers_of_a_ready_made_optimizer_are_kept():
    net = mlp()
    optimizer = mx.optimizer.SGD(wd=0.1)
    optimizer.set_wd_mult({"net_dense0_weight": 0})
    MultiLRTrainer(net, optimizer)
    assert (net[0].weight.wd_mult, net[2].weight.wd_mult) == (0, 1)


def imported():
    weight = mx.sym.var("fc_weight", lr_mult=0.5, wd_mult=0.25)
    bias = mx.sym.var("fc_bias", lr_mult=2)
    data = mx.sym.var("data")
    block = SymbolBlock(mx.sym.FullyConnected(data, weight, bias, num_hidden=1), data)
    block.initialize()
    return block


def test_a_ready_made_optimizer_overrides_an_imported_symbol():
    block = imported()
    weight, bias = (block.collect_params()[name] for name in ("fc_weight", "fc_bias"))
    optimizer = mx.optimizer.SGD()
    assert inherited_multipliers(resolve(block), optimizer) == {
        "lr_mult": {weight: 0.5, bias: 2},
        "wd_mult": {weight: 0.25},
    }
    optimizer.set_lr_mult({"fc_weight": 3})
    found = inherited_multipliers(resolve(block), optimizer)
    assert found == {"lr_mult": {weight: 3, bias: 2}, "wd_mult": {weight: 0.25}}


class TestUnsupported:
    """AdaDelta has no learning rate: it accepts 0 and 1 only, wherever a multiplier comes from."""

    def refused(self, net, spec, name):
        with pytest.raises(ValueError, match=f"of Parameter '{name}' would have no effect: AdaDelta"):
            MultiLRTrainer(spec, "adadelta")
        assert all(param._trainer is None for param in net.collect_params().values())

    def test_multiplier_of_a_group(self):
        net = mlp()
        self.refused(net, [net, (net[2].weight, 0.5)], "net_dense1_weight")
        self.refused(net, [net, (net[2].weight, lambda num_update: 0.5)], "net_dense1_weight")
        MultiLRTrainer([net, (net[2], 0)], "adadelta")

    def test_multiplier_on_a_parameter_unless_a_group_overrides_it(self):
        net = mlp()
        net[0].bias.lr_mult = 0.5
        self.refused(net, net, "net_dense0_bias")
        MultiLRTrainer([(net, 1)], "adadelta")
        assert net[0].bias.lr_mult == 1

    def test_multiplier_of_an_imported_symbol_unless_a_group_overrides_it(self):
        block = imported()
        self.refused(block, block, "fc_weight")
        MultiLRTrainer([(block, 1)], "adadelta")

    def test_weight_decay_is_supported(self):
        net = mlp()
        MultiLRTrainer([net, ParamGroup(net[2], wd_mult=0.5)], "adadelta")
        assert net[2].weight.wd_mult == 0.5


@pytest.mark.parametrize("ready_made", [False, True])
def test_schedules_are_first_evaluated_for_the_next_update(ready_made):
    asked = []

    def schedule(num_update):
        asked.append(num_update)
        return 1 / num_update

    net = mlp()
    optimizer = mx.optimizer.SGD(begin_num_update=7) if ready_made else "sgd"
    MultiLRTrainer([net, (net[0], schedule)], optimizer, None if ready_made else {"begin_num_update": 7})
    assert set(asked) == {8}
    assert net[0].weight.lr_mult == 1 / 8
    MultiLRTrainer([net, (net[0], schedule)], "sgd")
    assert set(asked) == {8, 1}
    assert net[0].weight.lr_mult == 1
