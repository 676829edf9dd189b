"""Divide the images of a folder into those to train on and those to validate on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from . import recorded_split
from .image_folder import ImageFolder, check_readable, class_roots

VAL_SHARE = 0.2


class Split(NamedTuple):
    """Images to train on and images to validate on, of the same classes; `notes` say what differs from the record."""

    root: Path
    classes: list[str]
    train: ImageFolder
    val: ImageFolder
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return the record with which `open_folder` divides the folder in the same way later."""
        return recorded_split.make_record(self.root, self.classes, self.train, self.val)

    def check_readable(self) -> None:
        """Raise a UserError if an image cannot be read; this opens all of them."""
        check_readable([path for path, _ in self.train.items + self.val.items])

    def listing(self) -> list[tuple[str, str]]:
        """Return class and file name of every image, in order; they do not depend on where the folder is."""
        items = [*self.train.items, *self.val.items]
        return [(self.classes[label], Path(path).name) for path, label in items]


def open_folder(root: Path, seed: int, record: dict[str, Any] | None = None, out: Path | None = None) -> Split:
    """Open a folder of class folders, or of ``train`` and ``val`` with class folders, and divide its images.

    The images are listed, but not read: see `Split.check_readable`.

    Parameters
    ----------
    root : Path
        The folder.
    seed : int
        Decides which images are set aside if there is no ``val``.
    record : dict, optional
        The record of the run to resume, whose division is kept.
    out : Path, optional
        The folder of the run; it is no class, even if it is among them.

    Raises
    ------
    UserError
        If there is nothing to train on, or the run to resume had other classes, or the same images under exchanged
        names.
    """
    train, *rest = [ImageFolder(folder, out) for folder in class_roots(root)]
    if record is not None:
        recorded_split.check_classes(train.synsets, record, root)
    if len(train.synsets) < 2:
        raise UserError(
            f"--data {root}: expected at least two class folders, found {', '.join(train.synsets) or 'none'}; "
            "make one folder of images for each class"
        )
    for val in rest:
        _check_same_classes(train, val, root)
    notes: tuple[str, ...] = ()
    if record is not None:
        train, val, notes = recorded_split.divide([train, *rest], record, root)
    elif not rest:
        train, val = _divide_at_random(train, seed)
    return Split(root, list(train.synsets), train, val, notes)


def _check_same_classes(train: ImageFolder, val: ImageFolder, root: Path) -> None:
    only = {
        "train": sorted(set(train.synsets) - set(val.synsets)),
        "val": sorted(set(val.synsets) - set(train.synsets)),
    }
    differences = [f"{', '.join(names)} only in {part}" for part, names in only.items() if names]
    if differences:
        raise UserError(
            f"--data {root}: train and val must hold the same class folders, but {' and '.join(differences)}"
        )


def _divide_at_random(images: ImageFolder, seed: int) -> tuple[ImageFolder, ImageFolder]:
    """Set a share of every class aside."""
    generator = random.Random(seed)
    train: list[int] = []
    val: list[int] = []
    for label, name in enumerate(images.synsets):
        positions = [position for position, item in enumerate(images.items) if item[1] == label]
        if len(positions) < 2:
            raise UserError(
                f"class {name} has a single image, which cannot both train and validate; add images, or divide the "
                "folder into train/ and val/ yourself"
            )
        generator.shuffle(positions)
        count = max(1, round(len(positions) * VAL_SHARE))
        val += positions[:count]
        train += positions[count:]
    first, second = ([images.items[position] for position in sorted(part)] for part in (train, val))
    return images.with_items(first), images.with_items(second)
