from __future__ import annotations

import pathlib

import mxnet as mx
import numpy as np
import pytest

from cli_support import write_images

pytest.importorskip("PIL")

from multitrainer.images import read_image
from multitrainer_cli.data.image_folder import ImageFolder
from multitrainer_cli.data.layout import LeftOut
from multitrainer_cli.errors import UserError


def image_folder(root):
    return ImageFolder(root, LeftOut(root))


def test_items_are_the_images_of_every_class_in_order(tmp_path):
    folder = image_folder(write_images(tmp_path / "d", 2))
    names = [(pathlib.Path(path).relative_to(tmp_path / "d").as_posix(), label) for path, label in folder.items]
    assert folder.synsets == ["blue", "green", "red"]
    files = ("000.jpg", "001.png")
    assert names == [(f"{name}/{file}", label) for label, name in enumerate(folder.synsets) for file in files]
    assert len(folder) == 6


def test_the_seed_of_an_index_decides_what_is_drawn_at_random(tmp_path):
    folder = image_folder(write_images(tmp_path / "d", 2))
    folder.preprocess = lambda image: (np.random.rand(), mx.random.uniform(shape=1).asscalar(), image.asnumpy().sum())
    (first, label), (again, _), (other, _) = folder[5, 3], folder[5, 3], folder[5, 4]
    assert (label, first) == (2, again)
    assert first[2] == other[2] == read_image(folder.items[5][0]).asnumpy().sum()
    assert first[0] != other[0]
    assert first[1] != other[1]


def test_a_copy_with_other_items_leaves_the_folder_as_it_is(tmp_path):
    folder = image_folder(write_images(tmp_path / "d", 2))
    part = folder.with_items(folder.items[3:4])
    part.preprocess = lambda image: image
    assert (len(folder), folder.preprocess) == (6, None)
    assert (len(part), part[0, 0][1]) == (1, 1)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"gone"), pathlib.Path.unlink])
def test_an_image_that_breaks_after_the_check_is_named(tmp_path, damage):
    folder = image_folder(write_images(tmp_path / "d", 2))
    damage(pathlib.Path(folder.items[4][0]))
    with pytest.raises(UserError, match=r"red/000\.jpg.*; every image could be read when the run began"):
        folder[4, 0]
