"""`freeze` and `unfreeze`, for code without a trainer and beside one."""

import copy

import pytest
from mxnet.gluon import nn

from freezing_support import build_gluoncv, image_batch, train_step
from multitrainer import MultiLRTrainer, freeze, unfreeze
from support import moved, snapshot


class TestFreezeAndUnfreeze:
    @pytest.mark.parametrize("request_", ["write", "add"])
    def test_unfreeze_restores_multiplier_and_gradient_request(self, request_):
        layer = nn.Dense(2, in_units=2)
        layer.weight.grad_req = request_
        layer.weight.lr_mult = 3
        layer.bias.grad_req = "null"
        freeze(layer)
        freeze(layer)
        assert (layer.weight.lr_mult, layer.weight.grad_req, layer.bias.lr_mult) == (0, "null", 0)
        unfreeze(layer)
        assert (layer.weight.lr_mult, layer.weight.grad_req) == (3, request_)
        assert (layer.bias.lr_mult, layer.bias.grad_req) == (1, "null")

    def test_unfreeze_changes_nothing_that_was_not_frozen(self):
        layer = nn.Dense(2, in_units=2)
        layer.weight.grad_req = "add"
        layer.weight.lr_mult = 3
        unfreeze(layer)
        assert (layer.weight.lr_mult, layer.weight.grad_req) == (3, "add")

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (lambda net: ("net",), TypeError, "freeze: 'net' is .*target"),
            (lambda net: (nn.Flatten(),), ValueError, "holds no parameter that could train"),
            (lambda net: (net, 3), TypeError, "within must be the Block around"),
            (lambda net: (net, nn.Dense(1, in_units=1)), ValueError, "does not contain Dense"),
        ],
    )
    def test_invalid_arguments(self, arguments, error, message):
        net = nn.Dense(1, in_units=1)
        with pytest.raises(error, match=message):
            freeze(*arguments(net))
        assert (net.weight.lr_mult, net.weight.grad_req) == (1, "write")

    def test_a_new_trainer_keeps_frozen_layers_frozen(self):
        net = build_gluoncv("mobilenetv2_0.25")
        freeze(net.features, within=net)
        trainer = MultiLRTrainer([net, (net.output, 2)], "sgd", {"learning_rate": 0.1})
        x, y = image_batch()
        net(x)
        before = snapshot(net)
        train_step(net, trainer, x, y)
        assert moved(before, snapshot(net)) == set(net.output.collect_params().keys())

    def test_during_training_with_a_trainer(self):
        net = build_gluoncv("mobilenetv2_0.25")
        net.hybridize()
        x, y = image_batch()
        trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.01, "momentum": 0.9})
        train_step(net, trainer, x, y)
        freeze(net.features, within=net)
        before = snapshot(net)
        train_step(net, trainer, x, y)
        assert moved(before, snapshot(net)) == set(net.output.collect_params().keys())
        unfreeze(net.features, within=net)
        train_step(net, trainer, x, y)
        assert set(moved(before, snapshot(net))) == set(before)

    def test_a_copy_of_a_frozen_network_can_be_unfrozen(self):
        net = nn.Sequential()
        net.add(nn.Dense(2, in_units=2), nn.BatchNorm(in_channels=2))
        net.initialize()
        freeze(net)
        twin = copy.deepcopy(net)
        unfreeze(twin)
        assert twin[0].weight.grad_req == "write"
        assert not twin[1]._kwargs["use_global_stats"]
        assert net[1]._kwargs["use_global_stats"]
