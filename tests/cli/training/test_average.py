from __future__ import annotations

import mxnet as mx
import pytest

from multitrainer import MultiLRTrainer
from multitrainer_cli.training import average as averaging


@pytest.fixture
def net():
    net = mx.gluon.nn.Dense(1, in_units=1, use_bias=False)
    net.initialize(mx.init.One())
    return net


def step(net, trainer):
    with mx.autograd.record():
        loss = net(mx.nd.ones((1, 1)))
    loss.backward()
    trainer.step(1)


def test_without_a_decay_nothing_is_averaged(net):
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 1})
    average = averaging.make_average(trainer, None)
    assert average is None
    step(net, trainer)
    averaging.update(average)
    with averaging.applied(average):
        assert net.weight.data().asscalar() == 0


def test_an_average_begins_with_a_warm_up(net):
    trainer = MultiLRTrainer(net, "sgd", {"learning_rate": 1})
    average = averaging.make_average(trainer, 0.999)
    step(net, trainer)
    averaging.update(average)
    with averaging.applied(average):
        assert net.weight.data().asscalar() == pytest.approx(2 / 11)
    assert net.weight.data().asscalar() == 0
