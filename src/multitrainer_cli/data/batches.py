"""Batches of images: in which order, cropped and coloured how."""

from __future__ import annotations

import random
from typing import Any

from mxnet import gluon
from mxnet.gluon.data.vision import transforms

from ..errors import require
from ..ranks.exchange import Ranks
from .image_folder import ImageFolder
from .loader import Loader, RankSampler
from .split import Split

CIFAR_SIZE = 32
TIMEOUT = 120  # seconds that a worker process may take for a batch
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    split.train.preprocess = _augmentation(size) if augment else _centre_crop(size)
    split.val.preprocess = _centre_crop(size)
    # "rollover" lets a remainder start the next epoch: no batch is too small for BatchNorm, and all have one shape.
    train = gluon.data.BatchSampler(SeededSampler(len(split.train), ranks, seed, True), batch_size, "rollover")
    val = gluon.data.BatchSampler(SeededSampler(len(split.val), ranks, seed, False), batch_size, "keep")
    options = {"num_workers": workers, "timeout": TIMEOUT}
    return Loader(split.train, train, **options), Loader(split.val, val, **options)


def make_loader_in_order(images: ImageFolder, batch_size: int, workers: int) -> Loader:
    """Return a loader of all images, in order; each is preprocessed as in the loader that `make_loaders` returned."""
    batches = gluon.data.BatchSampler(SeededSampler(len(images), Ranks(), 0, False), batch_size, "keep")
    return Loader(images, batches, num_workers=workers, timeout=TIMEOUT)


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
            transforms.RandomResizedCrop(size),
            transforms.RandomFlipLeftRight(),
            transforms.RandomColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
            transforms.RandomLighting(0.1),
        ]
    return transforms.Compose([*drawn, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def _centre_crop(size: int) -> Any:
    """Return the transformation of GluonCV's validation scripts."""
    preset = require("gluoncv.data.transforms.presets.imagenet")
    short = size if size <= CIFAR_SIZE else round(size / 0.875)
    return lambda image: preset.transform_eval(image, resize_short=short, crop_size=size, mean=MEAN, std=STD)[0]
