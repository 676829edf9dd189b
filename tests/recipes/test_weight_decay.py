"""`no_weight_decay` finds biases and the parameters of normalization layers, and nothing else."""

import mxnet as mx
import pytest
from mxnet.gluon import nn

from multitrainer import no_weight_decay
from recipe_support import deep


class TestNoWeightDecay:
    def test_biases_and_normalization_do_not_decay(self):
        net = nn.HybridSequential(prefix="net_")
        with net.name_scope():
            net.add(mx.gluon.rnn.GRU(3, input_size=2), nn.BatchNorm(), nn.LayerNorm(), nn.Dense(2))
        group = no_weight_decay(net)
        assert {name.split("_", 1)[1] for name in group.params} == {
            "gru0_l0_i2h_bias",
            "gru0_l0_h2h_bias",
            "batchnorm0_gamma",
            "batchnorm0_beta",
            "layernorm0_gamma",
            "layernorm0_beta",
            "dense0_bias",
        }
        assert (group.lr_mult, group.wd_mult, group.name) == (None, 0, "no_weight_decay")

    def test_any_target_is_searched(self):
        net = deep()
        assert len(no_weight_decay([net[0], net[1]]).params) == 3
        assert len(no_weight_decay(net.collect_params(".*dense")).params) == 3

    def test_a_target_without_any_is_refused(self):
        with pytest.raises(ValueError, match=r"Dense 'fc' has no parameter whose name ends in bias, gamma, beta"):
            no_weight_decay(nn.Dense(2, use_bias=False, prefix="fc_"))

    def test_statistics_are_left_out_whatever_their_name(self):
        layer = nn.HybridLambda("relu")
        layer.params.get_constant("shift_bias", mx.nd.ones(1))
        net = nn.HybridSequential(prefix="net_")
        net.add(layer, nn.Dense(2, prefix="fc_"))
        assert list(no_weight_decay(net).params) == ["fc_bias"]

    def test_the_group_knows_its_network(self):
        net = deep()
        assert no_weight_decay(net).root is net
        assert no_weight_decay([net]).root is None
