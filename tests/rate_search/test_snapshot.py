"""Everything that training changes is put back bit for bit, whatever happened in between."""

import copy
import random

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from mxnet.gluon import nn

from multitrainer import MultiLRTrainer, gradual_unfreezing, unfreeze
from multitrainer.rate_search.snapshot import restored
from search_support import batches, build, dropout_mlp, everything, make_step
from support import CONTEXTS, Overflow, backward, moved, same, snapshot, train

DATA, MORE = batches(3), batches(6, seed=8)
OPTIMIZERS = ["sgd", "nag", "adam", "rmsprop", "ftml", "nadam", "lamb", "sgld"]


def disturb(trainer, train_step, rate=0.3, steps=4):
    """Train in a block that puts everything back, at another rate."""
    with restored(trainer, trainer._training()):
        trainer.optimizer.lr_scheduler, trainer.optimizer.lr = None, rate
        for batch in batches(steps, seed=9):
            train_step(batch)
        np.random.rand(3), random.random()


def check(net, trainer, train_step, ctx=None):
    before = everything(trainer, net)
    disturb(trainer, train_step)
    assert everything(trainer, net) == before


@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers(optimizer, steps_before):
    net, trainer, train_step = build(optimizer, net=dropout_mlp())
    train(net, trainer, DATA[:steps_before])
    trainer._training()  # sets up the kvstore
    check(net, trainer, train_step)


