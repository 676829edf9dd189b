from __future__ import annotations

import itertools
import json
import os
import pathlib
import shutil
import warnings

import numpy as np
import pytest

from cli_support import write_images

pytest.importorskip("gluoncv")
pytest.importorskip("PIL")

from multitrainer.cli.data import image_folder
from multitrainer.cli.errors import UserError


def _paths(dataset):
    return {path for path, _ in dataset.items}


def test_without_val_a_share_of_every_class_is_set_aside(tmp_path):
    images = image_folder.open_folder(write_images(tmp_path / "d", 10), seed=1)
    assert images.classes == ["blue", "green", "red"]
    assert np.bincount([label for _, label in images.train.items]).tolist() == [8, 8, 8]
    assert np.bincount([label for _, label in images.val.items]).tolist() == [2, 2, 2]
    assert not _paths(images.train) & _paths(images.val)


def test_the_seed_decides_the_split(tmp_path):
    root = write_images(tmp_path / "d", 10)
    first, again, other = (_paths(image_folder.open_folder(root, seed).val) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_two_images_a_class_give_one_to_each_side(tmp_path):
    images = image_folder.open_folder(write_images(tmp_path / "d", 2), seed=0)
    assert (len(images.train), len(images.val)) == (3, 3)


def test_train_and_val_folders_are_used_as_they_are(tmp_path):
    write_images(tmp_path / "train", 3)
    write_images(tmp_path / "val", 2)
    images = image_folder.open_folder(tmp_path, seed=0)
    assert (len(images.train), len(images.val)) == (9, 6)


def test_train_without_val_is_divided(tmp_path):
    write_images(tmp_path / "train", 5)
    images = image_folder.open_folder(tmp_path, seed=0)
    assert (len(images.train), len(images.val)) == (12, 3)


def test_a_class_may_be_called_train(tmp_path):
    images = image_folder.open_folder(write_images(tmp_path / "d", 4, classes=("plane", "train")), seed=0)
    assert images.classes == ["plane", "train"]


def test_hidden_folders_and_other_files_are_no_data(tmp_path):
    root = write_images(tmp_path / "d", 4)
    (root / ".ipynb_checkpoints").mkdir()
    (root / "notes.txt").write_text("by hand")
    (root / "red" / "Thumbs.db").write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = image_folder.open_folder(root, seed=0)
    assert len(images.train) + len(images.val) == 12


def _broken(tmp_path, damage):
    root = write_images(tmp_path / "d", 4)
    damage(root)
    with pytest.raises(UserError) as caught:
        image_folder.open_folder(root, seed=0)
    return str(caught.value)


def test_an_empty_class_folder_is_named(tmp_path):
    message = _broken(tmp_path, lambda root: (root / "yellow").mkdir())
    assert "yellow holds no images" in message


def test_a_broken_image_is_named(tmp_path):
    message = _broken(tmp_path, lambda root: (root / "red" / "002.jpg").write_bytes(b"no image at all"))
    assert message.count("002.jpg") == 1
    assert "not a readable" in message


@pytest.mark.parametrize("name", ["001.png", "000.jpg"])
def test_an_empty_or_cut_image_is_named(tmp_path, name):
    def damage(root):
        path = root / "red" / name
        path.write_bytes(path.read_bytes()[: 200 if name.endswith("png") else 0])

    assert name in _broken(tmp_path, damage)


def test_many_broken_images_are_counted(tmp_path):
    def damage(root):
        for path in (root / "red").iterdir():
            path.write_bytes(b"")

    assert "and 1 more" in _broken(tmp_path, damage)


def test_one_class_is_not_enough(tmp_path):
    with pytest.raises(UserError, match="at least two class folders, found red"):
        image_folder.open_folder(write_images(tmp_path / "d", 3, classes=("red",)), seed=0)


def test_a_folder_without_class_folders(tmp_path):
    with pytest.raises(UserError, match="found none"):
        image_folder.open_folder(tmp_path, seed=0)


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        image_folder.open_folder(tmp_path / "nowhere", seed=0)


def test_a_single_image_cannot_be_divided(tmp_path):
    root = write_images(tmp_path / "d", 3)
    write_images(root, 1, classes=("lonely",))
    with pytest.raises(UserError, match="class lonely has a single image"):
        image_folder.open_folder(root, seed=0)


def test_val_must_hold_the_classes_of_train(tmp_path):
    write_images(tmp_path / "train", 2)
    write_images(tmp_path / "val", 2, classes=("blue", "green", "pink"))
    with pytest.raises(UserError, match="red only in train and pink only in val"):
        image_folder.open_folder(tmp_path, seed=0)


def _two_epochs(root, size, workers, seed=3):
    train, val = image_folder.loaders(image_folder.open_folder(root, 0), size, batch_size=4, workers=workers, seed=seed)
    epochs = [[(x.asnumpy(), y.asnumpy()) for x, y in train] for _ in range(2)]
    return epochs, [(x.asnumpy(), y.asnumpy()) for x, y in val]


@pytest.mark.parametrize("size", [32, 64])
def test_batches_have_the_networks_shape_and_what_is_left_over_comes_next(tmp_path, size):
    epochs, val = _two_epochs(write_images(tmp_path / "d", 4, size=(60, 44)), size, workers=0)
    # 9 images to train on: 2 batches of 4, and 1 + 9 images for the second epoch.
    assert [[x.shape for x, _ in epoch] for epoch in epochs] == [[(4, 3, size, size)] * 2] * 2
    assert sum(len(y) for _, y in val) == 3
    assert all(np.isfinite(x).all() and abs(x).max() < 10 for x, _ in val + epochs[0])


def test_batches_do_not_depend_on_the_number_of_workers(tmp_path):
    root = write_images(tmp_path / "d", 4)
    here, there, other = (_two_epochs(root, 48, *how) for how in ((0,), (2,), (0, 4)))
    for mine, theirs in zip(here[0][0] + here[0][1] + here[1], there[0][0] + there[0][1] + there[1]):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])
    assert any((mine[0] != theirs[0]).any() for mine, theirs in zip(here[0][0], other[0][0]))


