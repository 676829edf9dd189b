"""A multiplier of 0 freezes and one above 0 unfreezes: what stays, what moves, and when."""

import warnings

import mxnet as mx
import pytest
from mxnet import autograd
from mxnet.gluon import loss, nn

from freezing_support import HYBRIDIZE, build_gluoncv, image_batch, outputs_in_both_modes, train_step
from multiplier_support import ALL_WEIGHTS, FIRST_LAYER, WAYS_TO_SET, build, changed_by
from multitrainer import MultiLRTrainer, freeze, unfreeze
from multitrainer.freezing.freezer import Freezer, freeze_parameter, gradient_pending, unfreeze_parameters
from multitrainer.freezing.state import before_freezing
from support import CONTEXTS, backward, batches, close, mlp, moved, snapshot, train, weights


class TestFreezingAndUnfreezing:
    @pytest.mark.parametrize("request_", ["write", "add"])
    def test_restores_the_gradient_request(self, request_):
        net, trainer = build()
        net[0].collect_params().setattr("grad_req", request_)
        trainer.set_lr_mult({net[0]: 0})
        trainer.set_lr_mult({net[0]: 0})
        assert net[0].weight.grad_req == "null"
        trainer.set_lr_mult({net[0]: 2})
        assert net[0].weight.grad_req == request_

    def test_set_lr_mult_requests_a_gradient_that_the_user_had_switched_off(self):
        net = mlp()
        net[0].collect_params().setattr("grad_req", "null")
        trainer = MultiLRTrainer([net, (net[2], 2)], "sgd", {"learning_rate": 0.1})
        assert changed_by(net, trainer) == ALL_WEIGHTS - FIRST_LAYER
        net[0].collect_params().setattr("lr_mult", 0.5)  # as under stock: an assignment does not switch it on
        assert changed_by(net, trainer) == ALL_WEIGHTS - FIRST_LAYER
        trainer.set_lr_mult({net[0]: 0.5})
        assert changed_by(net, trainer) == ALL_WEIGHTS

    def test_leaves_statistics_alone(self):
        net = mlp()
        trainer = MultiLRTrainer([(net, 0)], "sgd")
        trainer.set_lr_mult({net: 3})
        assert {param.grad_req for param in net.collect_params(".*running.*").values()} == {"null"}
        assert {param.lr_mult for param in net.collect_params(".*running.*").values()} == {1.0}

    def test_between_backward_and_step_waits_for_the_next_backward(self):
        net, trainer = build(lambda net: [net, (net[0], 0)])
        (x, y), (x2, y2) = batches(2)
        backward(net, x, y)
        trainer.set_lr_mult({net[0]: 1})
        before = snapshot(net)
        trainer.step(4)
        assert weights(moved(before, snapshot(net))) == ALL_WEIGHTS - FIRST_LAYER
        backward(net, x2, y2)
        trainer.step(4)
        assert weights(moved(before, snapshot(net))) == ALL_WEIGHTS

    def test_by_assignment_while_everything_is_frozen(self):
        net, trainer = build(lambda net: [(net, 0)])
        trainer.step(1)
        net[2].collect_params().setattr("lr_mult", 1)
        trainer.step(1)
        assert changed_by(net, trainer) == {"net_dense1_weight", "net_dense1_bias"}

    def test_of_a_layer_that_the_loss_does_not_use_raises_as_stock_does(self):
        net, trainer = build(lambda net: [net, (net[0], 0)])
        trainer.set_lr_mult({net[0]: 1})
        with mx.autograd.record():
            loss = (net[2](net[1](mx.nd.ones((4, 4)))) ** 2).sum()
        loss.backward()
        with pytest.raises(UserWarning, match="has not been updated by backward"):
            trainer.step(4)

    def test_after_a_step_that_failed(self):
        net, trainer = build(lambda net: [net, (net[0], 0.2)])
        trainer.set_lr_mult({net[0]: 0})
        net[0].collect_params().setattr("lr_mult", 0.2)
        with pytest.raises(UserWarning, match="has not been updated by backward"):
            trainer.step(4)
        trainer.set_lr_mult({net[0]: 0})
        assert changed_by(net, trainer) == ALL_WEIGHTS - FIRST_LAYER
        assert changed_by(net, trainer) == ALL_WEIGHTS - FIRST_LAYER

    def test_restores_a_request_that_the_user_had_switched_off(self):
        net, trainer = build()
        net[0].collect_params().setattr("grad_req", "null")
        net[0].collect_params().setattr("lr_mult", 0)
        assert changed_by(net, trainer) == ALL_WEIGHTS - FIRST_LAYER
        net[0].collect_params().setattr("lr_mult", 1)
        assert changed_by(net, trainer, count=3) == ALL_WEIGHTS - FIRST_LAYER

    def test_restores_a_request_that_the_user_had_switched_off_before_set_lr_mult(self):
        net, trainer = build()
        net[0].collect_params().setattr("grad_req", "null")
        trainer.set_lr_mult({net[0]: 0})
        trainer.set_lr_mult({net[0]: 0})
        net[0].collect_params().setattr("lr_mult", 1)
        assert changed_by(net, trainer, count=3) == ALL_WEIGHTS - FIRST_LAYER

    def test_a_multiplier_set_between_backward_and_step_acts_at_that_step(self):
        net, trainer = build()
        backward(net, *batches(1)[0])
        trainer.set_lr_mult({net[0]: 0.5})
        before = snapshot(net)
        trainer.step(4)
        assert weights(moved(before, snapshot(net))) == ALL_WEIGHTS

    def test_freezing_between_backward_and_step_takes_effect_at_that_step(self):
        net, trainer = build(momentum=0.9)
        train(net, trainer, batches(2))
        backward(net, *batches(1)[0])
        trainer.set_lr_mult({net[0]: 0})
        before = snapshot(net)
        trainer.step(4)
        assert weights(moved(before, snapshot(net))) == ALL_WEIGHTS - FIRST_LAYER

    def test_switches_off_a_gradient_that_the_user_requests_while_frozen(self):
        net, trainer = build(lambda net: [net, (net[0], 0)])
        net[0].weight.grad_req = "write"
        assert changed_by(net, trainer) == ALL_WEIGHTS - FIRST_LAYER
        assert net[0].weight.grad_req == "null"


