"""Which images are measured: those of the run, wherever they are now, or all of another folder."""

from __future__ import annotations

import shutil

import pytest

from cli_support import write_images

pytest.importorskip("gluoncv")

from multitrainer_cli.data.split import open_folder
from multitrainer_cli.errors import UserError
from multitrainer_cli.evaluation.selection import select_images

CLASSES = ["blue", "green", "red"]


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "own", 5)


def record_of(folder):
    images = open_folder(folder, 0).record()
    return {part: {name: images["contents"][name] for name in images[part]} for part in ("train", "val")}


def names(selection, root):
    return [path[len(str(root)) + 1 :] for path, _ in selection.images.items]


@pytest.mark.parametrize(("split", "part"), [(None, "val"), ("val", "val"), ("train", "train")])
def test_the_images_of_the_run_in_their_order(folder, split, part):
    record = record_of(folder)
    found = select_images(folder, split, CLASSES, record)
    assert names(found, folder) == list(record[part])
    assert [CLASSES[label] for _, label in found.images.items] == [name.split("/")[0] for name in record[part]]
    assert (found.part, found.validates, found.notes) == (part, part == "val", ())


def test_all_images_and_how_many_were_trained_on(folder):
    record = record_of(folder)
    found = select_images(folder, "all", CLASSES, record)
    assert len(found.images.items) == 15
    assert (found.part, found.validates) == ("all", False)
    assert found.notes == ("the run was trained on 12 of these 15 images",)


def test_images_that_were_added_are_left_out(folder):
    record = record_of(folder)
    shutil.copy(str(folder / "red" / "000.jpg"), str(folder / "red" / "new.jpg"))
    found = select_images(folder, None, CLASSES, record)
    assert names(found, folder) == list(record["val"])
    assert found.validates
    assert "3 of 16 images" in found.description


@pytest.mark.parametrize("damage", ["removed", "changed"])
def test_images_that_are_gone_or_changed(folder, damage):
    record = record_of(folder)
    first, *others = record["val"]
    if damage == "removed":
        (folder / first).unlink()
    else:
        shutil.copy(str(folder / next(iter(record["train"]))), str(folder / first))
    found = select_images(folder, None, CLASSES, record)
    assert names(found, folder) == others
    assert not found.validates
    assert "1 of the 3 images that the run has set aside for validation are gone or changed" in found.notes


def test_renumbered_images_are_another_folder(folder, tmp_path):
    record = record_of(folder)
    other = tmp_path / "other"
    for name in CLASSES:
        (other / name).mkdir(parents=True)
        images = sorted((folder / name).iterdir())
        for number, image in enumerate([*images[1:], images[0]]):
            shutil.copy(str(image), str(other / name / f"{number:03}.png"))
    found = select_images(other, None, CLASSES, record)
    assert (found.part, len(found.images.items)) == ("all", 15)
    assert found.notes == ("the run was trained on 12 of these 15 images",)


def test_a_divided_folder_of_the_run(tmp_path):
    folder = tmp_path / "both"
    write_images(folder / "train", 3)
    write_images(folder / "val", 2)
    record = record_of(folder)
    for split, count in ((None, 6), ("train", 9)):
        found = select_images(folder, split, CLASSES, record)
        assert len(found.images.items) == count
        assert {name.split("/")[0] for name in names(found, folder)} == {split or "val"}
    assert len(select_images(folder, "all", CLASSES, record).images.items) == 15


def test_a_divided_folder_of_others(folder, tmp_path):
    other = tmp_path / "other"
    write_images(other / "train", 3)
    write_images(other / "val", 2)
    for split, part, count in ((None, "val/", 6), ("val", "val/", 6), ("train", "train/", 9), ("all", "all", 15)):
        found = select_images(other, split, CLASSES, record_of(folder))
        assert (found.part, len(found.images.items), found.validates) == (part, count, False)


def test_what_is_left_out_of_another_folder(folder, tmp_path):
    other = write_images(tmp_path / "other" / "Train", 1).parent
    write_images(other / "valid", 2)
    (other / "valid" / "red" / "._000.jpg").write_bytes(b"")
    found = select_images(other, None, CLASSES, record_of(folder))
    assert (found.part, len(found.images.items)) == ("valid/", 6)
    assert found.notes == ("left out: 1 hidden file or folder (valid/red/._000.jpg)",)


@pytest.mark.parametrize("split", ["val", "train"])
def test_a_folder_of_others_has_no_split(folder, tmp_path, split):
    other = write_images(tmp_path / "other", 2)
    with pytest.raises(UserError, match=f"--split {split}: .* leave --split out"):
        select_images(other, split, CLASSES, record_of(folder))


def test_a_few_images_of_the_run_do_not_make_its_folder(folder, tmp_path):
    record = record_of(folder)
    other = write_images(tmp_path / "other", 7)
    shutil.copy(str(folder / next(iter(record["val"]))), str(other / next(iter(record["val"]))))
    found = select_images(other, None, CLASSES, record)
    assert (found.part, len(found.images.items), found.notes) == ("all", 21, ())


def test_labels_are_the_outputs_of_the_network(folder):
    found = select_images(folder, "all", ["red", "brown", "green", "blue"], None)
    assert {(path.split("/")[-2], label) for path, label in found.images.items} == {
        ("red", 0),
        ("green", 2),
        ("blue", 3),
    }
    assert found.notes == ("there are no images of 'brown'",)


def test_unknown_classes_are_refused_only_if_they_are_measured(folder):
    record = record_of(folder)
    write_images(folder, 1, ("violet",))
    assert select_images(folder, None, CLASSES, record).validates
    with pytest.raises(UserError, match="does not know: 'violet'"):
        select_images(folder, "all", CLASSES, record)


def test_the_checksum_is_of_names_and_contents_wherever_they_are(folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(str(folder), str(moved))
    checksums = [select_images(root, "all", CLASSES, None).checksum(root) for root in (folder, moved)]
    assert checksums[0] == checksums[1]
    (moved / "red" / "000.jpg").rename(moved / "red" / "renamed.jpg")
    checksums.append(select_images(moved, "all", CLASSES, None).checksum(moved))
    shutil.copy(str(folder / "blue" / "000.jpg"), str(moved / "red" / "renamed.jpg"))
    checksums.append(select_images(moved, "all", CLASSES, None).checksum(moved))
    assert len(set(checksums)) == 3
