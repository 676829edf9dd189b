"""run.json comes back as it was written, and people can read it."""

from __future__ import annotations

import json
import os

import pytest

from multitrainer_cli.runs import record
from run_support import IMAGES, NETWORK

FIELDS = {"options": {"seed": "0"}, "data": "/images", "weights": {"file": "a.params", "crc32": 3}, "threads": 2}


def write(folder, network=NETWORK, images=IMAGES, **fields):
    record.write(folder / "run.json", network, images=images, **{**FIELDS, **fields})
    return folder / "run.json"


def test_what_was_written_is_read(tmp_path):
    path = write(tmp_path)
    assert record.read(path) == {**FIELDS, "images": IMAGES, "network": NETWORK._asdict()}
    assert record.read(write(tmp_path, images=None, weights=None))["images"] is None
    assert record.identify(path) == record.FORMAT


def test_every_option_and_image_has_a_line(tmp_path):
    lines = write(tmp_path).read_text().splitlines()
    assert lines[:4] == ["{", '  "format": 1,', '  "model": "one weight",', '  "classes": ["a", "b"],']
    assert '    "seed": "0"' in lines
    assert lines[-10:] == [
        '    "train": {',
        '      "a/1.jpg": [1, 2],',
        '      "b/1.jpg": [1, 2]',
        "    },",
        '    "val": {',
        '      "a/2.jpg": [1, 2],',
        '      "b/2.jpg": [1, 2]',
        "    }",
        "  }",
        "}",
    ]


def test_the_fields_are_those_of_the_format(tmp_path):
    written = json.loads(write(tmp_path).read_text())
    assert [*written] == [
        *("format", "model", "classes", "input", "options", "versions", "threads", "data", "weights", "split"),
    ]
    assert written["input"] == NETWORK.input
    assert [*written["versions"]] == ["multitrainer", "mxnet", "gluoncv", "numpy", "python"]
    assert all(version[0].isdecimal() for version in written["versions"].values())


def test_images_keep_their_order(tmp_path):
    images = {**IMAGES, "train": ["b/1.jpg", "a/1.jpg"]}
    assert record.read(write(tmp_path, images=images))["images"]["train"] == ["b/1.jpg", "a/1.jpg"]


def test_an_image_lies_in_the_folder_of_its_class(tmp_path):
    for name, accepted in (("train/a/1.jpg", True), ("a/1.jpg", True), ("train/a/x/1.jpg", False), ("1.jpg", False)):
        images = {"classes": ["a"], "train": [name], "val": [], "contents": {name: [1, 2]}}
        path = write(tmp_path, NETWORK._replace(classes=["a"]), images)
        if accepted:
            assert record.read(path)["images"] == images
        else:
            with pytest.raises(ValueError, match=f"the image '{name}' is in none of the classes"):
                record.read(path)


@pytest.mark.parametrize("name", ["übung", "猫", 'quote"', "back\\slash", os.fsdecode(b"latin\xe9")])
def test_any_name_comes_back(tmp_path, name):
    images = {"classes": [name], "train": [f"{name}/1.jpg"], "val": [], "contents": {f"{name}/1.jpg": [1, 2]}}
    path = write(tmp_path, record.NetworkRecord("m", [name], {}), images, data=f"/{name}")
    read = record.read(path)
    assert (read["images"], read["data"]) == (images, f"/{name}")
    if name == "übung":
        assert "übung" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        *({name: None} for name in ("options", "classes", "split")),
        {"split": {"train": {}}},
        {"split": {"train": {"c/1.jpg": [1, 2]}, "val": {}}},
        {"split": {"train": {"a/1.jpg": ["x", 2]}, "val": {}}},
        {"weights": {"file": "x"}},
        {"format": "1"},
        {"format": 0},
    ],
    ids=str,
)
def test_a_field_of_another_type_is_refused(tmp_path, change):
    path = write(tmp_path)
    if change == {"split": None}:
        pytest.skip("a run on digits")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
        record.read(path)


def test_a_newer_format_is_a_record_that_cannot_be_read(tmp_path):
    path = write(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    assert record.identify(path) == 2
    with pytest.raises(record.NewerFormatError, match="written by a newer multitrainer"):
        record.read(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "1", '{"format": 1}', "\xff"])
def test_another_file_is_no_record(tmp_path, text):
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    assert record.identify(tmp_path / "run.json") is None
    assert record.identify(tmp_path) is None
    assert record.identify(tmp_path / "nothing") is None
