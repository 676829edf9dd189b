"""Image folders: what is in them, what is wrong with them, and batches from them."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Sequence

import mxnet as mx
import numpy as np
from mxnet import gluon
from mxnet.gluon.data.vision import transforms

from .errors import UserError, require
from .ranks import Ranks
from .training import Loader

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

    def only(self, positions: Sequence[int]) -> ImageFolder:
        """Return the same dataset with these of its images."""
        part = copy.copy(self)
        part.items = [self.items[position] for position in positions]
        return part


class Images(NamedTuple):
    """The images to train on and those to measure on, with the same classes."""

    classes: list[str]
    train: ImageFolder
    val: ImageFolder

    def listing(self) -> list[tuple[str, str]]:
        """Return class and name of every image, in order: the same wherever the folder lies."""
        items = [*self.train.items, *self.val.items]
        return [(self.classes[label], Path(path).name) for path, label in items]


def open_folder(root: Path, seed: int) -> Images:
    """Open a folder of class folders, or of ``train`` and ``val`` with class folders.

    Parameters
    ----------
    root : Path
        The folder.
    seed : int
        Decides which images are set aside where there is no ``val``.

    Raises
    ------
    UserError
        Where there is nothing to train on, or an image cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"--data {root}: no such folder")
    # A class may be called "train", too; it then holds images and no folders.
    divided = (root / "train").is_dir() and bool(_class_folders(root / "train"))
    train = ImageFolder(root / "train" if divided else root)
    if len(train.synsets) < 2:
        raise UserError(
            f"--data {root}: expected at least two class folders, found {', '.join(train.synsets) or 'none'}; "
            "make one folder of images for each class"
        )
    if divided and (root / "val").is_dir():
        val = ImageFolder(root / "val")
        _check_same_classes(train, val, root)
    else:
        train, val = _divide(train, seed)
    _check_readable([path for path, _ in train.items + val.items])
    return Images(list(train.synsets), train, val)


def _class_folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _check_same_classes(train: ImageFolder, val: ImageFolder, root: Path) -> None:
    if train.synsets == val.synsets:
        return
    lacking = sorted(set(train.synsets) - set(val.synsets))
    unknown = sorted(set(val.synsets) - set(train.synsets))
    parts = [f"{', '.join(lacking)} only in train"] * bool(lacking) + [f"{', '.join(unknown)} only in val"] * bool(
        unknown
    )
    raise UserError(f"--data {root}: train and val must hold the same class folders, but {' and '.join(parts)}")


def _divide(images: ImageFolder, seed: int) -> tuple[ImageFolder, ImageFolder]:
    """Set a share of every class aside."""
    generator = random.Random(seed)
    train, val = [], []
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
    return images.only(sorted(train)), images.only(sorted(val))


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


class _Draw(gluon.data.Sampler):
    """Positions in the order of an epoch, each with the seed for what is drawn at random about that image.

    All ranks draw the same order and take every so many-th of it, so that together they see what one would.
    """

    def __init__(self, length: int, seed: int, shuffle: bool, ranks: Ranks) -> None:
        self._length = length
        self._shuffle = shuffle
        self._ranks = ranks
        self._generator = random.Random(seed)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = list(range(self._length))
        if self._shuffle:
            self._generator.shuffle(order)
        return iter(self._share([(position, self._generator.getrandbits(31)) for position in order]))

    def __len__(self) -> int:
        return len(self._share(range(self._length)))

    def _share(self, order: Sequence[Any]) -> Sequence[Any]:
        return self._ranks.share(order, even=self._shuffle)


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
    train = gluon.data.BatchSampler(_Draw(len(images.train), seed, True, ranks), batch_size, "rollover")
    val = gluon.data.BatchSampler(_Draw(len(images.val), seed, False, ranks), batch_size, "keep")
    options = {"num_workers": workers, "timeout": TIMEOUT}
    return Loader(images.train, train, **options), Loader(images.val, val, **options)


def in_order(images: ImageFolder, batch_size: int, workers: int) -> Loader:
    """Return batches of all images, one after another, treated as they are elsewhere."""
    batches = gluon.data.BatchSampler(_Draw(len(images), 0, False, Ranks()), batch_size, "keep")
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
