"""Small networks, a training loop for any trainer, and comparisons of what it leaves behind."""

import subprocess
import sys
import textwrap

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from mxnet.gluon import nn

CONTEXTS = [mx.cpu(0), mx.cpu(1)]
PATIENCE = 600  # seconds; stops processes that hang, and is far more than any test needs on a busy machine


def run_python(code, *options):
    """Run a script in a process of its own; return the `CompletedProcess` with what it printed."""
    command = [sys.executable, "-W", "ignore", *options, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def mlp(ctx=None, prefix="net_", batchnorm=True):
    """Return Dense, BatchNorm, Dense with the same weights at every call."""
    mx.random.seed(3)
    net = nn.HybridSequential(prefix=prefix)
    with net.name_scope():
        net.add(nn.Dense(4, in_units=3))
        if batchnorm:
            net.add(nn.BatchNorm(in_channels=4))
        net.add(nn.Dense(2, in_units=4))
    net.initialize(mx.init.Xavier(), ctx=ctx)
    return net


def convolution(shift=0):
    """Return a network that has predicted before, so that its weights are in a layout of MKL-DNN."""
    mx.random.seed(3)
    net = nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(nn.HybridLambda(lambda _, x: x.reshape((0, 3, 1, 1))))
        net.add(nn.Conv2D(16, 1, in_channels=3), *(nn.Conv2D(16, 3, padding=1, in_channels=16) for _ in range(6)))
        net.add(nn.Dense(2, in_units=16))
    net.initialize(mx.init.Uniform(0.2 + shift))
    net(mx.nd.ones((4, 3))).wait_to_read()
    return net


def batches(count=4, size=4, seed=5, columns=2):
    """Return ``count`` batches of inputs and targets."""
    rng = np.random.RandomState(seed)
    return [(mx.nd.array(rng.randn(size, 3)), mx.nd.array(rng.randn(size, columns))) for _ in range(count)]


def backward(net, x, y, ctx=None):
    """Run a forward and a backward pass, split over contexts."""
    ctx = ctx or [mx.cpu(0)]
    parts = zip(gluon.utils.split_and_load(x, ctx), gluon.utils.split_and_load(y, ctx))
    with autograd.record():
        losses = [gluon.loss.L2Loss()(net(a), b) for a, b in parts]
    autograd.backward(losses)


def train(net, trainer, data, ctx=None, step=None):
    """Train on ``data``; return the Parameters after every step."""
    history = []
    for x, y in data:
        backward(net, x, y, ctx)
        (step or trainer.step)(len(x))
        history.append(snapshot(net))
    return history


def with_gradients(net):
    """Request the gradients of a copied network again: MXNet does not copy them."""
    for param in net.collect_params().values():
        grad_req, param.grad_req = param.grad_req, "null"
        param.grad_req = grad_req
    return net


def snapshot(target):
    """Return the arrays of a Block or of Parameters by name, on the first context."""
    params = target.collect_params() if isinstance(target, gluon.Block) else target
    mx.nd.waitall()  # asnumpy changes the layout of a weight in place, and a pass under way may still read it
    return {name: param.list_data()[0].asnumpy() for name, param in params.items()}


def moved(before, after):
    """Return the names whose arrays differ in any bit."""
    assert before.keys() == after.keys()
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


def same(one, other):
    """Whether two histories of `train` agree in every bit."""
    return len(one) == len(other) and not any(moved(a, b) for a, b in zip(one, other))


def close(one, other, tolerance=1e-5):
    """Whether two arrays differ by rounding only, relative to the largest value."""
    return abs(one - other).max() <= tolerance * abs(other).max()


def same_as_stock(ours, stock, runs=20):
    """Whether a history agrees with that of ``stock()`` in every bit, or within rounding if stock's own runs differ.

    They differ under AVX-512 for recurrent layers traced with ``static_shape``, whose bits depend on the addresses of
    arrays, and for NAG after a prediction.
    """
    expected = stock()
    if same(ours, expected):
        return True
    for _ in range(runs):
        other = stock()
        if not same(other, expected):
            return len(ours) == len(other) and all(
                one.keys() == two.keys() and all(close(one[name], two[name], 1e-4) for name in one)
                for one, two in zip(ours, other)
            )
    return False


def weights(names):
    """Return those of ``names`` that are not running statistics."""
    return {name for name in names if "running" not in name}


def fingerprint(trainer, net):
    """Return everything on which further training depends, to be compared bit for bit."""
    params = trainer._params
    updaters = [trainer._kvstore._updater] if trainer._update_on_kvstore else trainer._updaters
    optimizer = trainer.optimizer
    counts = {}
    for on_device in optimizer._all_index_update_counts.values():
        for index, count in on_device.items():
            counts[params[index].name] = max(count, counts.get(params[index].name, 0))
    attributes = {name: value for name, value in vars(optimizer).items() if name not in NOT_COMPARED}
    by_index = {name: attributes.pop(name) for name in list(attributes) if isinstance(attributes[name], dict)}
    scaler = getattr(trainer, "_amp_loss_scaler", None)
    return {
        "weights": {name: array.tobytes() for name, array in snapshot(net).items()},
        "states": {params[i].name: bits(state) for i, state in updaters[0].states.items()},
        "counts": counts,
        "num_update": optimizer.num_update,
        "attributes": bits(attributes),
        "by parameter": {
            (name, params[key].name if type(key) is int and key < len(params) else key): bits(value)
            for name, values in by_index.items()
            for key, value in values.items()
        },
        "scheduler": None if optimizer.lr_scheduler is None else bits(getattr(optimizer.lr_scheduler, "__dict__", 0)),
        "multipliers": {param.name: (param.lr_mult, param.wd_mult, param.grad_req) for param in params},
        "scaler": scaler and bits(vars(scaler)),
    }


NOT_COMPARED = {
    *("param_dict", "idx2name", "sym_info", "lr_mult", "wd_mult", "lr_scheduler", "num_update", "rescale_grad"),
    *("_all_index_update_counts", "_index_update_count", "_multitrainer_filled"),
}


def bits(value):
    """Return a tree of values in a form that `==` compares bit for bit and type for type."""
    if isinstance(value, mx.nd.NDArray):
        value = value.asnumpy()
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value).__name__, value.dtype.name, value.shape, value.tobytes()
    if isinstance(value, dict):
        return type(value).__name__, {key: bits(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value).__name__, [bits(part) for part in value]
    if callable(value):
        return type(value).__name__
    return type(value).__name__, repr(value)


class Overflow:
    """A loss scaler that reports an overflow at the given calls."""

    def __init__(self, at):
        self.at, self.calls, self.loss_scale = at, 0, 1.0

    def has_overflow(self, params):
        self.calls += 1
        for param in params:  # stock Trainer leaves the flag set, and the next backward sets it again
            assert param.grad_req == "null" or param._grad is not None
        return self.calls in self.at
