"""The images that a run set aside stay set aside when it is resumed, and those that it trained on keep their places."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest

from cli_support import write_images

pytest.importorskip("gluoncv")
pytest.importorskip("PIL")

from multitrainer_cli.data import recorded_split
from multitrainer_cli.data.split import open_folder
from multitrainer_cli.errors import UserError


def paths(dataset):
    return {path for path, _ in dataset.items}


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "d", 6)


def test_an_unchanged_folder_is_divided_as_before(root):
    before = open_folder(root, seed=1)
    record = before.record()
    again = open_folder(root, seed=2, record=record)
    assert (again.train.items, again.val.items, again.notes) == (before.train.items, before.val.items, ())


def test_added_images_are_left_out_and_removed_ones_replaced_in_their_class(root):
    before = open_folder(root, seed=1)
    record = before.record()
    gone = [before.train.items[0][0], before.train.items[-1][0], before.val.items[0][0]]
    for path in gone:
        pathlib.Path(path).unlink()
    write_images(root.parent / "more", 9)
    for name in ("007.png", "008.jpg"):
        shutil.copy(str(root.parent / "more/red" / name), str(root / "red" / name))
    after = open_folder(root, seed=1, record=record)
    assert "2 were added, 3 removed" in after.notes[0]
    assert len(after.train) == len(before.train)
    for (path, label), (old, old_label) in zip(after.train.items, before.train.items):
        assert label == old_label
        assert path == old or old in gone
    assert paths(after.train) == paths(before.train) - {*gone}
    assert paths(after.val) == paths(before.val) - {*gone}


def test_a_renamed_image_is_neither_trained_nor_measured_on(root):
    before = open_folder(root, seed=1)
    record = before.record()
    path = pathlib.Path(before.val.items[0][0])
    path.rename(path.with_name("other.jpg"))
    after = open_folder(root, seed=1, record=record)
    assert not any("other.jpg" in path for path in paths(after.train) | paths(after.val))


def test_an_image_moved_from_val_to_train_is_not_trained_on(tmp_path):
    write_images(tmp_path / "train", 3)
    write_images(tmp_path / "val", 2)
    before = open_folder(tmp_path, seed=0)
    record = before.record()
    (tmp_path / "val/red/000.jpg").rename(tmp_path / "train/red/moved.jpg")
    after = open_folder(tmp_path, seed=0, record=record)
    assert paths(after.train) == paths(before.train)
    assert paths(after.val) == paths(before.val) - {str(tmp_path / "val/red/000.jpg")}


def test_a_val_folder_made_since_is_left_out(tmp_path):
    write_images(tmp_path / "train", 4)
    before = open_folder(tmp_path, seed=0)
    record = before.record()
    write_images(tmp_path / "val", 2)
    after = open_folder(tmp_path, seed=0, record=record)
    assert (paths(after.train), paths(after.val)) == (paths(before.train), paths(before.val))


def test_a_file_with_other_contents_is_another_image(root):
    before = open_folder(root, seed=1)
    record = before.record()
    changed = [before.train.items[0][0], before.val.items[0][0]]
    write_images(root.parent / "more", 7)
    for path in changed:
        shutil.copy(str(root.parent / "more" / pathlib.Path(path).relative_to(root)), path)
    after = open_folder(root, seed=1, record=json.loads(json.dumps(record)))
    train, val = (pathlib.Path(path).relative_to(root).as_posix() for path in changed)
    assert after.notes == (
        "the images are not those that the run began with: 0 were added, 0 removed, 2 changed",
        f"changed, and replaced by others of their class to train on: {train!r}",
        f"changed, and no longer measured on: {val!r}",
    )
    assert len(after.train) == len(before.train)
    assert paths(after.train) == paths(before.train) - {*changed}
    assert paths(after.val) == paths(before.val) - {*changed}


@pytest.mark.parametrize("how", ["exchanged", "renumbered", "copied"])
def test_an_image_under_another_recorded_name_is_refused(root, how):
    before = open_folder(root, seed=1)
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
        open_folder(root, seed=1, record=record)


@pytest.mark.parametrize(("part", "what"), [("train", "train on of class"), ("val", "measure on")])
def test_a_side_without_images_is_refused(root, part, what):
    before = open_folder(root, seed=1)
    record = before.record()
    for path, _ in getattr(before, part).items:
        pathlib.Path(path).unlink()
    with pytest.raises(UserError, match=f"holds none of the images that the run had to {what}"):
        open_folder(root, seed=1, record=record)


def test_every_remaining_image_of_a_class_takes_its_turn_for_the_removed_ones(root):
    before = open_folder(root, seed=1)
    record = before.record()
    red = [path for path, label in before.train.items if label == 2]
    for path in red[:3]:
        pathlib.Path(path).unlink()
    after = open_folder(root, seed=1, record=record)
    assert [path for path, label in after.train.items if label == 2] == [red[3], red[4], red[3], red[3], red[4]]
    assert after.notes == (
        "the images are not those that the run began with: 0 were added, 3 removed, 0 changed",
        "removed, and replaced by others of their class to train on: "
        + ", ".join(repr(pathlib.Path(path).relative_to(root).as_posix()) for path in red[:3]),
    )


def test_long_lists_of_images_are_cut(root):
    record = open_folder(root, seed=1).record()
    write_images(root.parent / "more", 10)
    for number in range(6, 10):
        name = f"{number:03}.{'png' if number % 2 else 'jpg'}"
        shutil.copy(str(root.parent / "more/red" / name), str(root / "red" / name))
    notes = open_folder(root, seed=1, record=record).notes
    assert notes[1:] == ("added, and left out of this run: 'red/006.jpg', 'red/007.png', 'red/008.jpg', 1 more",)


def test_a_record_names_every_image_with_its_size_and_checksum(root):
    split = open_folder(root, seed=1)
    record = split.record()
    assert record["classes"] == ["blue", "green", "red"]
    assert sorted(record["contents"]) == sorted(record["train"] + record["val"])
    assert (len(record["train"]), len(record["val"])) == (15, 3)
    assert {root / name for name in record["val"]} == {*map(pathlib.Path, paths(split.val))}
    assert all(size == (root / name).stat().st_size for name, (size, _) in record["contents"].items())
    assert len({checksum for _, checksum in record["contents"].values()}) == 18


def test_an_image_that_is_in_both_parts_is_said(tmp_path):
    for name in ("train", "val"):
        write_images(tmp_path / name, 2)
    # Written from the same seed, so each image of val is also one of train.
    record = open_folder(tmp_path, seed=0).record()
    notes = recorded_split.describe_shared_images(record)
    assert len(notes) == 1
    assert notes[0].startswith(
        "6 of 6 images to measure on are trained on, too, under other names ('train/blue/000.jpg' is "
        "'val/blue/000.jpg', 'train/blue/001.png' is 'val/blue/001.png', 'train/green/000.jpg' is "
        "'val/green/000.jpg', ...): the validation accuracy is higher than"
    )
    assert recorded_split.describe_shared_images(json.loads(json.dumps(record))) == notes


def test_images_that_are_all_different_are_not_said(root):
    record = open_folder(root, seed=1).record()
    shutil.copy(str(root / record["train"][0]), str(root / "red/copy.png"))
    assert recorded_split.describe_shared_images(record) == ()
    assert recorded_split.describe_shared_images(None) == ()


def test_a_copy_in_the_other_part_is_said_across_classes_and_names(root):
    shutil.copy(str(root / "blue/000.jpg"), str(root / "red/copy.jpg"))
    counts = set()
    for seed in range(20):
        record = open_folder(root, seed=seed).record()
        apart = ("blue/000.jpg" in record["train"]) != ("red/copy.jpg" in record["train"])
        notes = recorded_split.describe_shared_images(record)
        assert bool(notes) == apart
        counts.add(apart)
    assert counts == {False, True}


def test_the_classes_must_be_the_recorded_ones_in_the_same_order(tmp_path):
    recorded_split.check_classes(["a", "b"], {"classes": ["a", "b"]}, tmp_path)
    for classes in (["b", "a"], ["a"], ["a", "b", "c"]):
        with pytest.raises(UserError, match="the run was trained on the classes 'a', 'b', and --data"):
            recorded_split.check_classes(classes, {"classes": ["a", "b"]}, tmp_path)
