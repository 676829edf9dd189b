"""Arguments become the paths of images: in order, as they come, without holding them all."""

from __future__ import annotations

import io
import itertools
import os
import sys

import pytest

from multitrainer_cli.errors import UserError
from multitrainer_cli.inference.image_paths import Skipped, find_images


@pytest.fixture
def tree(tmp_path):
    for name in ("b/1.jpg", "b/a/0.png", "a.jpg", "b.webp", "b/2.txt", ".x/y.jpg", "b/._1.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def test_names_decide_the_order(tree):
    skipped = Skipped()
    found = [os.path.relpath(path, str(tree)) for path in find_images([str(tree)], False, skipped)]
    assert found == ["a.jpg", "b/1.jpg", "b/a/0.png", "b.webp"]
    assert (skipped.hidden, skipped.others, skipped.failures) == (2, 1, 0)
    assert skipped.describe_left_out().startswith("2 hidden and 1 not called like an image (.bmp, ")


def test_arguments_keep_their_order_and_their_spelling(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert list(find_images(["b.webp", "./b", "a.jpg", "nowhere"], False, Skipped())) == [
        *("b.webp", "./b/1.jpg", "./b/a/0.png", "a.jpg", "nowhere"),
    ]


def test_a_folder_that_cannot_be_listed_is_reported(tree, monkeypatch, capsys):
    real = os.listdir

    def refuse(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "listdir", refuse)
    skipped = Skipped()
    assert len(list(find_images([str(tree)], False, skipped))) == 3
    assert skipped.failures == 1
    assert capsys.readouterr().err == f"multitrainer: error: {tree}/b/a: Permission denied\n"


class Endless(io.RawIOBase):
    """A list that never ends."""

    def __init__(self, end):
        self.end = end

    def readable(self):
        return True

    def readinto(self, buffer):
        text = (b"a.jpg" + self.end) * 2
        buffer[: len(text)] = text
        return len(text)


@pytest.mark.parametrize(("null", "end"), [(False, b"\n"), (True, b"\0")])
def test_an_endless_list_is_read_as_it_comes(monkeypatch, null, end):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Endless(end), 16)))
    paths = find_images(["-"], null, Skipped())
    assert list(itertools.islice(paths, 100)) == ["a.jpg"] * 100


def test_mistakes_are_noticed_before_anything_is_read():
    for arguments, null in ((["-", "-"], False), (["a"], True)):
        with pytest.raises(UserError):
            find_images(arguments, null, Skipped())
