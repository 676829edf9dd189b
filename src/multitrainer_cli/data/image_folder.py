"""A folder that holds one folder of images for each class, as a dataset."""

from __future__ import annotations

import copy
import random
import warnings
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import gluon

from multitrainer.images import read_image

from ..errors import UserError
from .layout import LeftOut, list_classes


class ImageFolder(gluon.data.Dataset):
    """The images of class folders, in order.

    An index is a position and a seed, which decides what `preprocess` draws at random for that image.

    Parameters
    ----------
    root : Path
        The folder that holds one folder for each class.
    left_out : LeftOut
        Gets what is not used.
    out : Path, optional
        The folder of the run, which is no class.

    Attributes
    ----------
    synsets : list of str
        The names of the classes.
    items : list of (str, int)
        The path and the label of each image.
    preprocess : callable
        Makes the input of the network from the pixels of an image.
    """

    def __init__(self, root: Path, left_out: LeftOut, out: Path | None = None) -> None:
        classes = list_classes(root, left_out, out)
        self.synsets = [folder.name for folder in classes]
        self.items = [(str(image), label) for label, images in enumerate(classes.values()) for image in images]
        self.preprocess: Any = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: tuple[int, int]) -> tuple[mx.nd.NDArray, int]:
        position, seed = index
        path, label = self.items[position]
        image = _read(path)
        # With a seed for each image, the result does not depend on which worker process reads it.
        random.seed(seed)
        np.random.seed(seed)
        mx.random.seed(seed, ctx=mx.cpu())
        return self.preprocess(image), label

    def with_items(self, items: list[tuple[str, int]]) -> ImageFolder:
        """Return a copy of this dataset that holds other images: pairs of a path and a label."""
        part = copy.copy(self)
        part.items = items
        return part


def _read(path: str) -> mx.nd.NDArray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in the check before training
            return read_image(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{error}; every image could be read when the run began") from error
