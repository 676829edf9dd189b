"""Small networks built from stages, with weights that depend on their names only."""

import functools
import warnings
import zlib

import mxnet as mx
import numpy as np
from mxnet import gluon
from mxnet.gluon import nn, rnn

WIDTH = 16  # of every layer: MKL-DNN blocks channels by 16


class ByName(mx.init.Initializer):
    """Fills every array from its name, so that twins agree whenever and in whatever order they are initialized."""

    def __call__(self, desc, arr):
        rng = np.random.RandomState(zlib.crc32(str(desc).encode()))
        values = rng.uniform(-0.4, 0.4, arr.shape)
        if desc.endswith(("gamma", "running_var")):
            values += 1
        arr[:] = values.astype("float32")


class Sum(gluon.HybridBlock):
    """Adds its input to the output of its layers."""

    def __init__(self, *layers, **kwargs):
        super().__init__(**kwargs)
        self.inner = nn.HybridSequential(prefix="")
        self.inner.add(*layers)

    def hybrid_forward(self, F, x):  # noqa: N803
        return x + self.inner(x)


class Siamese(gluon.HybridBlock):
    """Calls one layer twice."""

    def __init__(self, tower, **kwargs):
        super().__init__(**kwargs)
        self.tower = tower

    def hybrid_forward(self, F, x):  # noqa: N803
        return self.tower(x) - self.tower(0.5 * x)


class Memory(gluon.HybridBlock):
    """An encoder whose output is used again after the next layer, with Dropout on both branches."""

    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.decoder, self.drop = encoder, decoder, nn.Dropout(0.3)

    def hybrid_forward(self, F, x):  # noqa: N803
        # In the order in which a graph is visited from its output: a twin without a trace draws the same numbers.
        around = self.drop(x)
        memory = self.drop(self.encoder(x))
        return self.decoder(around + memory) + memory


class Unrolled(gluon.HybridBlock):
    """Runs a recurrent cell for two steps."""

    def __init__(self, cell, **kwargs):
        super().__init__(**kwargs)
        self.cell = cell

    def hybrid_forward(self, F, x):  # noqa: N803
        self.cell.reset()
        states = [F.zeros_like(x) for _ in self.cell.state_info()]
        for scale in (1.0, 0.5):
            output, states = self.cell(scale * x, states)
        return output


class Fused(gluon.HybridBlock):
    """Runs a fused recurrent layer over two time steps."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def hybrid_forward(self, F, x):  # noqa: N803
        return F.mean(self.layer(F.stack(x, 0.5 * x, axis=0)), axis=0)


class Own(gluon.HybridBlock):
    """Has parameters of its own, for FullyConnected."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.weight = self.params.get("weight", shape=(WIDTH, WIDTH))
            self.bias = self.params.get("bias", shape=(WIDTH,))

    def hybrid_forward(self, F, x, weight, bias):  # noqa: N803
        return F.tanh(F.FullyConnected(x, weight, bias, num_hidden=WIDTH))


