"""Batches of images: in which order, cropped and coloured how."""

from __future__ import annotations

import random
from typing import Any

import mxnet as mx
from mxnet import gluon
from mxnet.gluon.data.vision import transforms

from multitrainer.images import IMAGENET_MEAN, IMAGENET_STD, ImageTransform

from ..errors import require
from ..ranks.exchange import Ranks
from .image_folder import ImageFolder
from .loader import Loader, RankSampler
from .split import Split

CIFAR_SIZE = 32
TIMEOUT = 120  # seconds that a worker process may take for a batch


class SeededSampler(RankSampler):
    """A `RankSampler` whose positions each come with a seed, as an `ImageFolder` expects them.

    Parameters
    ----------
    length : int
        The number of images.
    ranks : Ranks
        The ranks that share the images.
    seed : int
        Decides the order and the seeds.
    shuffled : bool
        Whether every epoch has an order of its own.
    """

    def __init__(self, length: int, ranks: Ranks, seed: int, shuffled: bool) -> None:
        self._generator = random.Random(seed)
        super().__init__(length, ranks, self._generator.shuffle if shuffled else None)

    def _draw_order(self) -> list[Any]:
        return [(position, self._generator.getrandbits(31)) for position in super()._draw_order()]


def make_loaders(
    split: Split,
    size: int,
    batch_size: int,
    workers: int,
    seed: int,
    ranks: Ranks | None = None,
    augment: bool = True,
) -> tuple[Loader, Loader]:
    """Return the loaders of the batches to train on and to validate on.

    Parameters
    ----------
    split : Split
        The images.
    size : int
        The side of the square images that the network takes.
    batch_size : int
        Images in a batch of this rank, at most as many as there are to train on.
    workers : int
        Processes that read and augment; with 0, this process does it.
    seed : int
        Decides the order and the augmentation.
    ranks : Ranks, optional
        The ranks that share the images.
    augment : bool
        Whether the images to train on are cropped, mirrored and coloured at random.
    """
    ranks = ranks or Ranks()
    split.train.preprocess = _augmentation(size) if augment else validation_transform(size)
    split.val.preprocess = validation_transform(size)
    # "rollover" lets a remainder start the next epoch: no batch is too small for BatchNorm, and all have one shape.
    train = gluon.data.BatchSampler(SeededSampler(len(split.train), ranks, seed, True), batch_size, "rollover")
    val = gluon.data.BatchSampler(SeededSampler(len(split.val), ranks, seed, False), batch_size, "keep")
    options = {"num_workers": workers, "timeout": TIMEOUT}
    return Loader(split.train, train, **options), Loader(split.val, val, **options)


def make_loader_in_order(images: ImageFolder, batch_size: int, workers: int) -> Loader:
    """Return a loader of all images, in order; each is preprocessed as in the loader that `make_loaders` returned."""
    batches = gluon.data.BatchSampler(SeededSampler(len(images), Ranks(), 0, False), batch_size, "keep")
    return Loader(images, batches, num_workers=workers, timeout=TIMEOUT)


class _EnlargeTiny(gluon.Block):
    """Enlarges an image of fewer than 5 pixels, of which MXNet's random crop may take none and fail."""

    def forward(self, image: mx.nd.NDArray) -> mx.nd.NDArray:
        height, width, _ = image.shape
        return image if height * width >= 5 else mx.image.imresize(image, 5 * width, 5 * height)


def validation_transform(size: int) -> ImageTransform:
    """Return the transformation of GluonCV's validation scripts, for the size of CIFAR or of ImageNet."""
    return ImageTransform(size, size if size <= CIFAR_SIZE else round(size / 0.875))


def _augmentation(size: int) -> Any:
    """Return the random transformation of GluonCV's training scripts, for the size of CIFAR or of ImageNet."""
    if size <= CIFAR_SIZE:
        drawn = [
            transforms.Resize(size, keep_ratio=True),
            require("gluoncv.data.transforms.block").RandomCrop(size, pad=4),
            transforms.RandomFlipLeftRight(),
        ]
    else:
        drawn = [
            _EnlargeTiny(),
            transforms.RandomResizedCrop(size),
            transforms.RandomFlipLeftRight(),
            transforms.RandomColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
            transforms.RandomLighting(0.1),
        ]
    return transforms.Compose([*drawn, transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
