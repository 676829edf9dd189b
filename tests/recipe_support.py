"""Networks of several stages, and what to read of the groups that recipes make of them."""

import mxnet as mx
from mxnet import gluon
from mxnet.gluon import nn


def resnet(**kwargs):
    """Return a ResNet of six stages and ten layers."""
    return mx.gluon.model_zoo.vision.resnet18_v1(prefix="net_", **kwargs)


def deep(prefix="net_"):
    """Return three Dense layers, the first two with BatchNorm: three stages."""
    mx.random.seed(3)
    net = nn.HybridSequential(prefix=prefix)
    with net.name_scope():
        for units in (4, 5):
            net.add(nn.Dense(units, in_units=units - 1), nn.BatchNorm(in_channels=units))
        net.add(nn.Dense(2, in_units=5))
    net.initialize(mx.init.Xavier())
    return net


def names(groups):
    """Return the names of groups."""
    return [group.name for group in groups]


def multipliers(groups):
    """Return the learning-rate multipliers of groups."""
    return [group.lr_mult for group in groups]


def covers(groups, net):
    """Whether groups of Blocks hold every Parameter of a network once."""
    held = [param for group in groups for param in group.params.collect_params().values()]
    return len(held) == len(set(held)) and set(held) == set(net.collect_params().values())


def sequential(*layers):
    """Return a HybridSequential of ``layers``."""
    net = nn.HybridSequential()
    net.add(*layers)
    return net


class Net(gluon.HybridBlock):
    """A network of named layers, registered in the order given, whose forward pass is ``run(net, op, x, **params)``."""

    def __init__(self, run, layers, **params):
        super().__init__()
        self._run = run
        with self.name_scope():
            for name, layer in layers.items():
                setattr(self, name, layer)
            for name, shape in params.items():
                setattr(self, name, self.params.get(name, shape=shape))

    def hybrid_forward(self, op, x, **params):
        return self._run(self, op, x, **params)


class Scaled(gluon.HybridBlock):
    """A layer that fails with a symbol, because it reads a shape."""

    def __init__(self):
        super().__init__()
        self.scale = self.params.get("scale", shape=(1,))

    def hybrid_forward(self, op, x, scale):
        return x * float(x.shape[0]) * scale
