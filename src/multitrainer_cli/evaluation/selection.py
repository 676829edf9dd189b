"""Which images of a folder a finished run is measured on."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Dict, NamedTuple, Tuple

from ..data.image_folder import ImageFolder
from ..data.layout import Layout, LeftOut, check_depth, find_layout, note_beside
from ..errors import UserError

_Found = Dict[str, Tuple[str, str]]  # path and class of an image, by its name in the folder
_Contents = Dict[str, Tuple[int, int]]  # size and CRC-32 of an image, by its name in the folder
Recorded = Dict[str, _Contents]  # the images of a run, by part
_ROLES = {"val": "set aside for validation", "train": "trained on"}


class Selection(NamedTuple):
    """Images to measure on.

    Attributes
    ----------
    images : ImageFolder
        The images; their labels are the outputs of the run's network.
    part : str
        ``"val"`` or ``"train"`` of the run, the name of a folder of other images such as ``"val/"``, or ``"all"``.
    description : str
        The same in words.
    validates : bool
        Whether they are all the images that the run validated on, and no others.
    notes : tuple of str
        What the user should know about them.
    """

    images: ImageFolder
    part: str
    description: str
    validates: bool
    notes: tuple[str, ...]

    def checksum(self, root: Path) -> int:
        """Return the CRC-32 of the names of the images in their folder and of their contents."""
        total = 0
        for path, _ in self.images.items:
            content = zlib.crc32(Path(path).read_bytes())
            total = zlib.crc32(os.fsencode(f"{Path(path).relative_to(root).as_posix()}\0{content}\0"), total)
        return total


def select_images(root: Path, split: str | None, classes: list[str], recorded: Recorded | None) -> Selection:
    """Choose the images of a folder to measure a run on.

    Parameters
    ----------
    root : Path
        A folder of class folders, or of ``train`` and ``val`` with class folders.
    split : str, optional
        ``"val"``, ``"train"`` or ``"all"``.
    classes : list of str
        The classes of the run.
    recorded : dict, optional
        The images of the run to train on and to validate on, with size and checksum; None if it had no folder.

    Raises
    ------
    UserError
        If there are no such images, or images of a class that the run does not know.
    """
    folder = _open_folder(root)
    found = folder.found
    own = [] if recorded is None or split == "all" else _find_recorded(found, recorded[split or "val"])
    if recorded and own:
        part, names = split or "val", own
        description = f"{len(own)} of {len(found)} images in {root}, which the run has {_ROLES[part]}"
        notes = _describe_gone(len(recorded[part]) - len(own), recorded[part], part)
    else:
        part, names = _part_of_folder(root, split, folder.layout, found)
        those = f"{len(names)} of {len(found)} images in {root}, those in {part}"
        description = f"all {len(names)} images in {root}" if part == "all" else those
        notes = (*folder.notes, *_describe_trained_on(names, found, recorded))
    _check_classes(root, names, found, classes)
    labels = {name: label for label, name in enumerate(classes)}
    return Selection(
        images=folder.images.with_items([(found[name][0], labels[found[name][1]]) for name in names]),
        part=part,
        description=description,
        validates=bool(recorded and own and part == "val" and len(own) == len(recorded["val"])),
        notes=(*notes, *_describe_lacking(names, found, classes)),
    )


class _Folder(NamedTuple):
    """A folder of images, the images found in it, and what is left out of it."""

    layout: Layout
    images: ImageFolder
    found: _Found
    notes: tuple[str, ...]


def _open_folder(root: Path) -> _Folder:
    layout, left_out = find_layout(root), LeftOut(root)
    check_depth(root)
    parts = [ImageFolder(part, left_out) for part in layout if part is not None]
    note_beside(root, layout, left_out)
    unused = left_out.describe()
    found: _Found = {
        Path(path).relative_to(root).as_posix(): (path, images.synsets[label])
        for images in parts
        for path, label in images.items
    }
    if not found:
        raise UserError(f"--data {root}: expected class folders with images, found none")
    return _Folder(layout, parts[0], found, (f"left out: {unused}",) if unused else ())


def _find_recorded(found: _Found, recorded: _Contents) -> list[str]:
    """Return the recorded images that are in the folder as they were, or none if the folder lacks more than half."""
    unchanged = [
        name
        for name, (size, checksum) in recorded.items()
        if name in found and _content_is_in(found[name][0], {size: {checksum}})
    ]
    return unchanged if 2 * len(unchanged) >= len(recorded) else []


def _part_of_folder(root: Path, split: str | None, layout: Layout, found: _Found) -> tuple[str, list[str]]:
    """Return which part of a folder is measured if it is not that of the run, and the names of its images."""
    if split == "all" or (split is None and layout.val is None):
        return "all", list(found)
    if layout.val is None:
        raise UserError(
            f"--split {split}: --data {root} holds neither the images that the run has {_ROLES[str(split)]} nor "
            "folders to train and to validate on; leave --split out to measure on all of its images"
        )
    folder = layout.train if split == "train" else layout.val
    return f"{folder.name}/", [name for name in found if name.startswith(f"{folder.name}/")]


def _check_classes(root: Path, names: list[str], found: _Found, classes: list[str]) -> None:
    unknown = sorted({found[name][1] for name in names} - set(classes))
    if unknown:
        raise UserError(
            f"--data {root} holds classes that the run does not know: {_listed(unknown)}; it knows "
            f"{_listed(classes)}. Remove these folders, or give them the names that the run knows"
        )


def _describe_gone(gone: int, recorded: _Contents, part: str) -> tuple[str, ...]:
    if not gone:
        return ()
    return (f"{gone} of the {len(recorded)} images that the run has {_ROLES[part]} are gone or changed",)


def _describe_trained_on(names: list[str], found: _Found, recorded: Recorded | None) -> tuple[str, ...]:
    """Say how many images the run was trained on, whatever they are called now: it may know them by heart."""
    contents: dict[int, set[int]] = {}
    for size, checksum in recorded["train"].values() if recorded else ():
        contents.setdefault(size, set()).add(checksum)
    count = sum(_content_is_in(found[name][0], contents) for name in names)
    return (f"the run was trained on {count} of these {len(names)} images",) if count else ()


def _describe_lacking(names: list[str], found: _Found, classes: list[str]) -> tuple[str, ...]:
    present = {found[name][1] for name in names}
    lacking = [name for name in classes if name not in present]
    return (f"there are no images of {_listed(lacking)}",) if lacking else ()


def _content_is_in(path: str, contents: dict[int, set[int]]) -> bool:
    """Return whether a file has one of the contents: CRC-32s by size. It is read only if its size is there."""
    checksums = contents.get(os.stat(path).st_size)
    return checksums is not None and zlib.crc32(Path(path).read_bytes()) in checksums


def _listed(names: list[str], most: int = 10) -> str:
    return ", ".join([repr(name) for name in names[:most]] + [f"{len(names) - most} more"] * (len(names) > most))
