"""A Module of one convolution, for the tests of multipliers under the Module API."""

import mxnet as mx

from support import moved


def convolution(**attributes):
    """Return the symbol of a convolution of one filter, with a loss."""
    weight = mx.sym.Variable("conv1_weight", **attributes)
    net = mx.sym.Convolution(mx.sym.Variable("data"), weight, name="conv1", kernel=(3, 3), num_filter=1)
    return mx.sym.LinearRegressionOutput(mx.sym.flatten(net), mx.sym.Variable("label"))


def bound(symbol=None, context=None, shape=(1, 3, 3), **kwargs):
    symbol = convolution() if symbol is None else symbol
    module = mx.mod.Module(symbol, label_names=["label"], context=context or mx.cpu(), **kwargs)
    size = len(context or [0])
    module.bind([("data", (size, *shape))], [("label", (size, 1))])
    mx.random.seed(7)
    module.init_params(mx.init.Uniform(0.1))
    return module


def ready(optimizer="sgd", kvstore="local", context=None, symbol=None, optimizer_params=None, **kwargs):
    module = bound(symbol, context, **kwargs)
    optimizer_params = {"learning_rate": 0.05, **(optimizer_params or {})}
    module.init_optimizer(kvstore, optimizer, optimizer_params)
    return module


def arrays(module):
    return {name: array.asnumpy() for name, array in module.get_params()[0].items()}


def update(module, count=4, shape=(1, 3, 3), size=1):
    """Make ``count`` updates; return the parameters that moved."""
    before = arrays(module)
    batch = mx.io.DataBatch([mx.nd.ones((size, *shape))], [mx.nd.full((size, 1), -2)])
    for _ in range(count):
        module.forward_backward(batch)
        module.update()
    return moved(before, arrays(module))


def output(module):
    batch = mx.io.DataBatch([mx.nd.ones((1, 1, 3, 3))], [mx.nd.full((1, 1), -2)])
    module.forward(batch, is_train=False)
    return float(module.get_outputs()[0].asscalar())


def optimizer_of(module):
    return module._optimizer
