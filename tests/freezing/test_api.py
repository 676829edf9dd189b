"""`freeze` and `unfreeze`, for code without a trainer and beside one."""

import copy
import warnings

import mxnet as mx
import pytest
from mxnet import autograd
from mxnet.gluon import Trainer, nn

from freezing_support import build_gluoncv, image_batch, train_step
from multitrainer import MultiLRTrainer, freeze, unfreeze
from support import backward, batches, mlp, moved, snapshot, train


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
            (lambda net: ("net",), TypeError, "freeze: 'net' is not a target"),
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


class TestTargets:
    def build(self):
        net = nn.HybridSequential(prefix="net_")
        with net.name_scope():
            net.add(nn.Dense(3, in_units=2), nn.BatchNorm(in_channels=3), nn.Dense(1, in_units=3))
        net.initialize()
        return net

    def test_statistics_and_constants_alone_cannot_be_frozen(self):
        net = self.build()
        for function in (freeze, unfreeze):
            with pytest.raises(ValueError, match=rf"^{function.__name__}: .* holds no parameter that could train"):
                function([net[1].running_mean, net[1].running_var])
        assert net[1].running_mean.lr_mult == 1

    def test_within_must_contain_them(self):
        net, other = self.build(), nn.Dense(1, in_units=1, prefix="other_")
        with pytest.raises(
            ValueError, match=r"within \(Dense 'other'\) does not contain .*'net'.*: net_\w+, net_\w+, net"
        ):
            freeze(net, within=other)
        with pytest.raises(ValueError, match=r"within .* does not contain .*: other_bias$"):
            freeze([net, other.bias], within=net)
        assert net[0].weight.lr_mult == 1

    @pytest.mark.parametrize("target", [lambda net: net[0], lambda net: [net[0], net[1]], lambda net: net[:2]])
    def test_traces_of_the_network_around_a_target_are_made_again(self, target):
        net = self.build()
        net.hybridize()
        x = mx.nd.array([[1, 2], [2, -3], [0, 1]])
        with autograd.record():
            net(x)
        freeze(target(net), within=net)
        with autograd.record():
            value = net(x).sum()
        value.backward()
        assert net[0].weight.grad_req == "null"
        assert abs(net[2].weight.grad().asnumpy()).max() > 0

    def test_a_parameter_of_an_unknown_block_is_switched_off(self):
        """A stock Trainer leaves it out by that alone."""
        net = self.build()
        freeze(net[2].collect_params())
        assert (net[2].weight.grad_req, net[2].bias.grad_req) == ("null", "null")


class TestWarning:
    def test_names_weights_whose_bias_trains(self):
        net = nn.HybridSequential(prefix="net_")
        with net.name_scope():
            net.add(*(nn.Dense(2, in_units=2) for _ in range(4)))
        weights = [layer.weight for layer in net]
        names = "net_dense0_weight, net_dense1_weight, net_dense2_weight"
        with pytest.warns(UserWarning, match=rf"the gradient of {names}, \.\.\. stays on"):
            freeze(weights, within=net)
        unfreeze(weights, within=net)
        with pytest.warns(UserWarning, match=f"the gradient of {names} stays on"):
            freeze(weights[:3], within=net)

    @pytest.mark.parametrize("case", ["whole layer", "MultiLRTrainer"])
    def test_is_not_given_if_the_parameters_stay(self, case):
        layer = nn.Dense(2, in_units=2)
        layer.initialize()
        if case == "MultiLRTrainer":
            MultiLRTrainer(layer, "sgd")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            freeze(layer if case == "whole layer" else layer.weight, within=layer)

    def test_is_given_for_a_stock_trainer(self):
        layer = nn.Dense(2, in_units=2)
        layer.initialize()
        Trainer(layer.collect_params(), "sgd")
        with pytest.warns(UserWarning, match="stays on"):
            freeze(layer.weight, within=layer)


class TestBetweenBackwardAndStep:
    """As under a trainer: gradients of a pass before the call are not used for what it unfreezes."""

    @pytest.mark.parametrize("pending", [False, True])
    def test_unfrozen_parameters_wait_for_the_next_backward_pass(self, pending):
        net = mlp()
        trainer = MultiLRTrainer([net, (net[0], 0)], "sgd", {"learning_rate": 0.1})
        train(net, trainer, batches(1))
        backward(net, *batches(1)[0])
        if not pending:
            trainer.step(4)
        unfreeze(net[0], within=net)
        if not pending:
            backward(net, *batches(1)[0])
        before = snapshot(net)
        trainer.step(4)
        assert ("net_dense0_weight" in moved(before, snapshot(net))) is not pending

    def test_a_gradient_that_the_user_switched_off_is_requested(self):
        layer = nn.Dense(2, in_units=2)
        layer.collect_params().setattr("grad_req", "null")
        unfreeze(layer)
        assert layer.weight.grad_req == "write"
        layer.weight.grad_req, layer.weight.lr_mult = "null", 0
        unfreeze(layer)
        assert (layer.weight.grad_req, layer.weight.lr_mult) == ("write", 1)

    def test_exported_symbols_hold_the_multipliers(self):
        net = mlp()
        net.hybridize()
        net(mx.nd.ones((2, 3)))
        for function, number in ((freeze, "0.0"), (unfreeze, "1.0")):
            function(net[0], within=net)
            net(mx.nd.ones((2, 3)))
            assert net._cached_graph[1].attr_dict()["net_dense0_weight"]["__lr_mult__"] == number
