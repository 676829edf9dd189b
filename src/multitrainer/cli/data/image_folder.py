"""Image folders: what is in them, what is wrong with them, and batches from them."""

from __future__ import annotations

import copy
import itertools
import random
import zlib
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import mxnet as mx
import numpy as np
from mxnet import gluon
from mxnet.gluon.data.vision import transforms

from ..errors import UserError, require
from ..ranks.exchange import Ranks
from ..ranks.sampling import ShareSampler
from ..training.loop import Loader

EXTENSIONS = (".jpg", ".jpeg", ".png")
VAL_SHARE = 0.2
CIFAR_SIZE = 32
TIMEOUT = 120  # seconds that a worker may take for a batch
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageFolder(gluon.data.vision.ImageFolderDataset):
    """Gluon's folder of class folders, without hidden folders, and naming the file that cannot be read.

    Parameters
    ----------
    root : Path
        The folder that holds one folder a class.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.augment: Any = None

    def _list_images(self, root: str) -> None:
        self.synsets: list[str] = []
        self.items: list[tuple[str, int]] = []
        for folder in _class_folders(Path(root)):
            images = sorted(file for file in folder.iterdir() if file.suffix.lower() in EXTENSIONS)
            if not images:
                raise UserError(
                    f"{folder} holds no images ({', '.join(EXTENSIONS)}); put some there or remove the folder"
                )
            _check_one_line(folder)
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
        # Seeded image by image, what is drawn does not depend on which worker draws it.
        random.seed(seed)
        np.random.seed(seed)
        mx.random.seed(seed, ctx=mx.cpu())
        return self.augment(image), label

    def only(self, items: list[tuple[str, int]]) -> ImageFolder:
        """Return the same dataset with these images."""
        part = copy.copy(self)
        part.items = items
        return part


class Images(NamedTuple):
    """The images to train on and those to measure on, with the same classes; `notes` say how they came to differ."""

    root: Path
    classes: list[str]
    train: ImageFolder
    val: ImageFolder
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return what `open_folder` needs to divide the folder in the same way later, when images came or went.

        It reads every image, so that one with other contents is not taken for the one that had its name.
        """
        train, val = ([_name(path, self.root) for path, _ in part.items] for part in (self.train, self.val))
        items = [*self.train.items, *self.val.items]
        contents = {_name(path, self.root): _contents(path) for path, _ in items}
        return {"classes": self.classes, "train": train, "val": val, "contents": contents}

    def listing(self) -> list[tuple[str, str]]:
        """Return class and name of every image, in order: the same wherever the folder lies."""
        items = [*self.train.items, *self.val.items]
        return [(self.classes[label], Path(path).name) for path, label in items]


def open_folder(root: Path, seed: int, record: dict[str, Any] | None = None) -> Images:
    """Open a folder of class folders, or of ``train`` and ``val`` with class folders.

    Parameters
    ----------
    root : Path
        The folder.
    seed : int
        Decides which images are set aside if there is no ``val``.
    record : dict, optional
        That of the run to resume: what it trained on and what it set aside stays so.

    Raises
    ------
    UserError
        If there is nothing to train on, an image cannot be read, or the run to resume had other classes, or the same
        images under exchanged names.
    """
    train, *rest = [ImageFolder(folder) for folder in class_roots(root)]
    if record is not None:
        _check_classes_of_run(train.synsets, record["classes"], root)
    if len(train.synsets) < 2:
        raise UserError(
            f"--data {root}: expected at least two class folders, found {', '.join(train.synsets) or 'none'}; "
            "make one folder of images for each class"
        )
    for val in rest:
        _check_same_classes(train, val, root)
    notes: tuple[str, ...] = ()
    if record is not None:
        train, val, notes = _divide_as_recorded([train, *rest], record, root)
    elif not rest:
        train, val = _divide(train, seed)
    _check_readable([path for path, _ in train.items + val.items])
    return Images(root, list(train.synsets), train, val, notes)


def class_roots(root: Path) -> list[Path]:
    """Return the folders that hold class folders: `root`, or its ``train`` and, if it is there, its ``val``."""
    if not root.is_dir():
        raise UserError(f"--data {root}: no such folder")
    # A class may be called "train", too; it then holds images and no folders.
    if not ((root / "train").is_dir() and _class_folders(root / "train")):
        return [root]
    return [root / "train", *[root / "val"] * (root / "val").is_dir()]


