"""`multitrainer lr-find` searches with what `multitrainer finetune` trains."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time

import pytest

from cli_support import COMMAND, HEAR_CTRL_C, MODEL, Process, contents, rows_of, write_images
from support import PATIENCE

pytest.importorskip("gluoncv")
pytest.importorskip("matplotlib")

from multitrainer_cli import build_parser, main
from multitrainer_cli.lr_find import _finetune_command
from multitrainer_cli.training import losses

BRIEF = ("--batches", 60, "--lowest", 1e-5, "--no-augment")  # enough on blocks of one colour


def lr_find(*options):
    return main(["lr-find", "--model", MODEL, "--batch-size", "8", *map(str, options)])


def one_line(capsys):
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


def test_it_suggests_a_rate_and_the_command_trains_with_it(images, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = contents(images)
    assert lr_find("--data", images, "--params", weights, "--freeze", "features.0", *BRIEF) == 0
    *_, where, suggestion, command = capsys.readouterr().out.splitlines()
    assert where.endswith(": lr-find.png")
    assert [path.name for path in tmp_path.iterdir()] == ["lr-find.png"]  # nothing else is written
    assert (tmp_path / "lr-find.png").read_bytes().startswith(b"\x89PNG")
    assert contents(images) == before
    rate = float(suggestion.split(": ")[1])
    assert 1e-5 < rate < 1
    assert command == shlex.join(
        ["multitrainer", "finetune", "--data", str(images), "--model", MODEL, "--params", str(weights)]
        + ["--freeze", "features.0", "--batch-size", "8", "--no-augment", "--lr", f"{rate:.2g}"]
    )
    assert main([*shlex.split(command)[1:], "--epochs", "1", "--out", "run"]) == 0
    assert rows_of(tmp_path / "run")[0]["learning_rates"] == {"backbone": 0.1 * rate, "output": rate, "features.0": 0}


def test_every_option_of_finetune_is_in_the_command():
    given = ["--data", "a b", "--pretrained", "--lr-mult", "features.0=0.5", "--lr-mult", "output=2", "--no-bias-decay"]
    given += ["--unfreeze-at", "2", "--wd", "0.0", "--optimizer", "adamw", "--epochs", "3", "--batch-size", "8"]
    given += ["--accumulate", "2", "--clip-grad", "1.0", "--label-smoothing", "0.1", "--mixup", "0.2", "--no-augment"]
    given += ["--workers", "0", "--ctx", "cpu(0),cpu(1)", "--seed", "3", "--kvstore", "local"]
    command = _finetune_command(build_parser().parse_args(["lr-find", *given, "--out", "x.png"]), 0.0123)
    searched = vars(build_parser().parse_args(["finetune", *given]))
    trained = vars(build_parser().parse_args(shlex.split(command)[1:]))
    assert {name for name in trained if trained[name] != searched[name]} == {"lr"}
    assert trained["lr"] == 0.012


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--ctx", "cpu(0),cpu(1)", "--lr-mult", "features=0.1", "--clip-grad", 10],
        ["--freeze", "features", "--highest", 100],
        ["--accumulate", 2, "--label-smoothing", 0.1, "--workers", 1, "--batch-size", 4, "--batches", 120],
    ],
)
def test_it_works_with_the_other_options(images, tmp_path, capsys, options):
    picture = tmp_path / "search.png"
    assert lr_find("--data", images, *BRIEF, *options, "--out", picture) == 0
    printed = capsys.readouterr().out
    assert "from 1e-05 to" in printed
    assert "suggested learning rate: 0." in printed
    assert picture.exists()


@pytest.mark.slow
def test_the_search_repeats_with_its_seed(images, tmp_path):
    for name in ("one", "two"):
        lr_find("--data", images, "--batches", 10, "--out", tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.slow
def test_without_a_suggestion_it_says_what_to_do_and_draws(images, tmp_path, capsys):
    picture = tmp_path / "search.png"
    assert lr_find("--data", images, "--lowest", 1e-9, "--highest", 1e-8, "--batches", 20, "--out", picture) == 2
    error = one_line(capsys)
    assert "no learning rate can be suggested: the loss never falls" in error
    assert "other rates (--lowest, --highest)" in error
    assert picture.exists()


@pytest.mark.slow
def test_a_picture_is_replaced_and_nothing_else(images, tmp_path, capsys):
    picture, options = tmp_path / "search.png", ["--data", images, "--batches", 10]
    lr_find(*options, "--out", picture)
    first = picture.read_bytes()
    lr_find(*options, "--seed", 1, "--out", picture)
    assert picture.read_bytes() != first
    capsys.readouterr()
    text, folder = tmp_path / "notes.png", tmp_path / "folder.png"
    text.write_text("notes")
    folder.mkdir()
    for path in (text, folder):
        assert lr_find(*options, "--out", path) == 2
        assert "exists and is not a PNG picture" in one_line(capsys)
    assert text.read_text() == "notes"
    assert lr_find(*options, "--out", tmp_path / "nowhere/x.png") == 2
    assert "choose a place that can be written to" in one_line(capsys)
    assert lr_find(*options, "--out", images / "red/x.png") == 2
    assert "inside a class folder" in one_line(capsys)
    assert not (images / "red/x.png").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--lowest", 1, "--highest", 0.1], "--lowest 1: expected a rate below --highest 0.1"),
        (["--batches", 9], "--batches 9: expected at least 10"),
        (["--batches", 19, "--accumulate", 2], "--batches 19: expected at least 20, for 10 updates"),
        (["--optimizer", "adadelta"], "AdaDelta has no learning rate"),
        (["--freeze", "features", "--freeze", "output"], "every part of the network is frozen"),
        (["--kvstore", "dist_sync"], "lr-find runs in one process: leave out --kvstore"),
        (["--lr", 0.1], "unrecognized arguments: --lr"),
    ],
)
def test_a_mistake_is_one_line(images, tmp_path, capsys, options, error):
    assert lr_find("--data", images, *options, "--out", tmp_path / "x.png") == 2
    assert error in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("environment", [{"DMLC_ROLE": "worker", "DMLC_NUM_WORKER": "2"}, {"HOROVOD_SIZE": "2"}])
def test_ranks_are_refused(images, tmp_path, capsys, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert lr_find("--data", images, "--out", tmp_path / "x.png") == 2
    assert "keep the --batch-size of all ranks together" in one_line(capsys)


def test_a_missing_package_is_noticed_before_the_search(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert lr_find("--data", images, "--out", tmp_path / "x.png") == 2
    assert "pip install 'multitrainer[finetune]'" in one_line(capsys)


def test_data_is_required(capsys):
    assert lr_find() == 2
    assert "--data" in one_line(capsys)


@pytest.mark.slow
def test_ctrl_c_writes_nothing(tmp_path):
    data = write_images(tmp_path / "colours", 4)
    options = ["lr-find", "--data", data, "--model", MODEL, "--batches", 100000, "--lowest", 1e-9, "--highest", 1e-8]
    command = [sys.executable, "-W", "ignore", "-c", HEAR_CTRL_C + COMMAND, *map(str, options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "universal_newlines": True}
    with Process(command, cwd=str(tmp_path), **pipes) as search:
        assert "classes" in search.stdout.readline() + search.stdout.readline()
        time.sleep(3)
        search.send_signal(signal.SIGINT)
        _, error = search.communicate(timeout=PATIENCE)
    assert (search.returncode, error) == (130, "multitrainer: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["colours"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--epochs", 1], ["--epochs", 3, "--mixup-off-epoch", 2]])
def test_every_update_of_the_search_is_mixed(images, tmp_path, monkeypatch, options):
    drawn = []
    monkeypatch.setattr(losses, "mix", lambda batch, share: drawn.append(share) or batch)
    # 24 images make 3 batches an epoch.
    lr_find("--data", images, *BRIEF[2:], "--batches", 12, "--mixup", 1, *options, "--out", tmp_path / "x.png")
    assert len(drawn) >= 2 * 10
    assert all(share < 1 for share in drawn)


@pytest.mark.slow
def test_an_update_has_no_more_batches_than_an_epoch_of_the_run(images, tmp_path, capsys):
    printed = []
    for accumulate in (3, 30):
        options = ["--batches", 60, "--no-augment", "--accumulate", accumulate, "--out", tmp_path / f"{accumulate}.png"]
        lr_find("--data", images, "--lowest", 1e-5, *options)
        printed.append(capsys.readouterr().out)
    assert (tmp_path / "3.png").read_bytes() == (tmp_path / "30.png").read_bytes()
    line = "batches of 8 images, and at the end of an epoch"
    assert f"one update for every 3 {line}\n" in printed[0]
    assert f"one update for every 30 {line}; an epoch has only 3\n" in printed[1]
