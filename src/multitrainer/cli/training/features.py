"""Features of a frozen backbone, computed once: the epochs then cost what the head costs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from ... import MultiLRTrainer, _mxnet
from ..runs import artifacts
from . import network
from .loop import Interrupts, Loader, split

MEMORY = 1024  # MB
_TOLERANCE = 1e-4  # for what another graph computes, which differs in the last bits


class Job(NamedTuple):
    """Whose features are to be kept, and where.

    Parameters
    ----------
    every : Loader
        Batches of all images to train on, in order.
    train, val : Loader
        Batches of the run: those to train on, whose order is kept, and this rank's share of those to measure on.
    contexts : list of Context
        The devices.
    interrupts : Interrupts
        Asked between two batches whether to stop.
    folder : Path, optional
        Where the features go that memory has no room for, in files without a name, which end with the process; by
        default where temporary files go.
    memory : float
        How many MB of features are kept in memory.
    """

    every: Loader
    train: Loader
    val: Loader
    contexts: list[mx.Context]
    interrupts: Interrupts
    folder: Path | None = None
    memory: float = MEMORY


class Backbone:
    """A network up to its head.

    Parameters
    ----------
    net : HybridBlock
        The network. It is not hybridized any more: a graph of it would compute the head too.
    head : str
        The path of its last layer.
    """

    def __init__(self, net: gluon.HybridBlock, head: str) -> None:
        self.net = net
        self.head = network.find(net, head)
        net.hybridize(False)

    def __call__(self, x: mx.nd.NDArray) -> tuple[mx.nd.NDArray, mx.nd.NDArray]:
        """Return what the head is given for a batch, and what the network makes of the batch."""
        given: list[mx.nd.NDArray] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
        try:
            output = self.net(x)
        finally:
            hook.detach()
        return given[-1], output

    def why_not(self, x: mx.nd.NDArray) -> str | None:
        """Say why the head alone cannot stand for the network, or None where it can."""
        features, output = self(x)
        if not _equal(self.head(features), output):
            return "something comes after its last layer"
        with autograd.train_mode():
            drawn, _ = self(x)
        if not _equal(drawn, features):
            return "while it trains they are drawn anew each time (Dropout)"
        return None


def is_frozen(net: gluon.Block, head: str, trainer: MultiLRTrainer) -> bool:
    """Whether nothing but the head is trained, now and later."""
    outside = set(net.collect_params().values()) - set(network.find(net, head).collect_params().values())
    scheduled = [param for group in trainer.groups if callable(group.lr_mult) for param in group.params.values()]
    return all(param.lr_mult == 0 or _mxnet.is_auxiliary(param) for param in outside) and outside.isdisjoint(scheduled)


class Trained(NamedTuple):
    """What is trained, on which batches, and measured on which; `note` says so where it is not the network itself."""

    block: gluon.HybridBlock
    train: Loader
    val: Loader
    note: str = ""


def keep(net: gluon.HybridBlock, head: str, job: Job) -> Trained:
    """Compute the features of all images once, to train the head on; or say why that would be something else."""
    backbone = Backbone(net, head)
    first = next(iter(job.val))[0]
    reason = backbone.why_not(first.as_in_context(job.contexts[0]))
    if reason:
        net.hybridize(static_alloc=True)
        return Trained(net, job.train, job.val, f"the backbone is frozen, but its features cannot be kept: {reason}")
    room = int(job.memory * 2**20)
    every = _compute(backbone, job.every, job, room)
    val = _compute(backbone, job.val, job, room if every.on_disk else room - every.nbytes)
    backbone.head.hybridize(static_alloc=True)
    in_order = gluon.data.BatchSampler(gluon.data.SequentialSampler(len(val)), len(first), "keep")
    places = " and ".join(sorted({"on disk" if each.on_disk else "in memory" for each in (every, val)}))
    size = (every.nbytes + val.nbytes) / 2**20
    note = (
        f"the backbone is frozen: features of {len(every) + len(val)} images are computed once, {size:.1f} MB {places}"
    )
    return Trained(backbone.head, Loader(every, job.train.batches), Loader(val, in_order), note)


class _Features(gluon.data.Dataset):
    """Features and labels by position, whatever else a sampler says of the image there."""

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        self._features = features
        self._labels = labels
        self.nbytes = features.nbytes
        self.on_disk = isinstance(features, np.memmap)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: Any) -> tuple[np.ndarray, Any]:
        position = index[0] if isinstance(index, tuple) else index
        return self._features[position], self._labels[position]


def _compute(backbone: Backbone, loader: Loader, job: Job, room: int) -> _Features:
    labels: list[np.ndarray] = []

    def batches() -> Iterator[np.ndarray]:
        for images, label in loader:
            job.interrupts.check()
            labels.append(label.asnumpy())
            yield np.concatenate([backbone(x)[0].asnumpy() for x in split(images, job.contexts)])

    features = _stored(batches(), max(room, 1), job.folder)
    return _Features(features, np.concatenate(labels))


def _stored(batches: Iterator[np.ndarray], room: int, folder: Path | None) -> np.ndarray:
    """Put batches after one another, in memory or, if they are larger than ``room`` bytes, in a file without a name."""
    try:
        with tempfile.SpooledTemporaryFile(room, dir=None if folder is None else str(folder)) as spool:
            for batch in batches:
                spool.write(batch.tobytes())
            shape = (-1, *batch.shape[1:])
            if spool.tell() <= room:
                spool.seek(0)
                return np.frombuffer(spool.read(), batch.dtype).reshape(shape)
            spool.flush()
            return np.memmap(spool, batch.dtype, "r").reshape(shape)  # the file lives as long as its map
    except OSError as error:
        where = folder or Path(tempfile.gettempdir())
        raise artifacts.cannot_write(where / "features", error.strerror or str(error)) from error


def _equal(one: mx.nd.NDArray, other: mx.nd.NDArray) -> bool:
    close = np.allclose(one.asnumpy(), other.asnumpy(), rtol=_TOLERANCE, atol=_TOLERANCE)
    return one.shape == other.shape and bool(close)
