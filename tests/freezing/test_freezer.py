"""A multiplier of 0 freezes and one above 0 unfreezes: what stays, what moves, and when."""

import mxnet as mx
import pytest
from mxnet import autograd
from mxnet.gluon import loss

from freezing_support import HYBRIDIZE, build_gluoncv, image_batch, outputs_in_both_modes, train_step
from multiplier_support import ALL_WEIGHTS, FIRST_LAYER, build, changed_by
from multitrainer import MultiLRTrainer
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
