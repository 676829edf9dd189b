"""Every registered optimizer of MXNet and of this package, and networks that stock MXNet can train with it."""

import inspect

import mxnet as mx
import pytest
from mxnet.gluon import nn
from mxnet.optimizer import Optimizer

from support import mlp

# What stock MXNet cannot run, and why. Any other failure of stock fails the tests.
STOCK_FAILS = {
    ("dcasgd", "momentum"): "takes the truth value of its momentum array",
    ("dcasgd", "momentum, wd"): "takes the truth value of its momentum array",
    ("groupadagrad", "plain"): "asserts a weight of two dimensions",
    ("groupadagrad", "wd"): "asserts a weight of two dimensions",
}


# Other tests may have registered optimizers of their own.
REGISTERED = {
    name: kind
    for name, kind in sorted(Optimizer.opt_registry.items())
    if kind.__module__.startswith(("mxnet.", "multitrainer."))
}


def variants():
    """Yield every registered optimizer plain, with weight decay and, if it takes one, with momentum."""
    for name, kind in REGISTERED.items():
        settings = {"plain": {}, "wd": {"wd": 0.01}}
        if "momentum" in inspect.signature(kind.__init__).parameters or name == "ccsgd":
            settings["momentum"] = {"momentum": 0.9}
            settings["momentum, wd"] = {"momentum": 0.9, "wd": 0.01}
        for label, params in settings.items():
            yield pytest.param(name, label, {"learning_rate": 0.05, **params}, id=f"{name}-{label}")


def network(name, ctx=None):
    """Return a network that stock MXNet can train with optimizer ``name``, with BatchNorm if possible."""
    if name == "adamax":
        return mlp(ctx, batchnorm=False)  # a bias before BatchNorm has gradient 0, and adamax divides 0 by 0 there
    if name != "groupadagrad":
        return mlp(ctx)
    mx.random.seed(3)
    net = nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(nn.Dense(4, in_units=3, use_bias=False), nn.Dense(2, in_units=4, use_bias=False))
    net.initialize(ctx=ctx)
    return net


def skip_what_stock_cannot(name, label):
    if (name, label) in STOCK_FAILS and name != "groupadagrad":
        pytest.skip(f"stock {name} {STOCK_FAILS[name, label]}")
    if name == "groupadagrad" and "wd" in label:
        pytest.skip("stock groupadagrad refuses weight decay")


class Embedder(nn.Block):
    """An embedding with sparse gradients, then a dense layer."""

    def __init__(self):
        super().__init__(prefix="embedder_")
        mx.random.seed(3)
        with self.name_scope():
            self.embedding = nn.Embedding(6, 3, sparse_grad=True)
            self.output = nn.Dense(1, in_units=3, use_bias=False)

    def forward(self, x):
        return self.output(self.embedding(x).sum(axis=1))


def mark_fresh(params):
    """Mark gradients that were set by hand as new, as backward does."""
    for param in params.values():
        if param.grad_req != "null":
            param.data()._fresh_grad = True
