"""A GAN in small: two networks, each under a trainer of its own, which make steps in turn."""

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from mxnet.gluon import nn

from support import snapshot

OPTIMIZER = ("sgd", {"learning_rate": 0.2, "momentum": 0.9})
BATCH = 8  # of all ranks together
LOSS = gluon.loss.SigmoidBCELoss()


def make_networks(deferred=False, shift=0):
    """Return generator and discriminator with the same weights at every call, and ``shift`` added to them."""
    mx.random.seed(3)
    networks = {}
    for name, sizes in (("generator", (3, 5, 4)), ("discriminator", (4, 6, 1))):
        net = networks[name] = nn.HybridSequential(prefix=f"{name}_")
        with net.name_scope():
            for size, before in zip(sizes[1:], sizes):
                net.add(nn.Dense(size, in_units=0 if deferred else before))
        net.initialize(mx.init.Xavier())
        if deferred:
            net(mx.nd.ones((1, sizes[0])))
        for param in net.collect_params().values():
            param.set_data(param.data() + shift)
    return networks


def batch(step):
    """Return noise and real data of all ranks."""
    rng = np.random.RandomState(step)
    return rng.randn(BATCH, 3).astype("float32"), rng.randn(BATCH, 4).astype("float32")


def train(networks, trainers, steps, share=slice(None), batch_size=BATCH, change=lambda step: None):
    """Make ``steps`` steps of both on a share of every batch; return all weights after each."""
    generator, discriminator = networks["generator"], networks["discriminator"]
    history = []
    for step in range(steps):
        change(step)
        noise, real = (mx.nd.array(part[share]) for part in batch(step))
        with autograd.record():
            fake = generator(noise)
            wrong = LOSS(discriminator(real), mx.nd.ones(len(real)))
            wrong = wrong + LOSS(discriminator(fake.detach()), mx.nd.zeros(len(real)))
        wrong.backward()
        trainers["discriminator"].step(batch_size)
        with autograd.record():
            deceived = LOSS(discriminator(generator(noise)), mx.nd.ones(len(real)))
        deceived.backward()
        trainers["generator"].step(batch_size)
        history.append({name: array for net in networks.values() for name, array in snapshot(net).items()})
    return history


def freeze_and_unfreeze(networks, trainers):
    """Return the changes of a run: the discriminator's first layer is frozen in step 2 alone."""

    def change(step):
        if step in (2, 3):
            trainers["discriminator"].set_lr_mult({networks["discriminator"][0]: 0 if step == 2 else 0.5})

    return change


def save(file, history):
    """Write the weights after every step."""
    np.savez(file, **{f"{step}/{name}": array for step, arrays in enumerate(history) for name, array in arrays.items()})


def assert_equal_to_one_process(folder, expected, bound=1e-6, ranks=2):
    """Check that all ranks hold the same bits after every step, and those of one process but for rounding."""
    files = [np.load(folder / f"rank{rank}.npz") for rank in range(ranks)]
    for step, arrays in enumerate(expected):
        for name, array in arrays.items():
            first, *others = (file[f"{step}/{name}"] for file in files)
            assert all(first.tobytes() == other.tobytes() for other in others), (step, name)
            assert abs(first - array).max() <= bound * max(1, abs(array).max()), (step, name)
    assert all(len(file.files) == len(expected) * len(expected[0]) for file in files)
