"""How a folder of images is laid out: what to train and to validate on, which folders are classes, what is neither.

Nothing is trained on that was not meant to be, and nothing is left out without a word.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Iterator, NamedTuple

from multitrainer.images import EXTENSIONS

from ..errors import UserError
from ..runs import run_folder

TRAIN_NAMES = ("train", "training")  # in lower case; any case is accepted
VAL_NAMES = ("val", "valid", "validation")
PART_NAMES = (*TRAIN_NAMES, *VAL_NAMES, "test")
ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip")

# What a run can leave out: one, and several of it.
HIDDEN = "hidden file or folder", "hidden files and folders"
OTHER = "file of another type", "files of other types"
BROKEN_LINK = "broken link", "broken links"
BESIDE = "image beside the class folders", "images beside the class folders"
NESTED = "image in a folder inside a class folder", "images in folders inside class folders"
EMPTY = "folder without images inside a class folder", "folders without images inside class folders"
RUNS = "folder of runs", "folders of runs"
BESIDE_TRAIN = "folder beside the one to train on", "folders beside the one to train on"


class LeftOut:
    """What a folder holds that a run does not use.

    Parameters
    ----------
    root : Path
        The folder, to which the names in the description are relative.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._paths: dict[tuple[str, str], list[Path]] = {}

    def add(self, kind: tuple[str, str], path: Path) -> None:
        """Note one thing of a kind, such as `HIDDEN`."""
        self._paths.setdefault(kind, []).append(path)

    def describe(self) -> str:
        """Return how much of each kind there is, with an example each; empty if there is nothing."""
        return ", ".join(self._describe_kind(kind) for kind in sorted(self._paths))

    def _describe_kind(self, kind: tuple[str, str]) -> str:
        paths = self._paths[kind]
        example = str(paths[0].relative_to(self._root))
        shown = example if example.isprintable() else repr(example)
        return f"{len(paths)} {kind[len(paths) > 1]} ({shown}{', ...' if len(paths) > 1 else ''})"


class Layout(NamedTuple):
    """The folder whose folders are the classes to train on, and the one to validate on, if there is one."""

    train: Path
    val: Path | None


def find_layout(root: Path) -> Layout:
    """Find out what is in a folder of images.

    It holds the class folders itself, or a folder called ``train`` or ``training`` that holds them, and then perhaps
    one called ``val``, ``valid`` or ``validation``. Case does not matter.

    Raises
    ------
    UserError
        If there is no such folder, or two of its folders could be meant.
    """
    if not root.is_dir():
        raise _no_folder(root)
    # A class may be called "train", too; it then holds images and no folders.
    train = _find_one(root, [folder for folder in _folders(root, TRAIN_NAMES) if _folders(folder)])
    return Layout(root, None) if train is None else Layout(train, _find_one(root, _folders(root, VAL_NAMES)))


def class_roots(root: Path) -> list[Path]:
    """Return the folders that hold class folders: the one to train on and, if there is one, that to validate on."""
    return [folder for folder in find_layout(root) if folder is not None]


def class_names(root: Path) -> list[str]:
    """Return the names of the classes, without a look at their images."""
    return [folder.name for folder in _folders(find_layout(root).train) if not _is_for_runs(folder, None)]


def list_classes(root: Path, left_out: LeftOut, out: Path | None = None) -> dict[Path, list[Path]]:
    """Return the class folders in a folder, and the images that each holds, both in order.

    Parameters
    ----------
    root : Path
        The folder that holds the class folders.
    left_out : LeftOut
        Gets everything else.
    out : Path, optional
        The folder of the run, which may be among the class folders.

    Raises
    ------
    UserError
        If a folder holds no images, or a name cannot be used.
    """
    classes = {}
    for entry in sorted(root.iterdir()):
        if is_hidden(entry):
            left_out.add(HIDDEN, entry)
        elif not entry.is_dir():
            left_out.add(_kind_of_file(entry, BESIDE), entry)
        elif _is_for_runs(entry, out):
            left_out.add(RUNS, entry)
        else:
            classes[entry] = _list_images(entry, left_out)
            _check_names(entry, classes[entry])
    return classes


def check_depth(root: Path, out: Path | None = None) -> None:
    """Refuse a folder whose only folder holds the class folders, as archives are often unpacked; say which to give.

    Parameters
    ----------
    root : Path
        The folder.
    out : Path, optional
        The folder of the run, which does not count.
    """
    inside = [folder for folder in _folders(root) if not _is_for_runs(folder, out)]
    if find_layout(root).train == root and len(inside) == 1 and not _holds_images(inside[0]):
        deeper = inside[0]
        if any(map(_holds_images, _folders(find_layout(deeper).train))):
            raise UserError(f"--data {root}: the class folders are in {deeper}; give --data {deeper}")


def note_beside(root: Path, layout: Layout, left_out: LeftOut) -> None:
    """Note everything beside the folders to train and to validate on; such as ``test``."""
    if layout.train == root:
        return
    for entry in sorted(root.iterdir()):
        if entry in layout:
            continue
        if is_hidden(entry):
            left_out.add(HIDDEN, entry)
        else:
            left_out.add(BESIDE_TRAIN if entry.is_dir() else _kind_of_file(entry, BESIDE), entry)


