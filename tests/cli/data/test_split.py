from __future__ import annotations

import pathlib

import numpy as np
import pytest

from cli_support import write_images

pytest.importorskip("gluoncv")
pytest.importorskip("PIL")

from multitrainer_cli.data.split import open_folder
from multitrainer_cli.errors import UserError


def paths(dataset):
    return {path for path, _ in dataset.items}


def test_without_val_one_image_in_five_of_every_class_is_set_aside(tmp_path):
    split = open_folder(write_images(tmp_path / "d", 10), seed=1)
    assert split.classes == ["blue", "green", "red"]
    assert np.bincount([label for _, label in split.train.items]).tolist() == [8, 8, 8]
    assert np.bincount([label for _, label in split.val.items]).tolist() == [2, 2, 2]
    assert len(paths(split.train) | paths(split.val)) == 30
    assert split.train.items == sorted(split.train.items)
    assert split.notes == ()


def test_the_seed_decides_what_is_set_aside(tmp_path):
    root = write_images(tmp_path / "d", 10)
    first, again, other = (paths(open_folder(root, seed).val) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_two_images_of_a_class_give_one_to_each_side(tmp_path):
    split = open_folder(write_images(tmp_path / "d", 2), seed=0)
    assert (len(split.train), len(split.val)) == (3, 3)


def test_train_and_val_folders_are_used_as_they_are(tmp_path):
    write_images(tmp_path / "train", 3)
    write_images(tmp_path / "val", 2)
    split = open_folder(tmp_path, seed=0)
    assert {pathlib.Path(path).parents[1].name for path in paths(split.train)} == {"train"}
    assert {pathlib.Path(path).parents[1].name for path in paths(split.val)} == {"val"}
    assert (len(split.train), len(split.val)) == (9, 6)


def test_train_without_val_is_divided(tmp_path):
    write_images(tmp_path / "train", 5)
    split = open_folder(tmp_path, seed=0)
    assert (len(split.train), len(split.val)) == (12, 3)


def test_a_class_may_be_called_train(tmp_path):
    split = open_folder(write_images(tmp_path / "d", 4, classes=("plane", "train")), seed=0)
    assert split.classes == ["plane", "train"]
    assert split.notes == ()


def test_the_listing_does_not_depend_on_where_the_folder_is(tmp_path):
    one = open_folder(write_images(tmp_path / "one", 3), seed=0)
    other = open_folder(write_images(tmp_path / "other" / "deep", 3), seed=0)
    assert one.listing() == other.listing()
    assert len(one.listing()) == 9
    assert one.listing()[0][0] == "blue"
    assert one.listing() != open_folder(tmp_path / "one", seed=4).listing()


def test_a_record_keeps_the_division_whatever_the_seed(tmp_path):
    before = open_folder(write_images(tmp_path / "d", 6), seed=1)
    after = open_folder(tmp_path / "d", seed=2, record=before.record())
    assert (after.train.items, after.val.items, after.notes) == (before.train.items, before.val.items, ())


def test_other_classes_than_the_record_are_refused(tmp_path):
    record = open_folder(write_images(tmp_path / "d", 3), seed=1).record()
    (tmp_path / "d/red").rename(tmp_path / "d/pink")
    with pytest.raises(UserError, match="only in the run: 'red'; only in --data: 'pink'"):
        open_folder(tmp_path / "d", seed=1, record=record)


def test_one_class_is_not_enough(tmp_path):
    with pytest.raises(UserError, match="at least two class folders, found red"):
        open_folder(write_images(tmp_path / "d", 3, classes=("red",)), seed=0)


def test_a_folder_without_class_folders_is_refused(tmp_path):
    with pytest.raises(UserError, match="found none"):
        open_folder(tmp_path, seed=0)


def test_a_single_image_of_a_class_cannot_be_divided(tmp_path):
    root = write_images(tmp_path / "d", 3)
    write_images(root, 1, classes=("lonely",))
    with pytest.raises(UserError, match="class lonely has a single image"):
        open_folder(root, seed=0)


def test_val_must_hold_the_classes_of_train(tmp_path):
    write_images(tmp_path / "train", 2)
    write_images(tmp_path / "val", 2, classes=("blue", "green", "pink"))
    with pytest.raises(UserError, match="red only in train and pink only in val"):
        open_folder(tmp_path, seed=0)


@pytest.mark.parametrize("part", ["train", "val"])
def test_an_image_that_cannot_be_read_is_refused(tmp_path, part):
    for name in ("train", "val"):
        write_images(tmp_path / name, 2)
    (tmp_path / part / "red/000.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=f"holds an image that cannot be read .{part}/red/000.jpg: not an image"):
        open_folder(tmp_path, seed=0).check_readable()


@pytest.mark.parametrize(("share", "val"), [(0.5, 5), (0.01, 1), (0.99, 9), (0.25, 2), (None, 2)])
def test_the_share_to_set_aside_can_be_chosen_and_leaves_an_image_on_each_side(tmp_path, share, val):
    split = open_folder(write_images(tmp_path / "d", 10), seed=1, val_split=share)
    assert np.bincount([label for _, label in split.val.items]).tolist() == [val] * 3
    assert np.bincount([label for _, label in split.train.items]).tolist() == [10 - val] * 3


def test_a_share_to_set_aside_needs_a_folder_without_val(tmp_path):
    write_images(tmp_path / "train", 2)
    write_images(tmp_path / "Valid", 2)
    with pytest.raises(UserError, match=r"--val-split 0.5: .* has images to validate on in Valid; leave the"):
        open_folder(tmp_path, seed=0, val_split=0.5)
    record = open_folder(tmp_path, seed=0).record()
    assert open_folder(tmp_path, seed=0, record=record, val_split=0.5).record() == record


def test_what_is_left_out_is_said(tmp_path):
    write_images(tmp_path / "Train", 4)
    write_images(tmp_path / "test", 2)
    (tmp_path / "Train/red/._000.jpg").write_bytes(b"x")
    split = open_folder(tmp_path, seed=0)
    assert split.notes == (
        "left out: 1 folder beside the one to train on (test), 1 hidden file or folder (Train/red/._000.jpg)",
        "there is no val beside Train: 0.2 of its images are set aside",
    )
    again = open_folder(tmp_path, seed=0, record=split.record())
    assert again.notes == split.notes[:1]
