"""GluonCV's networks, and one step of their training."""

import mxnet as mx
from gluoncv import model_zoo
from mxnet import autograd
from mxnet.gluon import loss

from support import snapshot

HYBRIDIZE = {
    "imperative": None,
    "hybridized": {},
    "static": {"static_alloc": True, "static_shape": True},
}


def build_gluoncv(name):
    mx.random.seed(4)
    if name == "densenet":  # thinner than any with a name; with a growth of 8, stock's backward fails on AVX-512
        net = model_zoo.densenet.DenseNet(32, 16, [2, 2, 2, 2], classes=3)
    else:
        net = model_zoo.get_model(name, classes=3)
    net.initialize(mx.init.Xavier())
    return net


def image_batch(size=32):
    mx.random.seed(6)
    return mx.nd.random.normal(shape=(4, 3, size, size)), mx.nd.array([0, 1, 2, 0])


def train_step(net, trainer, x, y):
    with autograd.record():
        value = loss.SoftmaxCrossEntropyLoss()(net(x), y)
    value.backward()
    trainer.step(len(x))


def outputs_in_both_modes(block, x):
    with autograd.record(train_mode=True):
        trained = block(x)
    return trained.asnumpy(), block(x).asnumpy()


def statistics(net):
    return {name: array for name, array in snapshot(net).items() if "running" in name}