class TestMultiplierFromBefore:
    """`unfreeze` gives back the multiplier that a Parameter had when it was frozen."""

    @pytest.mark.parametrize("way", WAYS_TO_SET)
    def test_of_a_layer_frozen_in_any_way(self, way):
        net, trainer = build(lambda net: [net, (net[0], 0.5)])
        WAYS_TO_SET[way](net, trainer, 0)
        trainer.set_wd_mult({net[2]: 1})  # acts on the assignments as a step does
        unfreeze(net[0], within=net)
        assert (net[0].weight.lr_mult, net[0].bias.lr_mult) == (0.5, 0.5)

    def test_of_a_layer_frozen_by_a_schedule(self):
        net, trainer = build(lambda net: [net, (net[0], lambda num_update: 0.5 if num_update < 2 else 0)])
        train(net, trainer, batches(1))
        assert net[0].weight.lr_mult == 0
        unfreeze(net[0], within=net)
        assert net[0].weight.lr_mult == 0.5

    def test_of_a_layer_frozen_twice(self):
        net, trainer = build(lambda net: [net, (net[0], 0.5)])
        net[0].collect_params().setattr("lr_mult", 0)
        trainer.set_lr_mult({net[0]: 0})
        freeze(net[0], within=net)
        unfreeze(net[0], within=net)
        assert net[0].weight.lr_mult == 0.5

    def test_of_a_parameter_with_an_invalid_multiplier(self):
        net, trainer = build(lambda net: [net, (net[0], 0.5)])
        net[0].weight.lr_mult = "x"
        trainer.set_lr_mult({net[0]: 0})
        unfreeze(net[0], within=net)
        assert net[0].weight.lr_mult == 0.5