def check_place(out: Path, root: Path) -> None:
    """Refuse a folder for a run in which its files would be taken for images or classes.

    Among the class folders, a run has a folder of its own, or one in a folder that holds runs.

    Parameters
    ----------
    out : Path
        The folder of the run.
    root : Path
        A folder that holds class folders.
    """
    place, root = out.resolve(), root.resolve()
    if place == root or root in place.parents:
        among_classes = root / place.relative_to(root).parts[0] if place != root else root
        is_class = among_classes.is_dir() and not run_folder.is_run(among_classes) and _holds_images(among_classes)
        if place == root or is_class or among_classes.name.lower() in PART_NAMES:
            raise UserError(
                f"--out {out} is inside --data, where its files would be taken for a class; choose another --out"
            )


@contextlib.contextmanager
def naming_data(root: Path) -> Iterator[None]:
    """Turn an OSError in reading a folder of images into a UserError that names --data, too."""
    try:
        yield
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise UserError(
            f"--data {root}: {place}{error.strerror or error}; make it readable or give another folder"
        ) from error


def check_outside(out: Path, root: Path, run: Path) -> None:
    """Refuse a folder for files about a run that would be taken for a class, or they for its images.

    Inside the folder of the run, they never are.

    Parameters
    ----------
    out : Path
        The folder for the files.
    root : Path
        The folder of images.
    run : Path
        The folder of the run.
    """
    places = [out.resolve(), *out.resolve().parents]
    if run.resolve() not in places and any(folder.resolve() in places for folder in class_roots(root)):
        raise UserError(f"--out {out} is inside {root}, where it would be taken for a class; choose another --out")


def is_hidden(path: Path) -> bool:
    """Return whether a file or folder is not meant to be seen; ``__MACOSX`` is what macOS adds to archives."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def is_image(path: Path) -> bool:
    """Return whether a path is that of a file that is called like an image, and not hidden."""
    return not is_hidden(path) and path.suffix.lower() in EXTENSIONS and path.is_file()


def _folders(root: Path, names: tuple[str, ...] = ()) -> list[Path]:
    """Return the folders in a folder that are not hidden, or those of them that have one of the names in any case."""
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not is_hidden(entry))
    return [folder for folder in folders if not names or folder.name.lower() in names]


def _find_one(root: Path, candidates: list[Path]) -> Path | None:
    if len(candidates) > 1:
        names = " and ".join(folder.name for folder in candidates)
        raise UserError(f"--data {root} holds {names}, and only one of them can be used; move the others away")
    return candidates[0] if candidates else None


def _holds_images(folder: Path) -> bool:
    return any(map(is_image, folder.iterdir()))


def _is_for_runs(folder: Path, out: Path | None) -> bool:
    """Return whether a folder is that of a run, or holds no images itself and leads to the folders of runs."""
    if run_folder.is_run(folder):
        return True
    if _holds_images(folder):
        return False
    place = None if out is None else out.resolve()
    begins = place is not None and folder.resolve() in (place, *place.parents)
    return begins or run_folder.contains_runs(folder)


def _list_images(folder: Path, left_out: LeftOut) -> list[Path]:
    images, inside = [], LeftOut(folder)
    for entry in sorted(folder.iterdir()):
        unused = _find_unused(entry)
        images += [entry] * (not unused)
        for kind, path in unused:
            left_out.add(kind, path)
            inside.add(kind, path)
    if not images:
        instead = f"; it holds {inside.describe()}" if inside.describe() else ""
        raise UserError(
            f"{folder} holds no images ({', '.join(EXTENSIONS)}){instead}. Put images there, or move the folder away"
        )
    return images


def _find_unused(entry: Path) -> list[tuple[tuple[str, str], Path]]:
    """Return what is not used of an entry of a class folder, each with its kind; nothing if it is an image."""
    if is_hidden(entry):
        return [(HIDDEN, entry)]
    if entry.is_dir():
        files = sorted(Path(folder, name) for folder, _, names in os.walk(entry) for name in names)
        return [(NESTED, file) for file in files if is_image(file)] or [(EMPTY, entry)]
    return [] if is_image(entry) else [(_kind_of_file(entry, OTHER), entry)]


def _kind_of_file(path: Path, kind_of_image: tuple[str, str]) -> tuple[str, str]:
    if not path.exists():
        return BROKEN_LINK
    return kind_of_image if is_image(path) else OTHER


def _check_names(folder: Path, images: list[Path]) -> None:
    """Refuse a class whose name is not exactly one line of classes.txt, and an image that run.json cannot name."""
    name = folder.name
    if name.encode("utf-8", "replace").decode().splitlines() != [name]:
        raise UserError(f"the name of class folder {str(folder)!r} does not fit on a line of classes.txt; rename it")
    for image in images:
        if str(image).encode("utf-8", "replace").decode() != str(image):
            raise UserError(f"the name of image {str(image)!r} is not in UTF-8; rename it")


def _no_folder(root: Path) -> UserError:
    if not root.exists():
        return UserError(f"--data {root}: no such folder")
    cure = "unpack it, and give the folder" if root.suffix.lower() in ARCHIVES else "give a folder"
    return UserError(f"--data {root} is a file; {cure} that holds a folder of images for each class")
