"""Networks and trainers that are saved and restored, and files whose header is changed."""

import json

import mxnet as mx
import numpy as np

from multitrainer import MultiLRTrainer
from multitrainer.checkpoint import archive
from optimizer_zoo import network
from support import batches, fingerprint, mlp, same, train

SCHEDULERS = {
    "factor": lambda: mx.lr_scheduler.FactorScheduler(3, 0.5, base_lr=0.05),
    "multifactor": lambda: mx.lr_scheduler.MultiFactorScheduler([2, 4, 7], 0.5, base_lr=0.05, warmup_steps=1),
    "poly": lambda: mx.lr_scheduler.PolyScheduler(12, base_lr=0.05, pwr=2),
    "cosine": lambda: mx.lr_scheduler.CosineScheduler(12, base_lr=0.05, final_lr=0.01, warmup_steps=2),
}


class Run:
    """A network and its trainer, built in the same way every time; the first layer is frozen unless `spec` differs."""

    def __init__(self, name, params, ctx=None, hybridize=False, scheduler=None, spec=None, **stores):
        self.ctx = ctx
        # Statistics are one for each context, and a file of parameters holds their mean.
        self.net = mlp(ctx, batchnorm=False) if ctx else network(name, ctx)
        if hybridize:
            self.net.hybridize()
        options = {**params, "lr_scheduler": SCHEDULERS[scheduler]()} if scheduler else params
        spec = spec or (lambda net: [net, (net[0], 0)])
        self.trainer = MultiLRTrainer(spec(self.net), name, options, **stores)

    def train(self, first, count):
        mx.random.seed(first)  # SGLD draws its noise from it, and no file could say where it is
        return train(self.net, self.trainer, batches(first + count)[first:], self.ctx)

    def save(self, folder):
        self.net.save_parameters(str(folder / "net.params"))
        self.trainer.save_states(folder / "states")
        return self

    def load(self, folder, **options):
        self.net.load_parameters(str(folder / "net.params"), ctx=self.ctx)
        self.trainer.load_states(folder / "states", **options)
        return self


def saved_and_loaded(folder, build, steps=3, between=None):
    """Train, save, build again and load; return both pairs of network and trainer."""
    net, trainer = build()
    train(net, trainer, batches(steps))
    net.save_parameters(str(folder / "net"))
    trainer.save_states(folder / "states")
    if between is not None:
        between(folder / "states")
    other, fresh = build()
    other.load_parameters(str(folder / "net"))
    fresh.load_states(folder / "states")
    return (net, trainer), (other, fresh)


def resumes(folder, build, **options):
    """Whether a resumed training takes the same steps as one that was not stopped."""
    (net, trainer), (other, fresh) = saved_and_loaded(folder, build, **options)
    assert fingerprint(trainer, net) == fingerprint(fresh, other)
    goes_on = same(train(net, trainer, batches(3, seed=8)), train(other, fresh, batches(3, seed=8)))
    return goes_on and fingerprint(trainer, net) == fingerprint(fresh, other)


def rewrite(path, to, change):
    """Write the file at ``path`` to another path, with a header that ``change`` was called with."""
    with np.load(str(path)) as file:
        members = {name: file[name] for name in file.files}
    header = json.loads(members.pop(archive.HEADER).item())
    change(header)
    archive.write(to, header, list(members.items()))


def replace_entry(path, to, keys, value):
    """Write the file at ``path`` to another path, with another value for one entry of the header."""

    def change(header):
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    rewrite(path, to, change)


def without_shared(path):
    """Write a file as early versions did, which had no 'shared'."""
    rewrite(path, path, lambda header: header.pop("shared"))
