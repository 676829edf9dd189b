"""Parameters of many shapes, and updates of them with gradients of any size, for the tests of the fused update."""

import shutil

import mxnet as mx
import numpy as np
import pytest
from mxnet import gluon

from multitrainer.fused.kernels import load_kernels
from support import bits

SHAPES = [(1,), (7,), (33, 5), (16, 3, 7, 7), (200, 513), (17,), (1, 1)]
OPTIMIZERS = [
    ("sgd", {"learning_rate": 0.1}),
    ("sgd", {"learning_rate": 0.0123, "wd": 1.3e-4}),
    ("sgd", {"learning_rate": 0.0123, "wd": 1.3e-4, "momentum": 0.9}),
    ("nag", {"learning_rate": 0.0123, "wd": 1.3e-4}),
    ("nag", {"learning_rate": 0.0123, "wd": 1.3e-4, "momentum": 0.9}),
    ("adam", {"wd": 1.3e-4}),
    ("adam", {"learning_rate": 0.0123, "beta1": 0.85, "beta2": 0.97, "epsilon": 1.7e-7}),
    ("adamw", {}),
    ("adamw", {"learning_rate": 0.0123, "wd": 0, "correct_bias": False}),
    ("adamw", {"learning_rate": 0.0123, "wd": 0.3, "beta1": 0.85, "beta2": 0.97, "epsilon": 1.7e-3}),
]
IDS = [f"{name} {' '.join(given)}" for name, given in OPTIMIZERS]


def parameters(shapes, dtype="float32", seed=1):
    """Return Parameters with values and multipliers of their own."""
    values, params = np.random.RandomState(seed), []
    for i, shape in enumerate(shapes):
        param = gluon.Parameter(f"p{i:03}", shape=shape, dtype=dtype)
        param.initialize()
        param.set_data(mx.nd.array(values.randn(*shape), dtype=dtype))
        param.lr_mult, param.wd_mult = 1 + 0.1 * (i % 3), 0.3 * i
        params.append(param)
    return params


def build(kind, *args, **kwargs):
    """Return Parameters and a trainer of them."""
    params = parameters(SHAPES)
    return params, kind(params, *args, **kwargs)


def backward_pass(params, values):
    """Give every Parameter a new gradient, as a backward pass does."""
    for param in params:
        scale = 10.0 ** values.uniform(-3, 3)
        for data, grad in zip(param.list_data(), param.list_grad()):
            grad[:] = mx.nd.array(scale * values.randn(*param.shape), dtype=grad.dtype, ctx=grad.context)
            data._fresh_grad = True


def run(params, trainer, steps=4, between=None):
    """Return weights and states after a few steps, with a batch size that changes."""
    values = np.random.RandomState(7)
    for number in range(steps):
        backward_pass(params, values)
        if between is not None:
            between(trainer, number)
        trainer.step(3 + number)
    return [bits(param.list_data()) for param in params], bits(trainer._updaters[0].states)


def counts(trainer):
    optimizer = trainer._optimizer
    return optimizer.num_update, optimizer._all_index_update_counts


def fail_in_the_engine(params):
    """Have an operator fail after it was asked for, as one in a backward pass may."""
    params[0].grad()[:] = mx.nd.random.normal(0, -1, SHAPES[0])


def require_kernels():
    """Skip a test, or a module, if the package was built on a machine without a C compiler."""
    if load_kernels() is None and shutil.which("cc") is None:
        pytest.skip("the package was built without a C compiler", allow_module_level=True)
