from __future__ import annotations

import pytest

from multitrainer_cli.runs import run_folder


@pytest.fixture
def folder(tmp_path):
    """A folder with every file of a run, and with files of the user."""
    (tmp_path / "checkpoint").mkdir()
    for name in (*run_folder.FILES, "digits-source.params", "notes.txt"):
        (tmp_path / name).write_text(name)
    for name in ("run.json", "000004.params", "000004.npz", "000004.json", "000004.txt", "notes.json"):
        (tmp_path / "checkpoint" / name).write_text(name)
    return tmp_path


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_files_of_a_run_begin_with_its_record(folder):
    found = [str(path.relative_to(folder)) for path in run_folder.files_of_run(folder)]
    assert found[0] == "checkpoint/run.json"
    assert set(names(folder)) - set(found) == {
        "checkpoint/000004.txt",
        "checkpoint/notes.json",
        "digits-source.params",
        "notes.txt",
    }


def test_removing_a_run_leaves_the_files_of_the_user(folder):
    run_folder.remove_run(folder)
    assert names(folder) == ["checkpoint/000004.txt", "checkpoint/notes.json", "digits-source.params", "notes.txt"]
    assert run_folder.files_of_run(folder) == []


@pytest.mark.parametrize("name", [*run_folder.FILES, "checkpoint/000001.npz"])
def test_any_file_that_a_run_would_overwrite_counts_as_a_run(tmp_path, name):
    (tmp_path / "checkpoint").mkdir()
    assert not run_folder.holds_run(tmp_path)
    (tmp_path / name).write_text("")
    assert run_folder.holds_run(tmp_path)
    assert not run_folder.has_record(tmp_path)


def test_a_record_alone_is_not_yet_a_run(tmp_path):
    assert not run_folder.has_record(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/run.json").write_text("{}")
    assert run_folder.has_record(tmp_path)
    assert not run_folder.holds_run(tmp_path)


def test_the_files_of_a_checkpoint_sort_by_its_number(tmp_path):
    paths = [run_folder.checkpoint_files(tmp_path, number) for number in (9, 10, 240)]
    assert paths == sorted(paths)
    assert paths[-1] == [tmp_path / f"checkpoint/000240{suffix}" for suffix in (".params", ".npz", ".json")]
