"""`multitrainer groups` shows what `multitrainer finetune` would train."""

from __future__ import annotations

import re

import pytest

from cli_support import MODEL, rows_of, write_images

pytest.importorskip("gluoncv")
pytest.importorskip("matplotlib")

from multitrainer_cli import main


def groups(*options):
    return main(["groups", "--model", MODEL, *map(str, options)])


def test_it_prints_the_groups_and_draws_their_rates(tmp_path, capsys):
    picture = tmp_path / "groups.png"
    options = ["--classes", 3, "--images", 100, "--epochs", 4, "--batch-size", 10, "--out", picture]
    assert groups(*options, "--pretrained", "--unfreeze-at", 2, "--lr-schedule", "cosine") == 0
    printed = capsys.readouterr().out
    assert "3 classes; 4 epochs of 100 images, 40 updates" in printed
    assert re.search(r"^backbone .* frozen$", printed, re.M)
    assert "epoch 2, update 11, unfreezes backbone (0.1)" in printed
    assert printed.endswith(f": {picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_defaults_are_ten_classes_and_a_thousand_images(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert groups() == 0
    assert "10 classes; 10 epochs of 1000 images, 312 updates" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["groups.png"]


def test_classes_and_images_are_those_of_the_data(images, tmp_path, capsys):
    assert groups("--data", images, "--epochs", 2, "--out", tmp_path / "g.png") == 0
    # 24 images to train on make one batch of 24, as in finetune.
    assert "3 classes; 2 epochs of 24 images, 2 updates" in capsys.readouterr().out


def test_the_share_to_set_aside_counts_and_what_is_left_out_is_said(images, tmp_path, capsys):
    options = ["--data", images, "--val-split", 0.5, "--input-size", 40, "--epochs", 2, "--out", tmp_path / "g.png"]
    assert groups(*options) == 0
    assert "3 classes; 2 epochs of 15 images, 2 updates" in capsys.readouterr().out
    root = write_images(tmp_path / "d", 2)
    (root / "red/notes.txt").write_text("")
    assert groups("--data", root, "--out", tmp_path / "g.png") == 0
    assert capsys.readouterr().out.startswith("left out: 1 file of another type (red/notes.txt)\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val-split", 0.5], "--val-split can only be used with --data"),
        (["--val-split", 1], "--val-split: expected a number between 0 and 1, got 1"),
        (["--input-size", 31], "--input-size: expected a whole number from 32 to 4096, got 31"),
    ],
)
def test_a_size_or_share_that_cannot_be_used_is_refused(tmp_path, capsys, options, message):
    assert groups(*options, "--out", tmp_path / "g.png") == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_line(tmp_path, capsys):
    assert groups("--freeze", "nothing", "--out", tmp_path / "g.png") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_shows_what_finetune_trains(images, tmp_path, capsys):
    options = ["--data", images, "--model", MODEL, "--batch-size", 8, "--epochs", 3]
    options += ["--layer-decay", 0.5, "--no-bias-decay", "--unfreeze-at", 2, "--lr-schedule", "cosine", "--warmup", 0.5]
    assert main(["groups", *map(str, [*options, "--out", tmp_path / "groups.png"])]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert main(["finetune", *map(str, [*options, "--out", tmp_path])]) == 0
    trained = capsys.readouterr().out.splitlines()
    table = [line for line in shown if line.startswith(("group", "stage", "epoch 2, update"))]
    assert len(table) > 20
    assert [line for line in trained if line in table] == table
    rows = rows_of(tmp_path)
    assert rows[0]["learning_rates"]["stage1"] == 0
    assert rows[1]["learning_rates"]["stage1"] > 0
    assert rows[1]["learning_rates"]["stage5"] > rows[2]["learning_rates"]["stage5"] > 0