def _class_folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _check_one_line(folder: Path) -> None:
    """Refuse a name that cannot be a line of classes.txt: the lines after it would name other outputs."""
    name = folder.name
    if name.encode("utf-8", "replace").decode().splitlines() != [name]:
        raise UserError(f"the name of class folder {str(folder)!r} does not fit on a line of classes.txt; rename it")


def _check_utf8(images: list[Path]) -> None:
    """Refuse a name that MXNet cannot be given."""
    for image in images:
        if str(image).encode("utf-8", "replace").decode() != str(image):
            raise UserError(f"the name of image {str(image)!r} is not in UTF-8; rename it")


def _check_same_classes(train: ImageFolder, val: ImageFolder, root: Path) -> None:
    if train.synsets == val.synsets:
        return
    lacking = sorted(set(train.synsets) - set(val.synsets))
    unknown = sorted(set(val.synsets) - set(train.synsets))
    parts = [f"{', '.join(lacking)} only in train"] * bool(lacking) + [f"{', '.join(unknown)} only in val"] * bool(
        unknown
    )
    raise UserError(f"--data {root}: train and val must hold the same class folders, but {' and '.join(parts)}")


def _check_classes_of_run(here: list[str], before: list[str], root: Path) -> None:
    """Refuse other classes than those of the run to resume: its outputs would be taken for other labels."""
    if here == before:
        return
    gone, new = sorted(set(before) - set(here)), sorted(set(here) - set(before))
    raise UserError(
        f"--resume: the run was trained on the classes {_listed(before)}, and --data {root} holds {_listed(here)}; "
        f"only in the run: {_listed(gone)}; only in --data: {_listed(new)}. Give the class folders the names that they "
        "had, or begin a new run in another --out"
    )


def _listed(names: list[str], most: int = 10) -> str:
    shown = [repr(name) for name in names[:most]] + [f"{len(names) - most} more"] * (len(names) > most)
    return ", ".join(shown) or "none"


def _divide_as_recorded(
    parts: list[ImageFolder], record: dict[str, Any], root: Path
) -> tuple[ImageFolder, ImageFolder, tuple[str, ...]]:
    """Divide the images as the run to resume did, and say what has changed since.

    An image that was added belongs to neither side. One to train on that is gone has another of its class in its place,
    so that an epoch stays as long, and every other image has its turn, as if nothing had changed. One whose file holds
    another image now is gone, and that other one was added.
    """
    found = {_name(path, root): (path, label) for part in parts for path, label in part.items}
    changed = _changed(found, record["contents"], root)
    there = {name: item for name, item in found.items() if name not in changed}
    labels = {name: label for label, name in enumerate(record["classes"])}
    spare: dict[int, list[tuple[str, int]]] = {label: [] for label in labels.values()}
    for name in record["train"]:
        if name in there:
            spare[there[name][1]].append(there[name])
    lacking = [name for name, label in labels.items() if not spare[label]]
    if lacking or not any(name in there for name in record["val"]):
        what = f"train on of class {lacking[0]}" if lacking else "measure on"
        raise UserError(
            f"--resume: --data {root} holds none of the images that the run had to {what}; give the folder that the "
            "run was started with, or begin a new run in another --out"
        )
    turns = {label: itertools.cycle(items) for label, items in spare.items()}
    train = [there.get(name) or next(turns[labels[PurePath(name).parent.name]]) for name in record["train"]]
    val = [there[name] for name in record["val"] if name in there]
    notes = _changes(set(found), changed, record)
    return parts[0].only(train), parts[0].only(val), notes


def _changed(found: dict[str, tuple[str, int]], contents: dict[str, list[int]], root: Path) -> set[str]:
    """Return the names of those that hold another image than they did; refuse one that the run knows by another name.

    Among images that were renumbered, one that was set aside would otherwise be trained on.
    """
    names = {tuple(content): name for name, content in contents.items()}
    changed = set()
    for name in sorted(found.keys() & contents.keys()):
        content = _contents(found[name][0])
        if content == contents[name]:
            continue
        if tuple(content) in names:
            raise UserError(
                f"--resume: in --data {root}, {name!r} is now the image that {names[tuple(content)]!r} was when the "
                "run began; give the images the names that they had, or begin a new run in another --out"
            )
        changed.add(name)
    return changed


def _contents(path: str) -> list[int]:
    """Return size and checksum of a file."""
    data = Path(path).read_bytes()
    return [len(data), zlib.crc32(data)]


