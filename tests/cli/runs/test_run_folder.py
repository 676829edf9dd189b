from __future__ import annotations

import errno
import os

import pytest

from multitrainer_cli.errors import UserError
from multitrainer_cli.runs import record, run_folder
from run_support import NETWORK


@pytest.fixture
def folder(tmp_path):
    """A folder with every file of a run, and with files of the user."""
    (tmp_path / "checkpoint").mkdir()
    for name in ("run.json", *run_folder.FILES, "mnist-source.params", "notes.txt"):
        (tmp_path / name).write_text(name)
    for name in ("run.json", "000004.params", "000004.npz", "000004.json", "000004.txt", "notes.json"):
        (tmp_path / "checkpoint" / name).write_text(name)
    return tmp_path


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_files_of_a_run_begin_with_its_record(folder):
    found = [str(path.relative_to(folder)) for path in run_folder.files_of_run(folder)]
    assert found[:2] == ["run.json", "checkpoint/run.json"]
    assert set(names(folder)) - set(found) == {
        "checkpoint/000004.txt",
        "checkpoint/notes.json",
        "mnist-source.params",
        "notes.txt",
    }


def test_removing_a_run_leaves_the_files_of_the_user(folder):
    run_folder.remove_run(folder)
    assert names(folder) == ["checkpoint/000004.txt", "checkpoint/notes.json", "mnist-source.params", "notes.txt"]
    assert run_folder.files_of_run(folder) == []


def test_a_run_of_which_a_file_cannot_be_removed_stays_whole(folder, monkeypatch):
    before, replace = names(folder), os.replace

    def refuse(source, target):
        if source.endswith("000004.npz"):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"cannot remove .*000004\.npz: Operation not permitted; remove it or choose"):
        run_folder.remove_run(folder)
    assert names(folder) == before


def test_a_folder_in_place_of_a_file_leaves_the_run_whole(folder):
    (folder / "finetune.png").unlink()
    (folder / "finetune.png").mkdir()
    before = names(folder)
    with pytest.raises(UserError, match=r"--overwrite: .*finetune\.png is a folder, not a file of a run; move it"):
        run_folder.remove_run(folder)
    assert names(folder) == before


def test_files_that_a_killed_process_was_writing_are_removed(folder):
    (folder / "tensorboard").mkdir()
    before, event = names(folder), "events.out.tfevents.1.host.multitrainer"
    kept = [".notes.txt.0123456789abcdef.tmp", ".run.json.tmp", "checkpoint/.best.params.0123456789abcdef.tmp"]
    gone = [f".{name}.0123456789abcdef.tmp" for name in ("run.json", *run_folder.FILES)]
    gone += [f"checkpoint/.{name}.0123456789abcdef.tmp" for name in ("run.json", "000004.npz", "000005.average")]
    for name in (*kept, *gone, f"tensorboard/.{event}.0123456789abcdef.tmp"):
        (folder / name).write_text("")
    run_folder.remove_temporary_files(folder)
    assert names(folder) == sorted([*before, *kept])


def write_record(folder):
    record.write(folder / "run.json", NETWORK, {}, None, None, None)


@pytest.mark.parametrize("name", ["run.json", *run_folder.FILES, "checkpoint/000001.npz", "checkpoint/run.json"])
def test_any_file_that_a_run_would_overwrite_counts_as_a_run(tmp_path, name):
    (tmp_path / "checkpoint").mkdir()
    assert not run_folder.holds_run(tmp_path)
    (tmp_path / name).write_text("")
    assert run_folder.holds_run(tmp_path)
    assert not run_folder.has_record(tmp_path)


def test_a_record_alone_is_not_yet_a_run(tmp_path):
    assert not run_folder.has_record(tmp_path)
    write_record(tmp_path)
    assert run_folder.has_record(tmp_path)
    assert not run_folder.holds_run(tmp_path)


def test_the_files_of_a_checkpoint_sort_by_its_number(tmp_path):
    paths = [run_folder.checkpoint_files(tmp_path, number) for number in (9, 10, 240)]
    assert paths == sorted(paths)
    assert paths[-1] == tuple(tmp_path / f"checkpoint/000240{suffix}" for suffix in (".params", ".npz", ".json"))
    assert paths[-1].states == tmp_path / "checkpoint/000240.npz"


class TestFoldersAmongImages:
    """Folders of runs are told from folders of images by what the runs have written."""

    def test_a_run_is_one_from_its_record_on(self, tmp_path):
        assert not run_folder.is_run(tmp_path)
        write_record(tmp_path)
        assert run_folder.is_run(tmp_path)

    def test_a_run_stays_one_without_its_record(self, tmp_path):
        (tmp_path / "checkpoint").mkdir()
        assert not run_folder.is_run(tmp_path)
        (tmp_path / "metrics.jsonl").write_text("")
        assert run_folder.is_run(tmp_path)

    def test_an_image_named_as_a_figure_makes_no_run(self, tmp_path):
        for name in ("finetune.png", "comparison.png", "run.json"):
            (tmp_path / name).write_text("{}")
        assert not run_folder.is_run(tmp_path)
        assert not run_folder.contains_runs(tmp_path)

    def test_a_run_is_found_at_any_depth(self, tmp_path):
        out = tmp_path / "a/b/c"
        out.mkdir(parents=True)
        assert not run_folder.contains_runs(tmp_path / "a")
        write_record(out)
        assert all(run_folder.contains_runs(folder) for folder in (tmp_path / "a", tmp_path / "a/b", out))

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("runs/finetune", True),
            ("runs/finetune-12", True),
            ("runs/digits", True),
            ("runs/finetune-old", False),
            ("red/finetune", False),
        ],
    )
    def test_a_default_folder_counts_before_its_run_has_begun(self, tmp_path, name, expected):
        (tmp_path / name).mkdir(parents=True)
        assert run_folder.contains_runs((tmp_path / name).parent) == expected

    def test_links_are_not_followed(self, tmp_path):
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs/again").symlink_to(tmp_path)
        assert not run_folder.contains_runs(tmp_path)