def test_epochs_are_drawn_anew(tmp_path):
    (first, second), _ = _two_epochs(write_images(tmp_path / "d", 5, classes=("blue", "red")), 48, workers=0)
    assert not np.array_equal(first[0][0], second[0][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_later_is_named_too(tmp_path, workers):
    root = write_images(tmp_path / "d", 4)
    images = image_folder.open_folder(root, 0)
    (root / "red" / "001.png").write_bytes(b"gone")
    train, val = image_folder.loaders(images, 32, batch_size=2, workers=workers, seed=0)
    # 9 images to train on by two: one is left over for the second epoch.
    with pytest.raises(UserError, match=r"001\.png"):
        list(itertools.chain(train, train, val))


class TestOnResume:
    """What a run set aside stays set aside, and what it trained on keeps its place."""

    @pytest.fixture
    def root(self, tmp_path):
        return write_images(tmp_path / "d", 6)

    def test_nothing_changed(self, root):
        before = image_folder.open_folder(root, seed=1)
        record = before.record()
        again = image_folder.open_folder(root, seed=2, record=record)
        assert (again.train.items, again.val.items, again.notes) == (before.train.items, before.val.items, ())

    def test_images_came_and_went(self, root):
        before = image_folder.open_folder(root, seed=1)
        record = before.record()
        gone = [before.train.items[0][0], before.train.items[-1][0], before.val.items[0][0]]
        for path in gone:
            pathlib.Path(path).unlink()
        write_images(root.parent / "more", 9)
        for name in ("007.png", "008.jpg"):
            shutil.copy(str(root.parent / "more/red" / name), str(root / "red" / name))
        after = image_folder.open_folder(root, seed=1, record=record)
        assert "2 were added, 3 removed" in after.notes[0]
        assert len(after.train) == len(before.train)
        for (path, label), (old, old_label) in zip(after.train.items, before.train.items):
            assert label == old_label
            assert path == old or old in gone
        assert _paths(after.train) == _paths(before.train) - {*gone}
        assert _paths(after.val) == _paths(before.val) - {*gone}

    def test_a_renamed_image_is_neither_trained_nor_measured_on(self, root):
        before = image_folder.open_folder(root, seed=1)
        record = before.record()
        path = pathlib.Path(before.val.items[0][0])
        path.rename(path.with_name("other.jpg"))
        after = image_folder.open_folder(root, seed=1, record=record)
        assert not any("other.jpg" in path for path in _paths(after.train) | _paths(after.val))

    def test_an_image_moved_from_val_to_train_is_not_trained_on(self, tmp_path):
        write_images(tmp_path / "train", 3)
        write_images(tmp_path / "val", 2)
        before = image_folder.open_folder(tmp_path, seed=0)
        record = before.record()
        (tmp_path / "val/red/000.jpg").rename(tmp_path / "train/red/moved.jpg")
        after = image_folder.open_folder(tmp_path, seed=0, record=record)
        assert _paths(after.train) == _paths(before.train)
        assert _paths(after.val) == _paths(before.val) - {str(tmp_path / "val/red/000.jpg")}

    def test_a_val_that_was_made_since_is_not_taken_for_the_one_set_aside(self, tmp_path):
        write_images(tmp_path / "train", 4)
        before = image_folder.open_folder(tmp_path, seed=0)
        record = before.record()
        write_images(tmp_path / "val", 2)
        after = image_folder.open_folder(tmp_path, seed=0, record=record)
        assert (_paths(after.train), _paths(after.val)) == (_paths(before.train), _paths(before.val))

    def test_one_with_other_contents_is_another_image(self, root):
        before = image_folder.open_folder(root, seed=1)
        record = before.record()
        changed = [before.train.items[0][0], before.val.items[0][0]]
        write_images(root.parent / "more", 7)
        for path in changed:
            shutil.copy(str(root.parent / "more" / pathlib.Path(path).relative_to(root)), path)
        after = image_folder.open_folder(root, seed=1, record=json.loads(json.dumps(record)))
        assert "2 were added, 2 removed" in after.notes[0]
        assert len(after.train) == len(before.train)
        assert _paths(after.train) == _paths(before.train) - {*changed}
        assert _paths(after.val) == _paths(before.val) - {*changed}

    @pytest.mark.parametrize("how", ["exchanged", "renumbered", "copied"])
    def test_one_known_by_another_name_is_refused(self, root, how):
        before = image_folder.open_folder(root, seed=1)
        record = before.record()
        train, val = (pathlib.Path(part.items[0][0]) for part in (before.train, before.val))
        if how == "exchanged":
            train.rename(root / "x")
            val.rename(train)
            (root / "x").rename(val)
        elif how == "copied":
            shutil.copy(str(val), str(train))
        else:
            images = sorted((root / "red").iterdir())
            images[0].unlink()
            for old, new in zip(images[2::2], images[::2]):
                old.rename(new)
        with pytest.raises(UserError, match=r"is now the image that '(blue|red)/00\d\.(png|jpg)' was when"):
            image_folder.open_folder(root, seed=1, record=record)

    @pytest.mark.parametrize(("part", "what"), [("train", "train on of class"), ("val", "measure on")])
    def test_none_is_left(self, root, part, what):
        before = image_folder.open_folder(root, seed=1)
        record = before.record()
        for path, _ in getattr(before, part).items:
            pathlib.Path(path).unlink()
        with pytest.raises(UserError, match=f"holds none of the images that the run had to {what}"):
            image_folder.open_folder(root, seed=1, record=record)


@pytest.mark.parametrize("name", ["two\nlines", "red\x85", os.fsdecode(b"r\xffd")])
def test_a_class_that_classes_txt_cannot_name_is_refused(tmp_path, name):
    root = write_images(tmp_path / "d", 3)
    (root / "red").rename(root / name)
    with pytest.raises(UserError, match=r"does not fit on a line of classes\.txt"):
        image_folder.open_folder(root, seed=0)


def test_an_image_whose_name_is_not_in_utf8_is_refused(tmp_path):
    root = write_images(tmp_path / "d", 3)
    (root / "red/000.jpg").rename(root / "red" / os.fsdecode(b"\xe9.jpg"))
    with pytest.raises(UserError, match=r"red/\\udce9\.jpg' is not in UTF-8; rename it"):
        image_folder.open_folder(root, seed=0)