class TestFreezer:
    def test_is_up_to_date_until_somebody_else_freezes_or_requests_a_gradient(self):
        net, trainer = build(lambda net: [net, (net[0].weight, 0), (net[2], 0)])
        freezer = trainer._multipliers._freezer
        assert (net[0].weight.grad_req, net[2].weight.grad_req) == ("write", "null")
        assert freezer.is_up_to_date
        freeze(net[0].bias, within=net)
        assert not freezer.is_up_to_date
        trainer.step(1, ignore_stale_grad=True)
        assert freezer.is_up_to_date
        net[2].weight.grad_req = "write"
        assert not freezer.is_up_to_date
        trainer.step(1, ignore_stale_grad=True)
        assert net[2].weight.grad_req == "null"
        assert freezer.is_up_to_date

    def test_freezes(self):
        net, trainer = build()
        freezer = trainer._multipliers._freezer
        assert not freezer.freezes
        trainer.set_lr_mult({net[0].weight: 0})
        assert freezer.freezes
        trainer.set_lr_mult({net[0].weight: 1})
        assert not freezer.freezes

    def test_leaves_out_frozen_and_waiting_parameters(self):
        net, trainer = build(lambda net: [net, (net[0], 0)])
        freezer = trainer._multipliers._freezer
        assert freezer.left_out() == {net[0].weight, net[0].bias}
        backward(net, *batches(1)[0])
        trainer.set_lr_mult({net[0].weight: 1})
        assert freezer.left_out() == {net[0].weight, net[0].bias}
        trainer.step(4)
        assert freezer.left_out() == {net[0].bias}

    def test_does_not_wait_if_nothing_was_pending(self):
        net, trainer = build(lambda net: [net, (net[0], 0)])
        train(net, trainer, batches(1))
        trainer.set_lr_mult({net[0]: 1})
        assert trainer._multipliers._freezer.left_out() == set()

    def test_changes_no_trace_unless_something_is_frozen_or_unfrozen(self):
        net, trainer = build(lambda net: [net, (net[:2], 0)])
        net.hybridize()
        train(net, trainer, batches(1))
        trace = net._cached_op
        trainer.set_lr_mult({net[:2]: 0, net[2]: 0.5})
        trainer.set_wd_mult({net[:2]: 2})
        train(net, trainer, batches(1))
        assert net._cached_op is trace
        trainer.set_lr_mult({net[:2]: 1})
        assert net._cached_op is None

    def test_names_new_layers_that_would_never_be_trained(self):
        net, trainer = build()
        net.add(*(nn.Dense(2, in_units=2, prefix=f"new{i}_") for i in range(2)))
        net.initialize()
        message = r"^new0_weight, new0_bias, new1_weight, ... of layer '3', '4' would never .* trainer\.add\(layer\)"
        with pytest.raises(ValueError, match=message):
            trainer.step(4)
        net[-1].collect_params().setattr("grad_req", "null")
        with pytest.raises(ValueError, match=r"^new0_weight, new0_bias of layer '3' would never be trained"):
            trainer.step(4)

    def test_a_multiplier_of_0_does_not_silence_that_but_freeze_does(self):
        net, trainer = build()
        net.add(nn.BatchNorm(in_channels=2, prefix="new_"))
        net.initialize()
        net[-1].collect_params().setattr("lr_mult", 0)
        with pytest.raises(ValueError, match=r"freeze\(layer, within=net\), also if their lr_mult is 0 already"):
            trainer.step(4)  # because its statistics still move
        freeze(net[-1], within=net)
        before = snapshot(net[-1])
        train(net, trainer, batches(2))
        assert not moved(before, snapshot(net[-1]))

    @pytest.mark.parametrize("exchanged", [False, True])
    @pytest.mark.parametrize("reached", [False, True])
    def test_added_parameters_wait_for_a_backward_pass_that_reaches_them(self, reached, exchanged):
        net = mlp(batchnorm=False)
        known, new = (list(block.collect_params().values()) for block in net)
        freezer = Freezer(known, known)
        freezer.apply({}, ())
        backward(net if reached else net[0], *batches(1, columns=2 if reached else 4)[0])
        freezer.add_parameters([*known, *new], [*known, *new], exchanged)
        assert freezer.left_out() == (set() if reached and not exchanged else set(new))
        freezer.end_step()
        assert freezer.left_out() == set()

    def test_added_parameters_do_not_wait_if_no_backward_pass_is_pending(self):
        net = mlp(batchnorm=False)
        known, new = (list(block.collect_params().values()) for block in net)
        freezer = Freezer(known, known)
        freezer.add_parameters([*known, *new], [*known, *new], False)
        assert freezer.left_out() == set()

    def test_parameters_that_left_the_network_are_left_out_unless_they_have_a_gradient(self):
        net, trainer = build()
        freezer, old = trainer._multipliers._freezer, net[2]
        backward(net, *batches(1)[0])
        net._children.popitem()
        freezer.check_no_unowned_parameter()
        assert freezer.left_out() == set()
        trainer.step(4)
        assert freezer.left_out() == {old.weight, old.bias}

    def test_a_step_warns_of_moving_statistics_only_when_something_is_frozen(self):
        net = mlp()
        trainer = MultiLRTrainer(net.collect_params(), "sgd")
        for param in (net[1].gamma, net[1].beta):
            param.lr_mult = 0
            net[1].gamma.lr_mult = 1 if param is net[1].beta else 0  # frozen, and another one unfrozen
            with pytest.warns(UserWarning, match="statistics still move"):
                trainer.step(1, ignore_stale_grad=True)
            net[2].weight.lr_mult = param.lr_mult + 0.5
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                trainer.step(1, ignore_stale_grad=True)
                freeze(nn.Dense(1, in_units=1))
                trainer.step(1, ignore_stale_grad=True)

    @pytest.mark.parametrize("frozen", [False, True])
    def test_gradient_pending(self, frozen):
        net = mlp()
        params = list(net.collect_params().values())
        assert not gradient_pending(params)
        backward(net, *batches(1)[0])
        assert gradient_pending(params)
        if frozen:
            for param in params:
                freeze_parameter(param)
            assert not gradient_pending(params)

    def test_freeze_parameter_keeps_the_first_multiplier(self):
        param = mlp()[0].weight
        param.lr_mult = 0.5
        freeze_parameter(param)
        freeze_parameter(param, 3)
        assert param.lr_mult == 0
        assert before_freezing(param) == ("write", 0.5)
        unfreeze_parameters([param])
        freeze_parameter(param, 3)
        assert before_freezing(param) == ("write", 3)


