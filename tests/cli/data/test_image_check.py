"""No image that would end the training gets past the check before it."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest

from cli_support import write_images

pytest.importorskip("gluoncv")
pytest.importorskip("PIL")
pytest.importorskip("tqdm")

from PIL import Image

from multitrainer_cli.data import batches
from multitrainer_cli.data.image_check import check_readable
from multitrainer_cli.data.split import open_folder
from multitrainer_cli.errors import UserError


def message_of(root):
    with pytest.raises(UserError) as caught:
        open_folder(root, 0).check_readable()
    return str(caught.value)


def test_readable_images_pass_without_a_word(tmp_path, capsys):
    assert open_folder(write_images(tmp_path / "d", 4), 0).check_readable() is None
    assert capsys.readouterr().err == ""


def test_an_empty_list_passes(tmp_path):
    check_readable([], tmp_path)


@pytest.mark.parametrize("name", ["001.png", "000.jpg"])
@pytest.mark.parametrize("share", [0, 0.1, 0.9])
def test_a_cut_image_is_found(tmp_path, name, share):
    root = write_images(tmp_path / "d", 3)
    path = root / "red" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    message = message_of(root)
    assert message.startswith(f"--data {root} holds an image that cannot be read (red/{name}: ")
    assert message.endswith("); remove or replace")


@pytest.mark.parametrize(("count", "rest"), [(3, "); remove"), (5, "; and 2 more); remove")])
def test_more_than_three_broken_images_are_counted(tmp_path, count, rest):
    root = write_images(tmp_path / "d", 6)
    for path in sorted((root / "red").iterdir())[-count:]:
        path.write_bytes(b"")
    message = message_of(root)
    assert f"holds {count} images that cannot be read" in message
    assert message.count("not an image that Pillow can read") == 3
    assert rest in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    root = write_images(tmp_path / "d", 3)
    (root / "red/000.jpg").chmod(0)
    assert "red/000.jpg: Permission denied" in message_of(root)


def test_an_image_that_vanishes_is_named(tmp_path):
    root = write_images(tmp_path / "d", 3)
    split = open_folder(root, 0)
    (root / "red/000.jpg").unlink()
    with pytest.raises(UserError, match=r"red/000\.jpg: No such file"):
        split.check_readable()


def test_a_decompression_bomb_is_named_without_a_warning(tmp_path, monkeypatch):
    root = write_images(tmp_path / "d", 3)
    Image.new("1", (80, 50)).save(str(root / "red/bomb.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3999)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "red/bomb.png: cannot be decoded (its size is 80 x 50, more than 3999 pixels" in message_of(root)


SHAPES = [(1, 1), (1, 100), (100, 1), (2, 3), (3, 300), (300, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("augment", [False, True])
def test_what_passes_can_be_trained_on_however_small_or_long_it_is(tmp_path, size, augment):
    root = write_images(tmp_path / "d", 2, classes=("blue", "red"))
    for number, shape in enumerate(SHAPES):
        Image.fromarray(np.full((*shape, 3), 100, np.uint8)).save(str(root / f"red/x{number}.png"))
    split = open_folder(root, 0)
    split.check_readable()
    for seed in range(5):
        for loader in batches.make_loaders(split, size, 1, 0, seed, augment=augment):
            assert all(x.shape == (1, 3, size, size) and np.isfinite(x.asnumpy()).all() for x, _ in loader)


@pytest.mark.slow
def test_an_image_of_any_kind_is_trained_on_by_its_contents(tmp_path):
    root = write_images(tmp_path / "d", 3)
    image = Image.open(str(root / "red/001.png"))
    image.save(str(root / "red/a.jpg"), format="GIF")
    image.convert("CMYK").save(str(root / "red/b.png"), format="JPEG")
    image.convert("LA").save(str(root / "red/c.WEBP"), format="PNG")
    image.save(str(root / "red/d.TIF"), save_all=True, append_images=[image])
    split = open_folder(root, 0)
    assert len(split.train) + len(split.val) == 13
    split.check_readable()
    for workers in (0, 2):
        train, val = batches.make_loaders(split, 32, 1, workers, 0)
        assert sum(len(y) for loader in (train, val) for _, y in loader) == 13