def _changes(found: set[str], changed: set[str], record: dict[str, Any]) -> tuple[str, ...]:
    """Say which images came or went since the run began, and what becomes of that."""
    there = found - changed
    train, val = set(record["train"]) - there, set(record["val"]) - there
    added = there.difference(record["train"], record["val"]) | changed
    if not (added or train or val):
        return ()
    count = f"{len(added)} were added, {len(train | val)} removed"
    details = {
        "added, and left out of this run": added,
        "removed, and replaced by others of their class to train on": train,
        "removed, and no longer measured on": val,
    }
    return (
        f"the images are not those that the run began with: {count}",
        *(f"{what}: {_listed(sorted(names), 3)}" for what, names in details.items() if names),
    )


def _name(path: str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix()


def _divide(images: ImageFolder, seed: int) -> tuple[ImageFolder, ImageFolder]:
    """Set a share of every class aside."""
    generator = random.Random(seed)
    train: list[int] = []
    val: list[int] = []
    for label, name in enumerate(images.synsets):
        mine = [position for position, item in enumerate(images.items) if item[1] == label]
        if len(mine) < 2:
            raise UserError(
                f"class {name} has a single image, which cannot both train and validate; add images, or divide the "
                "folder into train/ and val/ yourself"
            )
        generator.shuffle(mine)
        count = max(1, round(len(mine) * VAL_SHARE))
        val += mine[:count]
        train += mine[count:]
    first, second = ([images.items[position] for position in sorted(part)] for part in (train, val))
    return images.only(first), images.only(second)


def _check_readable(paths: list[str]) -> None:
    """Look at every file's header, so that a broken one does not end the first epoch; reading catches the rest."""
    image = require("PIL.Image")
    broken = []
    for path in paths:
        try:
            with image.open(path) as opened:
                opened.verify()
        except Exception:  # Pillow raises a different one for each way to be broken
            broken.append(path)
    if broken:
        raise _unreadable(broken)


def _unreadable(paths: list[str]) -> UserError:
    shown = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return UserError(f"{shown}: not a readable JPEG or PNG image; remove or replace it")


def _sampler(length: int, seed: int, shuffle: bool, ranks: Ranks) -> ShareSampler:
    """Return a sampler of positions, each with the seed of what is drawn at random for that image."""
    generator = random.Random(seed)

    def draw_order() -> list[tuple[int, int]]:
        order = list(range(length))
        if shuffle:
            generator.shuffle(order)
        return [(position, generator.getrandbits(31)) for position in order]

    return ShareSampler(length, draw_order, ranks.even_share if shuffle else ranks.share)


def loaders(
    images: Images,
    size: int,
    batch_size: int,
    workers: int,
    seed: int,
    ranks: Ranks | None = None,
    augment: bool = True,
) -> tuple[Any, Any]:
    """Return what gives the batches to train on and to measure on.

    Parameters
    ----------
    images : Images
        The two datasets.
    size : int
        The side of the square the network takes.
    batch_size : int
        Images in a batch of this rank, at most what there is to train on.
    workers : int
        Processes that read and augment; 0 does it in this one.
    seed : int
        Decides the order and the augmentation.
    ranks : Ranks, optional
        Those that divide the images among them.
    augment : bool
        Whether the images to train on are cropped, mirrored and coloured at random.
    """
    ranks = ranks or Ranks()
    images.train.augment = _augmented(size) if augment else _centred(size)
    images.val.augment = _centred(size)
    # What is left over starts the next epoch: no batch is too small for BatchNorm, and all have one shape.
    train = gluon.data.BatchSampler(_sampler(len(images.train), seed, True, ranks), batch_size, "rollover")
    val = gluon.data.BatchSampler(_sampler(len(images.val), seed, False, ranks), batch_size, "keep")
    options = {"num_workers": workers, "timeout": TIMEOUT}
    return Loader(images.train, train, **options), Loader(images.val, val, **options)


def in_order(images: ImageFolder, batch_size: int, workers: int) -> Loader:
    """Return batches of all images, one after another, treated as they are elsewhere."""
    batches = gluon.data.BatchSampler(_sampler(len(images), 0, False, Ranks()), batch_size, "keep")
    return Loader(images, batches, num_workers=workers, timeout=TIMEOUT)


def _augmented(size: int) -> Any:
    """Return what GluonCV's training scripts do to an image, for CIFAR's size and for ImageNet's."""
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


def _centred(size: int) -> Any:
    preset = require("gluoncv.data.transforms.presets.imagenet")
    short = size if size <= CIFAR_SIZE else round(size / 0.875)
    return lambda image: preset.transform_eval(image, resize_short=short, crop_size=size, mean=MEAN, std=STD)[0]
