"""Runs of the command that many tests begin with."""

from __future__ import annotations

import collections
import shutil

import pytest

from cli_support import finetune, write_images


@pytest.fixture(scope="session")
def first_run(make_once):
    """Return a folder with 33 images in three classes (`colours`) and a run of two epochs on them (`out`)."""
    pytest.importorskip("gluoncv")

    def make(folder):
        assert finetune(write_images(folder / "colours", 11), "--out", folder / "out") == 0

    return make_once("first run", make)[0]


@pytest.fixture
def copied(first_run, tmp_path):
    """Return copies of the images and of the run, which a test may change."""
    for name in ("colours", "out"):
        shutil.copytree(str(first_run / name), str(tmp_path / name))
    return collections.namedtuple("Copied", "images out")(tmp_path / "colours", tmp_path / "out")
