"""The command line of `multitrainer finetune`: what it accepts, and how it answers a mistake."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from cli_support import MODEL, rows_of, start, write_images
from support import PATIENCE

pytest.importorskip("gluoncv")

from multitrainer_cli import main
from multitrainer_cli.data import split
from multitrainer_cli.data.image_folder import ImageFolder


def finetune(*arguments):
    return main(["finetune", *map(str, arguments)])


def one_line(capsys):
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


WRONG = {
    "model": (["--model", "resnet50v1b"], "closest: .*resnet50_v1b"),
    "path of --freeze": (["--freeze", "feature"], "the network has features, output"),
    "path of --lr-mult": (["--lr-mult", "features.77=2"], "features has 0, 1, 2, 3, 4"),
    "multiplier": (["--lr-mult", "features=fast"], "expected PATH=MULT"),
    "multiplier missing": (["--lr-mult", "features"], "expected PATH=MULT"),
    "negative multiplier": (["--lr-mult", "features=-1"], "finite number >= 0"),
    "nan multiplier": (["--lr-mult", "features=nan"], "finite number >= 0"),
    "twice": (
        ["--lr-mult", "features=1", "--freeze", "features"],
        "--lr-mult features=1 and --freeze features are about the same part",
    ),
    "all frozen": (["--freeze", "features", "--freeze", "output"], "every part of the network is frozen"),
    "optimizer": (["--optimizer", "sdg"], "closest: .*sgd"),
    "multiplier without a rate": (["--optimizer", "adadelta", "--lr-mult", "features=0.5"], "adadelta|AdaDelta"),
    "ctx": (["--ctx", "tpu"], r"expected cpu, gpu\(0\)"),
    "gpu": (["--ctx", "gpu(63)"], r"no gpu\(63\).*--ctx cpu"),
    "device twice": (["--ctx", "cpu,cpu(0)"], "named twice"),
    "more devices than images": (["--ctx", "cpu(0),cpu(1),cpu(2)", "--batch-size", "2"], "raise --batch-size"),
    "params": (["--params", "nowhere.params"], "nowhere.params cannot be read"),
    "lr": (["--lr", "0"], "--lr: expected a number from 1e-20 to 1e20"),
    "wd": (["--wd", "-1"], "--wd: expected 0, or a number from 1e-20 to 1e20"),
    "epochs": (["--epochs", "many"], "--epochs: invalid"),
    "input size": (["--input-size", "10"], "--input-size: expected a whole number from 32 to 4096, got 10"),
    "val split": (["--val-split", "0"], "--val-split: expected a number between 0 and 1, got 0"),
    "unknown option": (["--lrmult", "features=1"], "unrecognized arguments"),
}


@pytest.mark.parametrize("what", sorted(WRONG))
def test_a_mistake_is_one_line(images, tmp_path, capsys, what):
    arguments, answer = WRONG[what]
    model = [] if "--model" in arguments else ["--model", MODEL]
    assert finetune("--data", images, "--out", tmp_path / "deep/out", "--epochs", 1, *model, *arguments) == 2
    assert re.search(answer, one_line(capsys))
    assert not list(tmp_path.iterdir())


NEED_NO_PIXELS = {
    **{name: WRONG[name] for name in sorted(WRONG) if name != "model"},
    "bounds": (["--discriminative", "1"], "expected LO:HI"),
    "bounds of no stage": (["--discriminative", "0:-1"], "lowest must be above 0"),
    "epoch of --unfreeze-at": (["--unfreeze-at", "5"], "--unfreeze-at 5: the run has one epoch"),
    "warm-up": (["--warmup", "7"], "expected fewer than the 1 --epochs"),
}


@pytest.mark.parametrize("what", sorted(NEED_NO_PIXELS))
def test_a_mistake_is_found_before_an_image_is_read(images, tmp_path, capsys, monkeypatch, what):
    def read(*_):
        raise AssertionError("an image was read")

    monkeypatch.setattr(split, "check_readable", read)
    monkeypatch.setattr(ImageFolder, "__getitem__", read)
    arguments, answer = NEED_NO_PIXELS[what]
    assert finetune("--data", images, "--out", tmp_path / "out", "--epochs", 1, "--model", MODEL, *arguments) == 2
    assert re.search(answer, one_line(capsys))
    assert not list(tmp_path.iterdir())


def test_pretrained_and_params_exclude_each_other(images, capsys):
    assert finetune("--data", images, "--pretrained", "--params", "x") == 2
    assert "not allowed with" in one_line(capsys)


@pytest.mark.parametrize(
    "option",
    ["--model=x", "--pretrained", "--params=x", "--lr-mult=a=1", "--freeze=a", "--workers=1", "--val-split=.1"],
)
def test_options_of_images_need_data(capsys, option):
    assert finetune(option) == 2
    assert "can only be used with --data" in one_line(capsys)


@pytest.mark.parametrize("option", ["--data", "--out", "--params"])
def test_a_name_that_is_not_in_utf8_is_refused(option, capsys):
    assert finetune(option, os.fsdecode(b"d\xe9")) == 2
    assert f"argument {option}: expected a name in UTF-8, got 'd\\udce9'" in capsys.readouterr().err


def test_options_cannot_be_abbreviated(capsys):
    assert finetune("--over") == 2
    assert "unrecognized arguments: --over" in capsys.readouterr().err


def test_a_file_in_place_of_the_folder_is_refused(images, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert finetune("--data", images, "--model", MODEL, "--out", tmp_path / "out") == 2
    assert "choose a folder that can be written to" in one_line(capsys)


@pytest.mark.parametrize("where", ["", "red", "red/run", "train", "val/run"])
def test_a_folder_whose_files_would_be_taken_for_images_is_refused(images, capsys, where):
    assert finetune("--data", images, "--out", images / where) == 2
    assert "is inside --data" in one_line(capsys)
    assert sorted(path.name for path in images.iterdir()) == ["blue", "green", "red"]
    assert len(list(images.glob("red/*"))) == 10


def test_a_default_folder_is_not_made_in_vain(images, monkeypatch, capsys):
    monkeypatch.chdir(images)
    assert finetune("--data", "nowhere") == 2
    assert "--data nowhere: no such folder" in one_line(capsys)
    assert sorted(os.listdir()) == ["blue", "green", "red"]


class TestRunsAmongTheImages:
    """The folders of runs are never taken for classes, so that --data . works every time."""

    @pytest.fixture
    def folder(self, images, tmp_path, monkeypatch):
        shutil.copytree(str(images), str(tmp_path / "d"))
        monkeypatch.chdir(tmp_path / "d")
        return tmp_path / "d"

    def finetune(self, *options):
        return finetune("--data", ".", "--model", MODEL, "--batch-size", 8, *options)

    def test_by_default_the_command_works_again_and_again(self, folder):
        for options in (["--epochs", 1], ["--epochs", 1], ["--epochs", 2, "--resume"], ["--epochs", 1]):
            assert self.finetune(*options) == 0
        runs = [folder / "runs" / name for name in ("finetune", "finetune-2", "finetune-3")]
        assert all((run / "classes.txt").read_text() == "blue\ngreen\nred\n" for run in runs)
        assert [len(rows_of(run)) for run in runs] == [1, 2, 1]
        assert main(["groups", "--data", ".", "--model", MODEL]) == 0

    @pytest.mark.slow
    @pytest.mark.parametrize("where", ["run", "deep/run", "made", ".hidden"])
    def test_a_named_folder_works_too(self, folder, where):
        (folder / "made").mkdir()
        options = ["--epochs", 1, "--out", where]
        if where != "made":
            (folder / "made").rmdir()
        assert self.finetune(*options) == 0
        assert self.finetune(*options, "--overwrite") == 0
        assert self.finetune("--epochs", 2, "--out", where, "--resume") == 0
        assert len(json.loads((folder / where / "run.json").read_text())["split"]["train"]) == 24

    @pytest.mark.slow
    def test_a_class_that_is_called_like_the_default_folder_stays_a_class(self, folder, capsys):
        (folder / "red").rename(folder / "runs")
        assert self.finetune() == 2
        assert "--out runs/finetune is inside --data" in one_line(capsys)
        assert self.finetune("--epochs", 1, "--out", folder.parent / "out") == 0
        assert (folder.parent / "out/classes.txt").read_text() == "blue\ngreen\nruns\n"

    def test_a_mistake_leaves_no_folder(self, folder, capsys):
        assert self.finetune("--freeze", "nothing") == 2
        assert "'nothing' is not a part" in one_line(capsys)
        assert sorted(os.listdir()) == ["blue", "green", "red"]


def test_a_folder_beside_train_is_accepted_and_one_in_a_class_is_refused(tmp_path, capsys):
    write_images(tmp_path / "train", 1)
    for out, error in ((tmp_path / "train/red/run", "is inside --data"), (tmp_path / "run", "has a single image")):
        assert finetune("--data", tmp_path, "--model", MODEL, "--out", out) == 2
        assert error in one_line(capsys)


@pytest.mark.parametrize("name", ["best.params", "checkpoint/000001.params"])
def test_weights_that_overwriting_would_remove_are_refused(images, weights, tmp_path, capsys, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    shutil.copy(str(weights), str(path))
    options = ["--data", images, "--model", MODEL, "--out", tmp_path, "--params", path]
    assert finetune(*options, "--overwrite") == 2
    assert f"--params {path} belongs to the run that --overwrite would remove" in one_line(capsys)
    assert path.read_bytes() == weights.read_bytes()


def test_a_subcommand_is_required(capsys):
    assert main([]) == 2
    assert "COMMAND" in one_line(capsys)


def test_the_command_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "multitrainer_cli", "finetune", "--lr", "-1"],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=PATIENCE,
    )
    assert (done.returncode, b"expected a number from 1e-20" in done.stderr) == (2, True)


def test_help_needs_no_extra():
    hidden = "import sys; sys.modules.update(gluoncv=None, sklearn=None, tqdm=None, matplotlib=None);"
    with start("--help", prelude=hidden) as process:
        output, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "--lr-mult PATH=MULT" in output
    assert error == ""


@pytest.mark.slow
def test_a_missing_package_names_the_extra(images):
    hidden = "import sys; sys.modules['gluoncv'] = None;"
    with start("--data", images, prelude=hidden) as process:
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "pip install 'multitrainer[finetune]'" in error
    assert error.count("\n") == 1
