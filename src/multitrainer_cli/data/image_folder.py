"""A folder that holds one folder of images for each class: list it, check it, read its images."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import gluon

from ..errors import UserError, require

EXTENSIONS = (".jpg", ".jpeg", ".png")


class ImageFolder(gluon.data.vision.ImageFolderDataset):
    """Gluon's dataset of class folders, but without hidden folders; errors name the file that cannot be read.

    An index is a position and a seed, which decides what `preprocess` draws at random for that image.

    Parameters
    ----------
    root : Path
        The folder that holds one folder for each class.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.preprocess: Any = None

    def _list_images(self, root: str) -> None:
        self.synsets: list[str] = []
        self.items: list[tuple[str, int]] = []
        for folder in _class_folders(Path(root)):
            images = sorted(file for file in folder.iterdir() if file.suffix.lower() in EXTENSIONS)
            if not images:
                raise UserError(
                    f"{folder} holds no images ({', '.join(EXTENSIONS)}); put some there or remove the folder"
                )
            _check_class_name(folder)
            _check_utf8(images)
            self.items += [(str(image), len(self.synsets)) for image in images]
            self.synsets.append(folder.name)

    def __getitem__(self, index: tuple[int, int]) -> tuple[mx.nd.NDArray, int]:
        position, seed = index
        path, label = self.items[position]
        try:
            image = mx.image.imread(path)
        except mx.MXNetError as error:
            raise _unreadable([path]) from error
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


def class_roots(root: Path) -> list[Path]:
    """Return the folders that hold class folders: `root` itself, or its ``train`` and, if it exists, its ``val``."""
    if not root.is_dir():
        raise UserError(f"--data {root}: no such folder")
    # A class may be called "train", too; it then holds images and no folders.
    if not ((root / "train").is_dir() and _class_folders(root / "train")):
        return [root]
    return [root / "train", *[root / "val"] * (root / "val").is_dir()]


def class_names(root: Path) -> list[str]:
    """Return the names of the class folders, without a look into them."""
    return [folder.name for folder in _class_folders(class_roots(root)[0])]


def check_readable(paths: list[str]) -> None:
    """Raise UserError if the header of an image is damaged, before the first epoch; reading finds other damage."""
    image = require("PIL.Image")
    broken = []
    for path in paths:
        try:
            with image.open(path) as opened:
                opened.verify()
        except Exception:  # Pillow raises many types
            broken.append(path)
    if broken:
        raise _unreadable(broken)


def _class_folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _check_class_name(folder: Path) -> None:
    """Refuse a name that is not exactly one line of classes.txt: the lines after it would name other outputs."""
    name = folder.name
    if name.encode("utf-8", "replace").decode().splitlines() != [name]:
        raise UserError(f"the name of class folder {str(folder)!r} does not fit on a line of classes.txt; rename it")


def _check_utf8(images: list[Path]) -> None:
    """Refuse a name that MXNet cannot open."""
    for image in images:
        if str(image).encode("utf-8", "replace").decode() != str(image):
            raise UserError(f"the name of image {str(image)!r} is not in UTF-8; rename it")


def _unreadable(paths: list[str]) -> UserError:
    shown = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return UserError(f"{shown}: not a readable JPEG or PNG image; remove or replace it")
