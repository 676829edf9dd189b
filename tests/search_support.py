"""Training steps that return their loss, and everything that a search for a learning rate must put back."""

import random

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from mxnet.gluon import nn

from multitrainer import MultiLRTrainer
from support import batches, bits, fingerprint, mlp

L2 = gluon.loss.L2Loss()


def make_step(net, trainer, ctx=None, calls=None):
    """Return a training step that returns the loss on each context, and appends to ``calls``."""
    ctx = ctx or [mx.cpu(0)]

    def train_step(batch):
        x, y = batch
        parts = zip(gluon.utils.split_and_load(x, ctx), gluon.utils.split_and_load(y, ctx))
        with autograd.record():
            losses = [L2(net(a), b) for a, b in parts]
        autograd.backward(losses)
        trainer.step(len(x))
        if calls is not None:
            calls.append(trainer.learning_rates)
        return losses if len(losses) > 1 else losses[0]

    return train_step


def dropout_mlp(ctx=None):
    """Return a network that draws random numbers in training."""
    net = mlp(ctx)
    net.add(nn.Dropout(0.5))
    return net


def build(optimizer="sgd", ctx=None, net=None, scheduler=None, **kwargs):
    """Return a network, its trainer with two groups, and a training step."""
    net = net or mlp(ctx)
    settings = {"learning_rate": 0.05, **({"momentum": 0.9} if optimizer in ("sgd", "nag") else {})}
    if scheduler is not None:
        settings["lr_scheduler"] = scheduler
    trainer = MultiLRTrainer([net, (net[0], 0.1)], optimizer, settings, **kwargs)
    return net, trainer, make_step(net, trainer, ctx)


def everything(trainer, net):
    """Return everything that training changes, to be compared bit for bit."""
    mx.nd.waitall()
    params = list(net.collect_params().values())
    optimizer = trainer.optimizer
    store = trainer._kvstore if trainer._update_on_kvstore else None
    stored = []
    for param in trainer._multipliers.trainable if store is not None else ():
        stored.append(mx.nd.zeros(param.shape))
        store.pull(trainer._param2idx[param.name], stored[-1])
    return {
        **fingerprint(trainer, net),
        "arrays": [[bits(array) for array in param._data] for param in params],
        "gradients": [[bits(array) for array in param._grad or ()] for param in params],
        "fresh": [[array._fresh_grad for array in param._data] for param in params],
        "settings": (optimizer.rescale_grad, trainer.learning_rate, optimizer.lr, trainer._scale),
        "stored": bits(stored),
        "random": (random.getstate(), bits(np.random.get_state()), next_draws()),
    }


def next_draws():
    """Return what the generators of MXNet would draw next on this thread; they are left as they are."""
    from multitrainer._mxnet import cpu_generators

    return [states.tobytes() for states in cpu_generators()]


__all__ = ["batches", "build", "dropout_mlp", "everything", "make_step"]
