"""Between updates by a kvstore, the marks of gradients say what a backward pass has reached."""

import mxnet as mx
import pytest
from mxnet import autograd
from mxnet.gluon import Trainer, nn

from multitrainer import MultiLRTrainer, _mxnet
from support import CONTEXTS, batches, mlp, moved, snapshot, train


def build(kind=MultiLRTrainer):
    net = mlp(CONTEXTS, batchnorm=False)
    return net, kind(net.collect_params(), "sgd", {"learning_rate": 0.1, "momentum": 0.9})


def test_gradients_are_used_after_an_update():
    net, trainer = build()
    train(net, trainer, batches(2), CONTEXTS)
    assert trainer._update_on_kvstore
    assert not any(map(_mxnet.has_fresh_gradient, trainer._params))


def test_an_old_gradient_is_used_again_as_under_stock():
    histories = []
    for kind in (Trainer, MultiLRTrainer):
        net, trainer = build(kind)
        train(net, trainer, batches(2), CONTEXTS)
        before = snapshot(net)
        trainer.step(4)  # no backward pass was made
        assert moved(before, snapshot(net)) == set(before)
        histories.append(snapshot(net))
    assert not moved(*histories)


def test_a_gradient_that_never_was_raises_as_under_stock():
    _, trainer = build()
    with pytest.raises(UserWarning, match="has not been updated by backward"):
        trainer.step(4)


@pytest.mark.parametrize("update_on_kvstore", [None, False])
def test_a_head_that_was_replaced_stays_as_it_is(update_on_kvstore):
    net = mlp(CONTEXTS, batchnorm=False)
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 0.1}, update_on_kvstore=update_on_kvstore)
    train(net, trainer, batches(2), CONTEXTS)
    old = net[1]
    new = nn.Dense(2, in_units=4, prefix="new_")
    new.initialize(ctx=CONTEXTS)
    net._children["1"] = new
    before = snapshot(old)
    trainer.add(new)
    train(net, trainer, batches(2), CONTEXTS)
    assert not moved(before, snapshot(old))


def test_a_failed_update_leaves_the_marks(monkeypatch):
    net, trainer = build()
    train(net, trainer, batches(1), CONTEXTS)
    with autograd.record():
        losses = [net[0](mx.nd.ones((2, 3), ctx=ctx)).sum() for ctx in CONTEXTS]
    autograd.backward(losses)
    fresh = {param.name for param in trainer._params if _mxnet.has_fresh_gradient(param)}
    assert fresh == {"net_dense0_weight", "net_dense0_bias"}

    def fail(*_):
        raise KeyError

    monkeypatch.setattr(Trainer, "_update", fail)
    with pytest.raises(KeyError):
        trainer.step(4)
    assert {param.name for param in trainer._params if _mxnet.has_fresh_gradient(param)} == fresh
