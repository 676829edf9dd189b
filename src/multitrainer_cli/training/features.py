"""Features of a frozen backbone, computed once: every epoch then costs only what the head costs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from multitrainer import MultiLRTrainer, _mxnet

from ..arguments import defaults
from ..data.loader import Loader
from ..interrupts import Interrupts
from ..runs import artifacts
from . import network
from .loop import split_batch

_TOLERANCE = 1e-4  # another graph computes other last bits


class TrainingTask(NamedTuple):
    """A Block to train, and the batches to train and to validate it on; `note` says why it is not the whole network."""

    block: gluon.HybridBlock
    train: Loader
    val: Loader
    note: str = ""


class FeatureCache:
    """Computes features and keeps them in memory, or on disk if they are larger than that.

    Parameters
    ----------
    contexts : list of Context
        The devices to compute on.
    interrupts : Interrupts
        Checked between two batches.
    memory : float
        How many MB of features are kept in memory.
    folder : Path, optional
        The folder of the files on disk, by default that of temporary files. They have no names and end with the
        process.
    """

    def __init__(
        self,
        contexts: list[mx.Context],
        interrupts: Interrupts,
        memory: float = defaults.FEATURE_MEMORY,
        folder: Path | None = None,
    ) -> None:
        self.contexts = contexts
        self._interrupts = interrupts
        self._free_bytes = int(memory * 2**20)
        self._folder = folder

    def compute(self, backbone: Backbone, loader: Loader) -> CachedFeatures:
        """Return the features of all images of a loader, with their labels."""
        labels: list[np.ndarray] = []

        def batches() -> Iterator[np.ndarray]:
            for images, label in loader:
                self._interrupts.check()
                labels.append(label.asnumpy())
                yield np.concatenate([backbone(x)[0].asnumpy() for x in split_batch(images, self.contexts)])

        features = CachedFeatures(self._concatenate(batches()), np.concatenate(labels))
        if not features.on_disk:
            self._free_bytes -= features.nbytes
        return features

    def _concatenate(self, batches: Iterator[np.ndarray]) -> np.ndarray:
        max_bytes = max(self._free_bytes, 1)  # to a temporary file, 0 means no limit
        try:
            with tempfile.SpooledTemporaryFile(
                max_bytes, dir=None if self._folder is None else str(self._folder)
            ) as file:
                for batch in batches:
                    file.write(batch.tobytes())
                shape = (-1, *batch.shape[1:])
                if file.tell() <= max_bytes:
                    file.seek(0)
                    return np.frombuffer(file.read(), batch.dtype).reshape(shape)
                file.flush()
                return np.memmap(file, batch.dtype, "r").reshape(shape)  # the file lives as long as its map
        except OSError as error:
            path = (self._folder or Path(tempfile.gettempdir())) / "features"
            raise artifacts.cannot_write(path, error.strerror or str(error)) from error


class CachedFeatures(gluon.data.Dataset):
    """Features and labels by position; an index may also be a position with a seed, which is ignored.

    Parameters
    ----------
    features, labels : numpy.ndarray
        One row for each image.
    """

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


class Backbone:
    """A network without its head.

    Parameters
    ----------
    net : HybridBlock
        The network. Its hybridization is switched off: a graph of it would compute the head too.
    head : str
        The path of its last layer.
    """

    def __init__(self, net: gluon.HybridBlock, head: str) -> None:
        self.net = net
        self.head = network.find(net, head)
        net.hybridize(False)

    def __call__(self, x: mx.nd.NDArray) -> tuple[mx.nd.NDArray, mx.nd.NDArray]:
        """Return the input of the head for a batch, and the output of the network."""
        head_inputs: list[mx.nd.NDArray] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: head_inputs.append(inputs[0]))
        try:
            output = self.net(x)
        finally:
            hook.detach()
        return head_inputs[-1], output

    def reason_not_to_cache(self, x: mx.nd.NDArray) -> str | None:
        """Say why training the head on cached features would differ from training the network, or return None."""
        features, output = self(x)
        if not _equal(self.head(features), output):
            return "something comes after its last layer"
        with autograd.train_mode():
            features_in_training, _ = self(x)
        if not _equal(features_in_training, features):
            return "while it trains they change at random (Dropout)"
        return None


def trains_head_only(net: gluon.Block, head: str, trainer: MultiLRTrainer) -> bool:
    """Return whether the head is the only part that the trainer trains, now and later."""
    outside = set(net.collect_params().values()) - set(network.find(net, head).collect_params().values())
    scheduled = [param for group in trainer.groups if callable(group.lr_mult) for param in group.params.values()]
    return all(param.lr_mult == 0 or _mxnet.is_auxiliary(param) for param in outside) and outside.isdisjoint(scheduled)


def cache_features(
    net: gluon.HybridBlock, head: str, train_in_order: Loader, train: Loader, val: Loader, cache: FeatureCache
) -> TrainingTask:
    """Compute the features of all images, and return the task to train the head on them.

    If that would differ from training the network, the task is the network itself, and its note says why.

    Parameters
    ----------
    net : HybridBlock
        The network.
    head : str
        The path of its last layer.
    train_in_order : Loader
        All images to train on, in order, whichever rank trains on them.
    train, val : Loader
        The batches of the run: their order is kept.
    cache : FeatureCache
        Computes and keeps the features.
    """
    backbone = Backbone(net, head)
    first = next(iter(val))[0]
    reason = backbone.reason_not_to_cache(first.as_in_context(cache.contexts[0]))
    if reason:
        net.hybridize(static_alloc=True)
        return TrainingTask(net, train, val, not_cached(reason))
    datasets = [cache.compute(backbone, loader) for loader in (train_in_order, val)]
    backbone.head.hybridize(static_alloc=True)
    in_order = gluon.data.BatchSampler(gluon.data.SequentialSampler(len(datasets[1])), len(first), "keep")
    loaders = Loader(datasets[0], train.batches), Loader(datasets[1], in_order)
    return TrainingTask(backbone.head, *loaders, _describe(datasets))


def not_cached(reason: str) -> str:
    """Return the note of a task that trains the whole network although its backbone is frozen."""
    return f"the backbone is frozen, but its features cannot be kept: {reason}"


def _describe(datasets: list[CachedFeatures]) -> str:
    count, size = sum(map(len, datasets)), sum(dataset.nbytes for dataset in datasets) / 2**20
    places = " and ".join(sorted({"on disk" if dataset.on_disk else "in memory" for dataset in datasets}))
    return f"the backbone is frozen: features of {count} images are computed once, {size:.1f} MB {places}"


def _equal(one: mx.nd.NDArray, other: mx.nd.NDArray) -> bool:
    close = np.allclose(one.asnumpy(), other.asnumpy(), rtol=_TOLERANCE, atol=_TOLERANCE)
    return one.shape == other.shape and bool(close)
