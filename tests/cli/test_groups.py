"""`multitrainer groups` shows what `multitrainer finetune` would train."""

from __future__ import annotations

import re

import pytest

from cli_support import MODEL, contents, rows_of, write_images

pytest.importorskip("gluoncv")
pytest.importorskip("matplotlib")

from multitrainer_cli import build_parser, main
from multitrainer_cli import groups as groups_module


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


def test_every_option_of_finetune_is_accepted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own, others = (vars(build_parser().parse_args([name])) for name in ("groups", "finetune"))
    assert set(own) - set(others) == {"classes", "images", "picture"}
    assert set(others) <= set(own)
    ignored = ["--seed", 3, "--ctx", "gpu(0),gpu(1)", "--workers", 4, "--kvstore", "horovod", "--ema", 0.9]
    ignored += ["--mixup", 0.2, "--class-weights", "cat=2", "--no-augment", "--feature-memory", 1, "--early-stop", 3]
    plain = groups()
    text = capsys.readouterr().out
    assert plain == groups(*ignored, "--tensorboard", "--resume", "--out", "runs/flowers") == 0
    assert capsys.readouterr().out == text
    assert [path.name for path in tmp_path.iterdir()] == ["groups.png"]


@pytest.mark.parametrize(
    ("options", "picture"),
    [
        (["--out", "run"], "groups.png"),
        (["--out", "a.png"], "a.png"),
        (["--out", "run", "--picture", "b"], "b"),
        (["--out", "a.png", "--picture", "b.png"], "b.png"),
    ],
)
def test_the_picture_has_an_option_of_its_own(options, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert groups(*options) == 0
    assert [path.name for path in tmp_path.iterdir()] == [picture]


def test_the_picture_replaces_no_other_file(tmp_path, capsys):
    notes = tmp_path / "notes"
    notes.write_text("notes")
    assert groups("--picture", notes) == 2
    assert "--picture" in capsys.readouterr().err
    assert notes.read_text() == "notes"


@pytest.mark.parametrize("option", ["--classes", "--images"])
def test_counts_are_given_or_counted(option, images, tmp_path, capsys):
    assert groups("--data", images, option, 3, "--picture", tmp_path / "g.png") == 2
    assert f"{option} 3 stands for --data" in capsys.readouterr().err


def test_options_that_change_the_updates_act(tmp_path, capsys):
    options = ["--images", 100, "--epochs", 2, "--batch-size", 10, "--picture", tmp_path / "g.png"]
    assert groups(*options, "--accumulate", 5) == 0
    assert "2 epochs of 100 images, 4 updates" in capsys.readouterr().out


def test_the_rates_are_those_after_the_warmup(tmp_path, capsys):
    options = ["--images", 100, "--batch-size", 10, "--picture", tmp_path / "g.png", "--lr", 0.5]
    assert groups(*options, "--warmup", 2, "--lr-schedule", "cosine", "--lr-mult", "features=0.1") == 0
    printed = capsys.readouterr().out
    assert [re.search(rf"^{name} .*", printed, re.M).group().split()[4] for name in ("net", "features")] == [
        "0.5",
        "0.05",
    ]
    assert "epoch 2, update 20, ends the warm-up: the learning rates are those above\n" in printed


@pytest.mark.slow
def test_weights_are_checked_as_finetune_checks_them(images, weights, tmp_path, capsys):
    wrong = tmp_path / "wrong.params"
    wrong.write_text("no parameters")
    before = contents(tmp_path)
    for options, answer in (
        (["--params", tmp_path / "missing.params"], "there is no such file; check --params"),
        (["--params", wrong], "cannot be read as MXNet parameters"),
        (["--params", tmp_path], f"--params {tmp_path} is a folder; name the file of weights"),
        (["--model", "cifar_resnet56_v1", "--params", weights], "does not fit this --model: 180 of 285 parameters"),
        (
            ["--model", "se_resnet18_v1", "--pretrained"],
            "--pretrained: GluonCV publishes no weights for se_resnet18_v1",
        ),
    ):
        errors = []
        for command in (["groups", "--picture", tmp_path / "g.png"], ["finetune", "--out", tmp_path / "run"]):
            assert main([*map(str, [*command, "--data", images, "--model", MODEL, *options])]) == 2
            errors.append(capsys.readouterr().err)
        assert errors[0] == errors[1]
        assert answer in errors[0]
    assert contents(tmp_path) == before
    assert groups("--params", weights, "--picture", tmp_path / "g.png") == 0


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


LONG = ["--images", 100, "--batch-size", 10, "--unfreeze-at", "features=271", "--warmup", 77.7]


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "poly"])
def test_of_a_long_run_some_updates_are_drawn_and_every_change(tmp_path, monkeypatch, schedule):
    drawn = {}
    monkeypatch.setattr(groups_module, "draw_learning_rates", lambda ax, *drawing: drawn.update({ax: drawing}))
    options = [*LONG, "--epochs", 1003, "--lr-schedule", schedule, "--out", tmp_path / "g.png"]
    assert groups(*options) == 0
    monkeypatch.setattr(groups_module, "MAX_DRAWN", 100_000)
    assert groups(*options) == 0
    (some, lines), (every, all_lines) = drawn.values()
    assert every == list(range(1, 10_031))
    assert (some[0], some[-1]) == (1, 10_030)
    assert len(some) < 5020
    jumps = set()  # between update n and the one after it
    for (name, rates), (same_name, all_rates) in zip(lines, all_lines):
        assert name == same_name
        assert rates == [all_rates[update - 1] for update in some]
        jumps |= {n for n in range(1, 10_030) if abs(all_rates[n] - all_rates[n - 1]) > 1e-4}
    assert 2700 in jumps
    assert {*jumps, *(n + 1 for n in jumps)} <= set(some)


def test_a_run_without_end_is_drawn(tmp_path, capsys):
    options = ["--images", 100, "--batch-size", 10, "--unfreeze-at", "features=500001", "--out", tmp_path / "g.png"]
    assert groups(*options, "--epochs", 1_000_000, "--lr-schedule", "step") == 0
    printed = capsys.readouterr().out
    assert "10000000 updates" in printed
    assert "epoch 500001, update 5000001, unfreezes features (1)" in printed
