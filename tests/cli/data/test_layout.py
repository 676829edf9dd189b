"""Which folders are trained on, which validated on, and that everything else is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cli_support import write_images

pytest.importorskip("PIL")

from multitrainer_cli.data import layout
from multitrainer_cli.data.layout import (
    Layout,
    LeftOut,
    check_depth,
    check_place,
    class_names,
    class_roots,
    find_layout,
    list_classes,
    naming_data,
)
from multitrainer_cli.errors import UserError
from multitrainer_cli.runs import record
from run_support import NETWORK


def listed(root, out=None):
    """Return the names of the classes with those of their images, and the description of the rest."""
    left_out = LeftOut(root)
    classes = list_classes(root, left_out, out)
    return {folder.name: [image.name for image in images] for folder, images in classes.items()}, left_out.describe()


class TestFindLayout:
    def test_class_folders(self, tmp_path):
        root = write_images(tmp_path / "d", 1)
        assert find_layout(root) == (root, None)
        assert class_roots(root) == [root]
        assert class_names(root) == ["blue", "green", "red"]

    @pytest.mark.parametrize("val", ["val", "valid", "validation", "VAL", "Valid"])
    @pytest.mark.parametrize("train", ["train", "Train", "TRAIN", "training"])
    def test_train_and_val_in_any_case(self, tmp_path, train, val):
        write_images(tmp_path / train, 1)
        assert find_layout(tmp_path) == (tmp_path / train, None)
        write_images(tmp_path / val, 1)
        write_images(tmp_path / "test", 1)
        assert find_layout(tmp_path) == (tmp_path / train, tmp_path / val)
        assert class_roots(tmp_path) == [tmp_path / train, tmp_path / val]
        assert class_names(tmp_path) == ["blue", "green", "red"]

    @pytest.mark.parametrize("name", ["train", "Train"])
    def test_a_class_called_train(self, tmp_path, name):
        root = write_images(tmp_path / "d", 1, classes=("plane", name, "val"))
        assert find_layout(root) == (root, None)

    @pytest.mark.parametrize(("names", "both"), [(("val", "valid"), "val and valid"), (("Val", "val"), "Val and val")])
    def test_two_folders_to_validate_on_are_refused(self, tmp_path, names, both):
        for name in ("train", *names):
            write_images(tmp_path / name, 1)
        with pytest.raises(UserError, match=f"holds {both}, and only one of them can be used; move the others away"):
            find_layout(tmp_path)

    def test_two_folders_to_train_on_are_refused(self, tmp_path):
        for name in ("train", "Train"):
            write_images(tmp_path / name, 1)
        with pytest.raises(UserError, match="holds Train and train"):
            find_layout(tmp_path)

    @pytest.mark.parametrize("inside", ["", "train"])
    def test_class_folders_in_the_only_folder_are_named(self, tmp_path, inside):
        write_images(tmp_path / "d/flowers" / inside, 1)
        (tmp_path / "d/__MACOSX").mkdir()
        with pytest.raises(UserError, match=r"d: the class folders are in .*d/flowers; give --data .*d/flowers$"):
            check_depth(tmp_path / "d")
        check_depth(tmp_path / "d/flowers")
        write_images(tmp_path / "d", 1, classes=("red",))
        check_depth(tmp_path / "d")

    def test_the_folder_of_the_run_does_not_hide_the_only_folder(self, tmp_path):
        write_images(tmp_path / "flowers", 1)
        (tmp_path / "new").mkdir()
        check_depth(tmp_path)
        with pytest.raises(UserError, match=r"give --data .*flowers$"):
            check_depth(tmp_path, tmp_path / "new")

    def test_a_missing_folder_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"--data .*nowhere: no such folder"):
            find_layout(tmp_path / "nowhere")

    @pytest.mark.parametrize(("name", "cure"), [("d.zip", "unpack it"), ("d.tar.gz", "unpack it"), ("d.jpg", "give a")])
    def test_a_file_is_refused(self, tmp_path, name, cure):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match=f"{name} is a file; {cure}.* folder that holds a folder of images for"):
            find_layout(tmp_path / name)


def test_a_folder_that_cannot_be_read_is_named_with_the_option(tmp_path):
    error = r"--data d: d/red: Permission denied; make it readable or give another folder"
    with pytest.raises(UserError, match=error), naming_data(Path("d")):
        raise PermissionError(errno.EACCES, "Permission denied", "d/red")


WHOLE = {"blue": ["000.jpg", "001.png"], "red": ["000.jpg", "001.png"]}


class TestListClasses:
    @pytest.fixture
    def root(self, tmp_path):
        return write_images(tmp_path / "d", 2, classes=("blue", "red"))

    def test_nothing_is_left_out_of_a_plain_folder(self, root):
        assert listed(root) == (WHOLE, "")

    @pytest.mark.parametrize("name", ["a.JPEG", "b.Bmp", "c.webp", "d.GIF", "e.tif", "f.TIFF"])
    def test_every_extension_counts_in_any_case(self, root, name):
        (root / "red/000.jpg").rename(root / "red" / name)
        assert sorted(listed(root)[0]["red"]) == ["001.png", name]

    def test_every_kind_of_other_thing_is_counted_with_an_example(self, root, tmp_path):
        write_images(root / "red/old/deep", 1, classes=("a", "b"))
        for name in (".hidden/x.jpg", "__MACOSX/red/._000.jpg", "red/empty/notes.txt"):
            (root / name).parent.mkdir(parents=True)
            (root / name).write_bytes(b"")
        for name in ("red/._000.jpg", "red/.DS_Store", "red/a.heic", "blue/b.mp4", "labels.csv", "beside.png"):
            (root / name).write_bytes(b"")
        (root / "red/gone.jpg").symlink_to(tmp_path / "nowhere")
        (root / "red/round.jpg").symlink_to(root / "red/round.jpg")
        classes, description = listed(root)
        assert classes == WHOLE
        assert sorted(description.rstrip(")").split("), ")) == [
            "1 folder without images inside a class folder (red/empty",
            "1 image beside the class folders (beside.png",
            "2 broken links (red/gone.jpg, ...",
            "2 images in folders inside class folders (red/old/deep/a/000.jpg, ...",
            "3 files of other types (blue/b.mp4, ...",
            "4 hidden files and folders (.hidden, ...",
        ]

    def test_links_are_followed_to_images_and_classes_but_not_in_circles(self, root):
        (root / "red/link.jpg").symlink_to(root / "blue/000.jpg")
        (root / "green").symlink_to(root / "blue")
        (root / "red/up").symlink_to(root)
        classes, description = listed(root)
        assert classes == {**WHOLE, "green": WHOLE["blue"], "red": ["000.jpg", "001.png", "link.jpg"]}
        assert description == "5 images in folders inside class folders (red/up/blue/000.jpg, ...)"

    def test_a_pipe_is_not_opened(self, root):
        os.mkfifo(str(root / "red/pipe.jpg"))
        assert listed(root) == (WHOLE, "1 file of another type (red/pipe.jpg)")

    def test_a_name_that_cannot_be_printed_is_escaped(self, root):
        (root / "red" / os.fsdecode(b"\xe9\n.txt")).write_bytes(b"")
        assert listed(root)[1] == "1 file of another type ('red/\\udce9\\n.txt')"

    @pytest.mark.parametrize(
        ("files", "instead"),
        [
            ([], r"\.webp\)\. Put images there, or move the folder away"),
            (["a.heic", "b.heic"], r"; it holds 2 files of other types \(a\.heic, \.\.\.\)\. Put"),
            (["old/a.jpg"], r"; it holds 1 image in a folder inside a class folder \(old/a\.jpg\)\. Put"),
        ],
    )
    def test_a_class_without_images_is_refused(self, root, files, instead):
        (root / "yellow").mkdir()
        for name in files:
            (root / "yellow" / name).parent.mkdir(exist_ok=True)
            (root / "yellow" / name).write_bytes(b"")
        with pytest.raises(UserError, match=f"yellow holds no images .*{instead}"):
            listed(root)

    @pytest.mark.parametrize("name", ["two\nlines", "red\x85", os.fsdecode(b"r\xffd")])
    def test_a_class_whose_name_is_not_a_line_of_classes_txt_is_refused(self, root, name):
        (root / "red").rename(root / name)
        with pytest.raises(UserError, match=r"does not fit on a line of classes\.txt"):
            listed(root)

    def test_an_image_whose_name_is_not_in_utf8_is_refused(self, root):
        (root / "red/000.jpg").rename(root / "red" / os.fsdecode(b"\xe9.jpg"))
        with pytest.raises(UserError, match=r"red/\\udce9\.jpg' is not in UTF-8; rename it"):
            listed(root)


class TestRunsAmongTheClasses:
    """The folders of runs are left out; a folder that holds images stays a class unless it is a run."""

    @pytest.fixture
    def root(self, tmp_path):
        root = write_images(tmp_path / "d", 1)
        for name in ("a-run", "runs/finetune"):
            (root / name).mkdir(parents=True)
            record.write(root / name / "run.json", NETWORK, {}, None, None, None)
        (root / "a-run/finetune.png").write_bytes(b"")
        return root

    def test_runs_are_no_classes(self, root):
        assert sorted(listed(root)[0]) == ["blue", "green", "red"]
        assert class_roots(root) == [root]

    def test_a_class_that_holds_runs_stays_one(self, root):
        (root / "runs").rename(root / "red/runs")
        assert sorted(listed(root)[0]) == ["blue", "green", "red"]

    @pytest.mark.parametrize("out", ["next", "deep/next"])
    def test_nor_is_the_one_that_begins(self, root, out):
        (root / out).mkdir(parents=True)
        with pytest.raises(UserError, match="holds no images"):
            listed(root)
        assert sorted(listed(root, root / out)[0]) == ["blue", "green", "red"]

    @pytest.mark.parametrize("name", ["", "red", "red/x", "train", "Val/x", "valid"])
    def test_a_run_may_not_begin_where_its_files_would_be_images(self, root, name):
        with pytest.raises(UserError, match="is inside --data"):
            check_place(root / name, root)

    @pytest.mark.parametrize("name", ["new", "a-run", "runs/new", "new/train", "../d2", ".hidden/x"])
    def test_it_may_begin_anywhere_else(self, root, name):
        check_place(root / name, root)

    def test_they_are_said(self, root):
        assert listed(root)[1] == "2 folders of runs (a-run, ...)"


class TestWhatIsBesideTrain:
    def test_is_noted(self, tmp_path):
        for name in ("train", "val", "test", "runs", ".git"):
            write_images(tmp_path / name, 1, classes=("blue",))
        (tmp_path / "README.md").write_text("")
        (tmp_path / "all.png").write_text("")
        left_out = LeftOut(tmp_path)
        layout.note_beside(tmp_path, find_layout(tmp_path), left_out)
        assert sorted(left_out.describe().rstrip(")").split("), ")) == [
            "1 file of another type (README.md",
            "1 hidden file or folder (.git",
            "1 image beside the class folders (all.png",
            "2 folders beside the one to train on (runs, ...",
        ]

    def test_is_nothing_if_the_folder_holds_the_classes(self, tmp_path):
        left_out = LeftOut(tmp_path)
        layout.note_beside(write_images(tmp_path / "d", 1), Layout(tmp_path / "d", None), left_out)
        assert left_out.describe() == ""
