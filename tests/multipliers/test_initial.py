"""The multipliers that Parameters have before the groups of a new trainer are applied."""

import mxnet as mx
import pytest

from multitrainer import MultiLRTrainer
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
