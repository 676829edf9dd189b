"""Divide the images of a folder into those to train on and those to validate on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

from ..arguments import defaults
from ..errors import UserError
from . import recorded_split
from .image_check import check_readable
from .image_folder import ImageFolder
from .layout import Layout, LeftOut, check_depth, find_layout, naming_data, note_beside


class Split(NamedTuple):
    """Images to train on and images to validate on, of the same classes.

    `notes` say what of the folder is not used, where the images to validate on come from, and what is not as recorded.
    """

    root: Path
    classes: list[str]
    train: ImageFolder
    val: ImageFolder
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return the record with which `open_folder` divides the folder in the same way later."""
        return recorded_split.make_record(self.root, self.classes, self.train, self.val)

    def check_readable(self) -> None:
        """Raise a UserError if an image cannot be read; this decodes all of them."""
        check_readable([path for path, _ in self.train.items + self.val.items], self.root)

    def listing(self) -> list[tuple[str, str]]:
        """Return class and file name of every image, in order; they do not depend on where the folder is."""
        items = [*self.train.items, *self.val.items]
        return [(self.classes[label], Path(path).name) for path, label in items]


def open_folder(
    root: Path,
    seed: int,
    record: dict[str, Any] | None = None,
    out: Path | None = None,
    val_split: float | None = None,
) -> Split:
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
        The folder of the run, which is no class, even if it is among them.
    val_split : float, optional
        The share of the images of every class to set aside if there is no ``val``, between 0 and 1.

    Raises
    ------
    UserError
        If there is nothing to train on, `val_split` has no use, or the run to resume had other classes, or the same
        images under exchanged names.
    """
    left_out = LeftOut(root)
    with naming_data(root):
        layout = find_layout(root)
        parts = _open_parts(root, layout, left_out, record, out)
        note_beside(root, layout, left_out)
    unused = left_out.describe()
    notes = [f"left out: {unused}"] if unused else []
    if record is not None:
        train, val, changes = recorded_split.divide(parts, record, root)
        notes += changes
    elif layout.val is None:
        share = defaults.VAL_SPLIT if val_split is None else val_split
        train, val = _divide_at_random(parts[0], seed, share)
        if layout.train != root:
            notes.append(f"there is no val beside {layout.train.name}: {share:.4g} of its images are set aside")
    elif val_split is None:
        train, val = parts
    else:
        raise UserError(
            f"--val-split {val_split:g}: --data {root} has images to validate on in {layout.val.name}; leave the "
            "option out, or move that folder away"
        )
    return Split(root, train.synsets, train, val, tuple(notes))


def _open_parts(
    root: Path, layout: Layout, left_out: LeftOut, record: dict[str, Any] | None, out: Path | None
) -> list[ImageFolder]:
    """Open the folder to train on and, if there is one, that to validate on, with the same classes."""
    check_depth(root, out)
    train = ImageFolder(layout.train, left_out, out)
    if record is not None:
        recorded_split.check_classes(train.synsets, record, root)
    if len(train.synsets) < 2:
        raise UserError(
            f"--data {root}: expected at least two class folders, found {', '.join(train.synsets) or 'none'}; "
            "make one folder of images for each class"
        )
    if layout.val is None:
        return [train]
    val = ImageFolder(layout.val, left_out, out)
    _check_same_classes(train, val, root)
    return [train, val]


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


def _divide_at_random(images: ImageFolder, seed: int, share: float) -> tuple[ImageFolder, ImageFolder]:
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
        count = min(max(1, round(len(positions) * share)), len(positions) - 1)
        val += positions[:count]
        train += positions[count:]
    first, second = ([images.items[position] for position in sorted(part)] for part in (train, val))
    return images.with_items(first), images.with_items(second)
