from __future__ import annotations

import os
import pathlib
import warnings

import mxnet as mx
import numpy as np
import pytest

from cli_support import write_images

pytest.importorskip("gluoncv")
pytest.importorskip("PIL")

from multitrainer_cli.data.image_folder import ImageFolder, check_place, check_readable, class_roots
from multitrainer_cli.errors import UserError
from multitrainer_cli.runs import record
from run_support import NETWORK


def readable(root):
    folder = ImageFolder(root)
    check_readable([path for path, _ in folder.items])
    return folder


def test_items_are_the_images_of_every_class_in_order(tmp_path):
    folder = ImageFolder(write_images(tmp_path / "d", 2))
    names = [(pathlib.Path(path).relative_to(tmp_path / "d").as_posix(), label) for path, label in folder.items]
    assert folder.synsets == ["blue", "green", "red"]
    assert names == [(f"{name}/{file}", label) for label, name in enumerate(folder.synsets) for file in FILES]
    assert len(folder) == 6


FILES = ("000.jpg", "001.png")


def test_hidden_folders_and_other_files_are_ignored(tmp_path):
    root = write_images(tmp_path / "d", 4)
    (root / ".ipynb_checkpoints").mkdir()
    (root / "notes.txt").write_text("by hand")
    (root / "red" / "Thumbs.db").write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ImageFolder(root)) == 12


def test_the_case_of_an_extension_does_not_matter(tmp_path):
    root = write_images(tmp_path / "d", 2)
    (root / "red/000.jpg").rename(root / "red/000.JPEG")
    assert len(ImageFolder(root)) == 6


def test_the_seed_of_an_index_decides_what_is_drawn_at_random(tmp_path):
    folder = ImageFolder(write_images(tmp_path / "d", 2))
    folder.preprocess = lambda image: (np.random.rand(), mx.random.uniform(shape=1).asscalar(), image.asnumpy().sum())
    (first, label), (again, _), (other, _) = folder[5, 3], folder[5, 3], folder[5, 4]
    assert (label, first) == (2, again)
    assert first[2] == other[2] == mx.image.imread(folder.items[5][0]).asnumpy().sum()
    assert first[0] != other[0]
    assert first[1] != other[1]


def test_a_copy_with_other_items_leaves_the_folder_as_it_is(tmp_path):
    folder = ImageFolder(write_images(tmp_path / "d", 2))
    part = folder.with_items(folder.items[3:4])
    part.preprocess = lambda image: image
    assert (len(folder), folder.preprocess) == (6, None)
    assert (len(part), part[0, 0][1]) == (1, 1)


class TestClassRoots:
    def test_are_the_folder_itself(self, tmp_path):
        assert class_roots(write_images(tmp_path / "d", 1)) == [tmp_path / "d"]

    def test_are_train_and_val_if_there_is_a_val(self, tmp_path):
        write_images(tmp_path / "train", 1)
        assert class_roots(tmp_path) == [tmp_path / "train"]
        write_images(tmp_path / "val", 1)
        assert class_roots(tmp_path) == [tmp_path / "train", tmp_path / "val"]

    def test_are_the_folder_itself_if_a_class_is_called_train(self, tmp_path):
        root = write_images(tmp_path / "d", 1, classes=("plane", "train", "val"))
        assert class_roots(root) == [root]

    def test_a_missing_folder_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"--data .*nowhere: no such folder"):
            class_roots(tmp_path / "nowhere")


class TestWhatCannotBeUsedIsNamed:
    def broken(self, tmp_path, damage):
        root = write_images(tmp_path / "d", 4)
        damage(root)
        with pytest.raises(UserError) as caught:
            readable(root)
        return str(caught.value)

    def test_an_empty_class_folder(self, tmp_path):
        assert "yellow holds no images (.jpg, .jpeg, .png)" in self.broken(
            tmp_path, lambda root: (root / "yellow").mkdir()
        )

    def test_a_broken_image(self, tmp_path):
        message = self.broken(tmp_path, lambda root: (root / "red" / "002.jpg").write_bytes(b"no image at all"))
        assert message.count("002.jpg") == 1
        assert "not a readable" in message
        assert "more" not in message

    @pytest.mark.parametrize("name", ["001.png", "000.jpg"])
    def test_an_empty_or_cut_image(self, tmp_path, name):
        def damage(root):
            path = root / "red" / name
            path.write_bytes(path.read_bytes()[: 200 if name.endswith("png") else 0])

        assert name in self.broken(tmp_path, damage)

    @pytest.mark.parametrize(("count", "rest"), [(3, "003.png: not"), (4, "002.jpg and 1 more: not")])
    def test_more_than_three_broken_images_by_their_number(self, tmp_path, count, rest):
        def damage(root):
            for path in sorted((root / "red").iterdir())[-count:]:
                path.write_bytes(b"")

        message = self.broken(tmp_path, damage)
        assert message.count("/red/") == 3
        assert rest in message

    def test_an_image_that_breaks_after_the_check(self, tmp_path):
        folder = readable(write_images(tmp_path / "d", 2))
        pathlib.Path(folder.items[4][0]).write_bytes(b"gone")
        with pytest.raises(UserError, match=r"red/000\.jpg: not a readable"):
            folder[4, 0]

    @pytest.mark.parametrize("name", ["two\nlines", "red\x85", os.fsdecode(b"r\xffd")])
    def test_a_class_whose_name_is_not_a_line_of_classes_txt(self, tmp_path, name):
        root = write_images(tmp_path / "d", 1)
        (root / "red").rename(root / name)
        with pytest.raises(UserError, match=r"does not fit on a line of classes\.txt"):
            ImageFolder(root)

    def test_an_image_whose_name_is_not_in_utf8(self, tmp_path):
        root = write_images(tmp_path / "d", 3)
        (root / "red/000.jpg").rename(root / "red" / os.fsdecode(b"\xe9.jpg"))
        with pytest.raises(UserError, match=r"red/\\udce9\.jpg' is not in UTF-8; rename it"):
            ImageFolder(root)


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
        assert ImageFolder(root).synsets == ["blue", "green", "red"]
        assert class_roots(root) == [root]

    def test_a_class_that_holds_runs_stays_one(self, root):
        (root / "runs").rename(root / "red/runs")
        assert ImageFolder(root).synsets == ["blue", "green", "red"]

    @pytest.mark.parametrize("out", ["next", "deep/next"])
    def test_nor_is_the_one_that_begins(self, root, out):
        (root / out).mkdir(parents=True)
        with pytest.raises(UserError, match="holds no images"):
            ImageFolder(root)
        assert ImageFolder(root, root / out).synsets == ["blue", "green", "red"]

    @pytest.mark.parametrize("name", ["", "red", "red/x", "train", "Val/x", "valid"])
    def test_a_run_may_not_begin_where_its_files_would_be_images(self, root, name):
        with pytest.raises(UserError, match="is inside --data"):
            check_place(root / name, root)

    @pytest.mark.parametrize("name", ["new", "a-run", "runs/new", "new/train", "../d2", ".hidden/x"])
    def test_it_may_begin_anywhere_else(self, root, name):
        check_place(root / name, root)