class Borrowing(gluon.HybridBlock):
    """Uses the weight of its child a second time, with a bias of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.inner = _dense(WIDTH)
            self.weight = self.inner.weight
            self.bias = self.params.get("bias", shape=(WIDTH,))

    def hybrid_forward(self, F, x, weight, bias):  # noqa: N803
        return F.FullyConnected(self.inner(x), weight, bias, num_hidden=WIDTH)


class Image(gluon.HybridBlock):
    """Runs layers on the input as an image of 2 by 2 pixels."""

    def __init__(self, *layers, **kwargs):
        super().__init__(**kwargs)
        self.inner = nn.HybridSequential(prefix="")
        self.inner.add(*layers)

    def hybrid_forward(self, F, x):  # noqa: N803
        image = F.tile(F.reshape(x, (0, 0, 1, 1)), (1, 1, 2, 2))
        return F.mean(F.tanh(self.inner(image)), axis=(2, 3))


class Fuse(gluon.HybridBlock):
    """Returns its input, or raises an error inside the forward pass."""

    blown = False

    def hybrid_forward(self, F, x):  # noqa: N803
        if self.blown:
            raise RuntimeError("the fuse is blown")
        return F.identity(x)


class Network(gluon.HybridBlock):
    """A body of stages and heads; or, with tied weights, an embedding before and its transpose after the body.

    Parameters
    ----------
    stages : sequence of (int, str)
        Each stage's place and kind; its place is in its name, which stays if other stages are left out.
    heads : int
        How many heads. With 0 the input is a batch of token numbers, and the output has the weight of its embedding.
    deferred : bool
        Whether Dense layers infer the width of their input in the first forward pass.
    """

    def __init__(self, stages, heads, deferred):
        super().__init__(prefix="net_")
        with self.name_scope():
            if heads == 0:
                self.embedding = nn.Embedding(WIDTH, WIDTH)
            self.body = nn.HybridSequential(prefix="")
            for place, kind in stages:
                self.body.add(STAGES[kind](f"s{place}_", 0 if deferred else WIDTH))
            self.fuse = Fuse()
            self.heads = nn.HybridSequential(prefix="head_")
            with self.heads.name_scope():
                for _ in range(heads):
                    self.heads.add(nn.Dense(WIDTH, in_units=WIDTH))
            if heads == 0:
                self.heads.add(nn.Dense(WIDTH, in_units=WIDTH, params=self.embedding.params, prefix="decoder_"))
        self.tied = heads == 0

    def hybrid_forward(self, F, x):  # noqa: N803
        if self.tied:
            x = F.mean(self.embedding(x), axis=1)
        x = self.body(x)
        x = self.fuse(x)
        outputs = [head(x) for head in self.heads]
        return outputs if len(outputs) > 1 else outputs[0]


def _dense(units, **kwargs):
    return nn.Dense(WIDTH, in_units=units, activation="tanh", **kwargs)


def _stage(make):
    """Return a function that builds a stage of the layers that ``make`` returns."""

    def build(prefix, units):
        stage = nn.HybridSequential(prefix=prefix)
        with stage.name_scope():
            stage.add(*make(units))
        return stage

    return build


def _shared(units):
    first = _dense(units)
    return first, _dense(units, params=first.params)


def _symbol(prefix, units):
    data = mx.sym.var("data")
    hidden = mx.sym.FullyConnected(data, name=f"{prefix}fc0", num_hidden=WIDTH)
    output = mx.sym.FullyConnected(mx.sym.tanh(hidden), name=f"{prefix}fc1", num_hidden=WIDTH)
    stage = nn.HybridSequential(prefix=prefix)
    with stage.name_scope():
        stage.add(gluon.SymbolBlock(output, data))
    return stage


def _conv(units):
    return nn.Conv2D(WIDTH, 3, padding=1, in_channels=units)


STAGES = {
    "dense": _stage(lambda units: [_dense(units)]),
    "two dense": _stage(lambda units: [_dense(units), _dense(units)]),
    "batchnorm": _stage(lambda units: [_dense(units), nn.BatchNorm(in_channels=units)]),
    "layernorm": _stage(lambda units: [_dense(units), nn.LayerNorm(in_channels=units)]),
    "dropout": _stage(lambda units: [_dense(units), nn.Dropout(0.3)]),
    "memory": _stage(lambda units: [Memory(_dense(units), nn.Dense(WIDTH, in_units=units))]),
    "sum": _stage(lambda units: [Sum(_dense(units), nn.Dense(WIDTH, in_units=units))]),
    "siamese": _stage(lambda units: [Siamese(_dense(units))]),
    "siamese batchnorm": _stage(lambda units: [Siamese(STAGES["batchnorm"](None, units))]),
    "shared": _stage(_shared),
    "lstm cell": _stage(lambda units: [Unrolled(rnn.LSTMCell(WIDTH, input_size=units))]),
    "gru cell": _stage(lambda units: [Unrolled(rnn.GRUCell(WIDTH, input_size=units))]),
    "lstm": _stage(lambda units: [Fused(rnn.LSTM(WIDTH, input_size=units))]),
    "own": _stage(lambda units: [Own()]),
    "borrowing": _stage(lambda units: [Borrowing()]),
    "symbol": _symbol,
    "conv": _stage(lambda units: [Image(_conv(units), _conv(units))]),
    "conv batchnorm": _stage(lambda units: [Image(_conv(units), nn.BatchNorm(in_channels=units))]),
}


RANDOM = ("dropout", "memory")  # stages that draw random numbers


def build(stages, heads, deferred, contexts):
    """Return a network; two calls return networks with the same bits."""
    net = Network(stages, heads, deferred)
    net.initialize(ByName(), ctx=contexts)
    return net


def trainable(net):
    """Return the Parameters of ``net`` that can train, by name."""
    return {name: param for name, param in net.collect_params().items() if "running" not in name}


def blocks(net):
    """Return the Blocks of ``net`` that hold Parameters, by name."""
    found = {}
    net.apply(lambda block: found.setdefault(block.name, block))
    return {name: block for name, block in found.items() if name and trainable(block)}


def batchnorms(net):
    """Return the BatchNorm layers of ``net``."""
    found = {}
    net.apply(lambda block: isinstance(block, nn.BatchNorm) and found.setdefault(block.name, block))
    return list(found.values())


@functools.lru_cache(maxsize=None)
def names(stages, heads):
    """Return the names of all Blocks below the network, and of all Parameters that can train."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a SymbolBlock whose input is of any type
        net = Network(stages, heads, False)
    return [*(name for name in blocks(net) if name != "net"), *trainable(net)]