# The network, the layers to freeze, a trained layer below them.
NETWORKS = {
    "resnet18_v1b": (lambda net: [net.layer1, net.layer2, net.layer3], lambda net: net.conv1),
    "mobilenetv2_0.25": (lambda net: net.features[1:], lambda net: net.features[0]),
    "densenet": (lambda net: net.features[1:], lambda net: net.features[0]),
}
slow = pytest.mark.slow
FAST = ["mobilenetv2_0.25", pytest.param("resnet18_v1b", marks=slow), pytest.param("densenet", marks=slow)]


@pytest.mark.parametrize("mode", HYBRIDIZE)
@pytest.mark.parametrize("name", FAST)
class TestOnGluonCV:
    def prepare(self, name, mode):
        """Make a network that was hybridized, traced and trained before any of it was frozen."""
        net = build_gluoncv(name)
        if HYBRIDIZE[mode] is not None:
            net.hybridize(**HYBRIDIZE[mode])
        x, y = image_batch(224 if name.startswith("densenet") else 32)
        trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.01, "momentum": 0.9, "wd": 1e-3})
        train_step(net, trainer, x, y)
        train_step(net, trainer, x, y)
        return net, trainer, x, y

    def test_freezing_and_unfreezing_twice_during_training(self, name, mode):
        net, trainer, x, y = self.prepare(name, mode)
        middle = NETWORKS[name][0](net)
        held = {key for block in blocks(middle) for key in block.collect_params()}
        for _ in range(2):
            trainer.set_lr_mult({as_key(middle): 0})
            before = snapshot(net)
            for _ in range(2):
                train_step(net, trainer, x, y)
            changed = moved(before, snapshot(net))
            assert not changed & held
            assert weights(changed) == {key for key in weights(before) if key not in held}
            trainer.set_lr_mult({as_key(middle): 0.5})
            before = snapshot(net)
            train_step(net, trainer, x, y)
            train_step(net, trainer, x, y)
            assert held <= moved(before, snapshot(net))

    def test_frozen_layers_compute_the_same_in_training_and_prediction(self, name, mode):
        net, trainer, x, _ = self.prepare(name, mode)
        different, _ = outputs_in_both_modes(net.features if hasattr(net, "features") else net, x)
        trainer.set_lr_mult({net: 0})
        block = net.features if hasattr(net, "features") else net
        trained, predicted = outputs_in_both_modes(block, x)
        assert close(trained, predicted)
        assert not close(different, predicted, 1e-3)
        trainer.set_lr_mult({net: 1})
        trained, predicted = outputs_in_both_modes(block, x)
        assert not close(trained, predicted, 1e-3)

    def test_gradients_reach_layers_below(self, name, mode):
        net, trainer, x, y = self.prepare(name, mode)
        middle, below = (choose(net) for choose in NETWORKS[name])
        trainer.set_learning_rate(0)
        for _ in range(20):  # until the statistics fit; with those of two steps, all of ReLU6 can be dead
            train_step(net, trainer, x, y)
        trainer.set_lr_mult({as_key(middle): 0})
        with autograd.record():
            value = loss.SoftmaxCrossEntropyLoss()(net(x), y)
        value.backward()
        assert all(abs(p.grad().asnumpy()).max() > 0 for p in below.collect_params().values() if p.grad_req != "null")
        for block in blocks(middle):
            for param in block.collect_params().values():
                with pytest.raises(RuntimeError, match="grad_req='null'"):
                    param.grad()