@pytest.mark.parametrize("fast", ["0", "1"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_goes_on_as_if_nothing_had_been(optimizer, fast, monkeypatch):
    monkeypatch.setenv("MULTITRAINER_FAST", fast)

    def run(disturbed):
        mx.random.seed(4)
        net = nn.HybridSequential(prefix="wide_")
        with net.name_scope():
            for _ in range(9):  # enough Parameters for the fused update
                net.add(nn.Dense(96, in_units=96), nn.Dropout(0.2))
        net.initialize(mx.init.Xavier())
        net.hybridize(static_alloc=True)
        scheduler = mx.lr_scheduler.FactorScheduler(2, 0.5, base_lr=0.05)
        trainer = MultiLRTrainer([net, (net[:4], 0.1)], optimizer, {"lr_scheduler": scheduler})
        data = wide_batches()
        history = train(net, trainer, data[:2])
        if disturbed:
            with restored(trainer, trainer._training()):
                train(net, trainer, data[2:6])
        return history + train(net, trainer, data[2:])

    assert same(run(False), run(True))


def wide_batches():
    rng = np.random.RandomState(0)
    return [(mx.nd.array(rng.rand(4, 96)), mx.nd.array(rng.rand(4, 96))) for _ in range(7)]


@pytest.mark.parametrize("kvstore", ["device", "local"])
@pytest.mark.parametrize("update_on_kvstore", [True, False])
def test_two_contexts(kvstore, update_on_kvstore):
    def run(disturbed):
        net, trainer, train_step = build("adam", CONTEXTS, kvstore=kvstore, update_on_kvstore=update_on_kvstore)
        history = train(net, trainer, DATA, CONTEXTS)
        if disturbed:
            check(net, trainer, train_step)
        return history + train(net, trainer, MORE, CONTEXTS)

    assert same(run(False), run(True))


def test_before_the_first_step_weights_may_still_be_loaded(tmp_path):
    net, trainer, train_step = build("sgd", CONTEXTS)
    disturb(trainer, train_step)
    other = build("sgd", CONTEXTS)[0]
    for param in other.collect_params().values():
        param.set_data(param.data(CONTEXTS[0]) + 1)
    other.save_parameters(str(tmp_path / "net"))
    net.load_parameters(str(tmp_path / "net"), ctx=CONTEXTS)
    expected = MultiLRTrainer([other, (other[0], 0.1)], "sgd", {"learning_rate": 0.05, "momentum": 0.9})
    assert same(train(net, trainer, DATA, CONTEXTS), train(other, expected, DATA, CONTEXTS))


@pytest.mark.parametrize("grad_req", ["write", "add"])
def test_a_pending_backward_stays_pending(grad_req):
    net, trainer, train_step = build()
    net.collect_params().setattr("grad_req", grad_req)
    train(net, trainer, DATA[:1])
    backward(net, *DATA[1])
    check(net, trainer, train_step)
    assert net[0].weight.data()._fresh_grad
    trainer.step(4)


def test_no_pending_backward_stays_so():
    net, trainer, train_step = build()
    train(net, trainer, DATA[:1])
    disturb(trainer, train_step)
    with pytest.raises(UserWarning, match="has not been updated by backward"):
        trainer.step(4)


def test_schedules_stand_still_and_go_on():
    def run(disturbed):
        calls = []
        net = dropout_mlp()
        halves = mx.lr_scheduler.FactorScheduler(1, 0.5, base_lr=1)
        groups = [net, *gradual_unfreezing([net[:2], net[2]], 2), (net[2].bias, halves)]
        trainer = MultiLRTrainer(groups, "sgd", {"lr_scheduler": mx.lr_scheduler.FactorScheduler(1, 0.9, base_lr=1.0)})
        history = train(net, trainer, DATA[:1])
        if disturbed:
            before = everything(trainer, net), dict(vars(halves))
            disturb(trainer, make_step(net, trainer, calls=calls))
            assert (everything(trainer, net), dict(vars(halves))) == before
            assert all(rates == calls[0] for rates in calls)
        return history + train(net, trainer, MORE)

    assert same(run(False), run(True))


def test_statistics_that_belong_to_no_trainer():
    net, trainer, train_step = build()
    net.add(nn.BatchNorm(in_channels=2, prefix="extra_", center=False, scale=False))
    net[-1].initialize()
    net[-1].collect_params().setattr("grad_req", "null")
    before = net[-1].running_mean.data().asnumpy()
    check(net, trainer, train_step)
    train_step(DATA[0])
    assert (net[-1].running_mean.data().asnumpy() != before).any()


def test_sparse_gradients():
    net = nn.Embedding(6, 2, sparse_grad=True, prefix="embedding_")
    net.initialize()
    trainer = MultiLRTrainer(net, "adam")

    def train_step(batch):
        with autograd.record():
            loss = net(mx.nd.array([1, 3])).sum()
        loss.backward()
        trainer.step(1)
        return loss

    train_step(None)
    before = net.weight.data().asnumpy(), net.weight._grad[0].asnumpy(), trainer._updaters[0].get_states()
    disturb(trainer, train_step)
    after = net.weight.data().asnumpy(), net.weight._grad[0].asnumpy(), trainer._updaters[0].get_states()
    assert [np.asarray(x).tobytes() for x in before] == [np.asarray(x).tobytes() for x in after]


def test_the_loss_scale():
    net, trainer, train_step = build()
    trainer._amp_loss_scaler = Overflow(at={2})
    train(net, trainer, DATA[:1])

    def with_scale(batch):
        trainer._scale, trainer._amp_loss_scaler.loss_scale = 0.25, 4.0
        return train_step(batch)

    check(net, trainer, with_scale)
    assert (trainer._amp_loss_scaler.loss_scale, trainer._amp_loss_scaler.calls) == (1.0, 1)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_an_error(error):
    def fail(batch):
        train_step(batch)
        raise error

    net, trainer, train_step = build(net=dropout_mlp())
    train(net, trainer, DATA)
    before = everything(trainer, net)
    with pytest.raises(error):
        disturb(trainer, fail)
    assert everything(trainer, net) == before


def test_after_an_operation_of_mxnet_failed():
    def fail(batch):
        train_step(batch)
        mx.nd.random.normal(0, -1, shape=(2, 2)).wait_to_read()

    net, trainer, train_step = build()
    train(net, trainer, DATA)
    before = everything(trainer, net)
    with pytest.raises(mx.base.MXNetError):
        disturb(trainer, fail)
    assert everything(trainer, net) == before


def test_an_interrupt_that_leaves_autograd_recording():
    """As one at the very end of a block of ``record`` does."""

    def interrupted(batch):
        train_step(batch)
        autograd.set_recording(True)
        autograd.set_training(True)
        raise KeyboardInterrupt

    net, trainer, train_step = build()
    train(net, trainer, DATA)
    before = everything(trainer, net)
    with pytest.raises(KeyboardInterrupt):
        disturb(trainer, interrupted)
    assert not autograd.is_recording()
    assert not autograd.is_training()
    assert everything(trainer, net) == before


def test_an_interrupt_while_it_restores(monkeypatch):
    net, trainer, train_step = build()
    train(net, trainer, DATA)
    before, setstate = everything(trainer, net), random.setstate
    interrupts = iter([KeyboardInterrupt])

    def interrupted(state):
        for error in interrupts:
            raise error
        setstate(state)

    monkeypatch.setattr(random, "setstate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        disturb(trainer, train_step)
    assert everything(trainer, net) == before


@pytest.mark.parametrize("hybridize", [False, True])
def test_layers_frozen_or_unfrozen_meanwhile(hybridize):
    def run(disturbed):
        net, trainer, train_step = build()
        if hybridize:
            net.hybridize(static_alloc=True, static_shape=True)
        trainer.set_lr_mult({net[2]: 0})
        history = train(net, trainer, DATA)
        if disturbed:
            with restored(trainer, trainer._training()):
                train_step(MORE[0])
                trainer.set_lr_mult({net[:2]: 0, net[2]: 1})
                train_step(MORE[1])
        return history + train(net, trainer, MORE)

    assert same(run(False), run(True))


@pytest.mark.parametrize("grad_req", ["write", "add"])
def test_an_unfrozen_layer_gets_what_it_had_before_the_search(grad_req):
    net, trainer, train_step = build()
    net[0].weight.grad_req = grad_req
    trainer.set_lr_mult({net[0]: 0})
    with restored(trainer, trainer._training()):
        train_step(DATA[0])
        trainer.set_lr_mult({net[0]: 3})
        train_step(DATA[1])
    assert net[0].weight.lr_mult == 0
    unfreeze(net[0])
    assert (net[0].weight.lr_mult, net[0].weight.grad_req) == (0.1, grad_req)
    assert net[0].bias.lr_mult == 0.1


@pytest.mark.parametrize("hybridize", [False, True])
def test_a_gradient_that_was_off_is_off_again(hybridize):
    def run(disturbed):
        net, trainer, train_step = build()
        if hybridize:
            net.hybridize(static_alloc=True, static_shape=True)
        net[0].collect_params().setattr("grad_req", "null")
        history = train(net, trainer, DATA)
        if disturbed:
            with restored(trainer, trainer._training()):
                trainer.set_lr_mult({net[0]: 3})
                train_step(DATA[0])
        return history + train(net, trainer, MORE)

    assert same(run(False), run(True))


@pytest.mark.parametrize("ctx", [None, CONTEXTS])
def test_a_step_that_adds_parameters(ctx):
    net, trainer, train_step = build(ctx=ctx)
    train(net, trainer, DATA, ctx)
    new = nn.Dense(2, in_units=2, prefix="new_")
    new.initialize(ctx=ctx)

    def adding_step(batch):
        net.add(new)
        trainer.add([(new, 2)])
        return train_step(batch)

    before = everything(trainer, net)["settings"], trainer.learning_rates
    with pytest.raises(ValueError, match="train_step must not add Parameters to the trainer"):
        disturb(trainer, adding_step)
    assert (everything(trainer, net)["settings"], trainer.learning_rates) == before
    with pytest.raises(ValueError, match="Call trainer"):
        train(net, trainer, MORE[:1], ctx)
    trainer.add([(new, 2)])
    weights = snapshot(new)
    train(net, trainer, MORE, ctx)
    assert moved(weights, snapshot(new)) == set(weights)


def test_a_layer_unfrozen_after_the_backward_still_waits():
    def run(disturbed):
        net, trainer, train_step = build()
        trainer.set_lr_mult({net[0]: 0})
        history = train(net, trainer, DATA)
        backward(net, *MORE[0])
        trainer.set_lr_mult({net[0]: 1})
        if disturbed:
            disturb(trainer, train_step)
        trainer.step(4)
        return history + train(net, trainer, MORE)

    assert same(run(False), run(True))


def test_a_copy_of_the_trainer():
    net, trainer, _ = build()
    train(net, trainer, DATA)
    net, trainer = copy.deepcopy([net, trainer])
    net.collect_params().setattr("grad_req", "add")  # MXNet copies no gradients
    net.collect_params().setattr("grad_req", "write")
    check(net, trainer, make_step(net, trainer))


def test_several_arrays_and_names_for_one_object():
    """What is restored is the object, whoever else holds it."""
    net, trainer, train_step = build()
    train(net, trainer, DATA)
    counts, states = trainer.optimizer._index_update_count, trainer._updaters[0].states
    momentum = states[0]
    disturb(trainer, train_step)
    assert trainer.optimizer._index_update_count is counts
    assert trainer._updaters[0].states is states
    assert states[0] is momentum
