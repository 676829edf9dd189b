from __future__ import annotations

import io
import os
import sys

import pytest

from cli_support import scalars_of

pytest.importorskip("tensorboardX")

from multitrainer_cli.errors import UserError
from multitrainer_cli.runs import run_folder
from multitrainer_cli.runs.tensorboard import TensorBoardFile


def row(epoch, **fields):
    return {"epoch": epoch, "train_loss": 0.5, "val_accuracy": 0.25, "learning_rates": {"net": 0.1, "a b": 0}, **fields}


def test_every_number_of_a_row_is_a_scalar(tmp_path):
    fields = {"train_loss": 0.5, "val_loss": 0.75, "train_accuracy": 0.5, "val_accuracy": 0.25}
    TensorBoardFile(tmp_path).write([row(1, **fields, seconds=3)])
    written = scalars_of(tmp_path)
    assert [(tag, step) for tag, step, _ in written] == [
        ("loss/training", 1),
        ("loss/validation", 1),
        ("accuracy/training", 1),
        ("accuracy/validation", 1),
        ("learning_rate/net", 1),
        ("learning_rate/a b", 1),
    ]
    assert [value for *_, value in written] == pytest.approx([0.5, 0.75, 0.5, 0.25, 0.1, 0])


def test_rows_are_appended(tmp_path):
    file, rows = TensorBoardFile(tmp_path), []
    for epoch in (1, 2, 3):
        rows.append(row(epoch))
        file.write(rows)
        assert [step for tag, step, _ in scalars_of(tmp_path) if tag == "loss/training"] == [*range(1, epoch + 1)]
    file.write(rows)
    assert len(scalars_of(tmp_path)) == 3 * 4
    assert len(run_folder.event_files(tmp_path)) == 1


def test_a_later_process_writes_every_step_once_and_leaves_files_of_others(tmp_path):
    """Also if the one before was killed before it had written a row, or in the middle of it."""
    TensorBoardFile(tmp_path).write([row(1), row(2)])
    (written,) = run_folder.event_files(tmp_path)
    written.write_bytes(written.read_bytes()[:-5])
    others = tmp_path / "tensorboard/events.out.tfevents.1.mine"
    others.write_bytes(b"")
    TensorBoardFile(tmp_path).write([row(1), row(2), row(3)])
    assert [step for tag, step, _ in scalars_of(tmp_path) if tag == "loss/training"] == [1, 2, 3]
    assert others.exists()


def test_the_files_belong_to_the_run(tmp_path):
    TensorBoardFile(tmp_path).write([row(1)])
    assert run_folder.files_of_run(tmp_path) == run_folder.event_files(tmp_path)
    run_folder.remove_run(tmp_path)
    assert scalars_of(tmp_path) == []


def test_a_missing_package_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with pytest.raises(UserError, match=r"tensorboardX cannot be imported .*pip install 'multitrainer\[tensorboard\]'"):
        TensorBoardFile(tmp_path).check()


def test_a_file_in_place_of_its_folder_is_refused(tmp_path):
    (tmp_path / "tensorboard").write_text("mine")
    with pytest.raises(UserError, match="tensorboard is not a folder; remove it"):
        TensorBoardFile(tmp_path).check()
    assert (tmp_path / "tensorboard").read_text() == "mine"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_a_user_error(tmp_path, monkeypatch):
    from tensorboardX import event_file_writer, record_writer

    monkeypatch.setattr(record_writer, "open_file", lambda path: io.FileIO("/dev/full", "w"))
    assert event_file_writer.RecordWriter is record_writer.RecordWriter
    with pytest.raises(UserError, match=r"cannot write .*tensorboard: No space left"):
        TensorBoardFile(tmp_path).write([row(1)])