def blocks(target):
    return target if isinstance(target, list) else [target]


def as_key(target):
    return tuple(target) if isinstance(target, list) else target


@pytest.mark.parametrize("mode", HYBRIDIZE)
def test_two_contexts(mode):
    net = build_gluoncv("mobilenetv2_0.25")
    net.collect_params().reset_ctx(CONTEXTS)
    if HYBRIDIZE[mode] is not None:
        net.hybridize(**HYBRIDIZE[mode])
    x, y = image_batch(64)
    parts = list(zip(mx.gluon.utils.split_and_load(x, CONTEXTS), mx.gluon.utils.split_and_load(y, CONTEXTS)))
    trainer = MultiLRTrainer([net, (net.output, 2)], "sgd", {"learning_rate": 0.1, "momentum": 0.9})

    def step():
        with autograd.record():
            losses = [loss.SoftmaxCrossEntropyLoss()(net(a), b) for a, b in parts]
        autograd.backward(losses)
        trainer.step(4)

    step()
    trainer.set_lr_mult({net.features: 0})
    before = {name: [array.asnumpy() for array in param.list_data()] for name, param in net.collect_params().items()}
    step()
    for name, param in net.collect_params().items():
        for was, now in zip(before[name], param.list_data()):
            assert (was == now.asnumpy()).all() == name.startswith(net.features.prefix), name
    trainer.set_lr_mult({net.features: 1})
    step()
    assert set(moved({n: a[0] for n, a in before.items()}, snapshot(net))) == set(before)
