"""Files of an export appear together, replace those of an earlier export alone, and leave everything else."""

from __future__ import annotations

import itertools
import json
import os

import pytest

from multitrainer_cli.errors import UserError
from multitrainer_cli.exporting.new_files import MANIFEST, new_files
from run_support import Killed, Killer


def export(out, names=("a", "b"), text="one", overwrite=False, fail_with=None):
    """Write files of these names that hold `text`, and a manifest that lists them; raise `fail_with` in the middle."""
    names = [MANIFEST, *names]
    with new_files(out, names, overwrite) as folder:
        for name in names[1:]:
            (folder / name).write_text(text)
        if fail_with:
            raise fail_with
        (folder / MANIFEST).write_text(json.dumps({"files": names, "text": text}))


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != MANIFEST}


def test_a_new_folder_holds_the_files_and_is_as_open_as_any_other(tmp_path):
    export(tmp_path / "deep" / "out")
    assert contents(tmp_path / "deep" / "out") == {"a": "one", "b": "one"}
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    (tmp_path / "other").mkdir()
    assert (tmp_path / "deep" / "out").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_other_files_of_the_folder_stay(tmp_path):
    (tmp_path / "mine").write_text("mine")
    export(tmp_path)
    assert contents(tmp_path) == {"a": "one", "b": "one", "mine": "mine"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_failure(tmp_path, error):
    with pytest.raises(error):
        export(tmp_path / "deep" / "out", fail_with=error)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced_only_if_asked(tmp_path):
    export(tmp_path, ["a", "old"])
    (tmp_path / "mine").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="holds an earlier export; replace it with --overwrite"):
        export(tmp_path, ["a"], "two")
    assert contents(tmp_path) == before
    export(tmp_path, ["a", "new"], "two", overwrite=True)
    assert contents(tmp_path) == {"a": "two", "new": "two", "mine": "mine"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_no_export_wrote_is_never_replaced(tmp_path, overwrite):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(UserError, match="holds a, which no earlier export wrote"):
        export(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == {"a": "mine"}


@pytest.mark.parametrize("manifest", ["", "[]", '{"files": [".."]}', '{"files": ["../mine"]}', '{"files": [1]}'])
def test_a_strange_manifest_gives_nothing_away(tmp_path, manifest):
    (tmp_path / "mine").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / MANIFEST).write_text(manifest)
    with pytest.raises(UserError, match="choose another --out"):
        export(out, overwrite=True)
    assert (tmp_path / "mine").exists()


def test_a_folder_of_the_name_of_a_file_is_refused(tmp_path):
    export(tmp_path)
    (tmp_path / "a").unlink()
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="holds a, which"):
        export(tmp_path, overwrite=True)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_place_of_the_folder_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=f"--out .*{place}"):
        export(tmp_path / place)
    assert contents(tmp_path) == {"file": "mine"}


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    export(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "target") == {"a": "one", "b": "one"}


def test_the_current_folder_can_be_the_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(tmp_path)
    assert sorted(os.listdir(".")) == ["a", "b", MANIFEST]


@pytest.fixture(scope="module")
def killer():
    return Killer()


def kill_at_every_moment(killer, folder, prepare, work):
    """Yield each folder that is left when `work` is killed at one of its changes to files."""
    for moment in itertools.count():
        out = folder / str(moment) / "out"
        out.parent.mkdir()
        prepare(out)
        try:
            with killer.at(moment):
                work(out)
        except Killed:
            yield out
        else:
            assert moment > 1
            return


def test_a_new_export_is_whole_or_absent_whenever_it_is_killed(tmp_path, killer):
    for out in kill_at_every_moment(killer, tmp_path, lambda out: None, export):
        assert not out.exists() or contents(out) == {"a": "one", "b": "one"}
        export(out, text="two", overwrite=True)
        assert contents(out) == {"a": "two", "b": "two"}


def test_a_killed_replacement_can_be_repeated(tmp_path, killer):
    replace = {"names": ["b", "c"], "text": "two", "overwrite": True}
    for out in kill_at_every_moment(killer, tmp_path, export, lambda out: export(out, **replace)):
        assert set(contents(out).values()) <= {"one", "two"}  # no file is cut
        export(out, **replace)
        assert {name: text for name, text in contents(out).items() if name != "a"} == {"b": "two", "c": "two"}
