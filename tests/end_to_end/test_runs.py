"""A run is never lost, mixed with another one or relabelled, whatever --out, --resume and --overwrite say."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest

from cli_support import MODEL, default_sigint, rows_of, start, without_times, write_images
from support import PATIENCE

pytest.importorskip("gluoncv")
pytest.importorskip("sklearn")

from multitrainer.cli import main
from multitrainer.cli.data import batches, image_folder
from multitrainer.cli.training import network

FILES = ["best.params", "checkpoint", "classes.txt", "finetune.png", "last.params", "metrics.jsonl"]


def finetune(images, *options, epochs=2):
    common = ["--data", images, "--model", MODEL, "--batch-size", 8, "--lr", 0.02, "--epochs", epochs]
    return main(["finetune", *map(str, [*common, *options])])


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def arrays(path):
    return {name: array.asnumpy() for name, array in mx.nd.load(str(path)).items()}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """A folder with 33 images in three classes, and the folder of a run of two epochs on them."""
    folder = tmp_path_factory.mktemp("runs")
    images = write_images(folder / "colours", 11)
    assert finetune(images, "--out", folder / "out") == 0
    return folder


@pytest.fixture
def copied(first_run, tmp_path):
    """A copy of both folders, which a test may change."""
    for name in ("colours", "out"):
        shutil.copytree(str(first_run / name), str(tmp_path / name))
    return collections.namedtuple("Copied", "images out")(tmp_path / "colours", tmp_path / "out")


class TestLabels:
    @pytest.mark.parametrize("change", ["renamed", "added", "removed", "in another case"])
    def test_other_classes_than_those_of_the_run_are_refused(self, copied, capsys, change):
        red, scarlet, upper = (copied.images / name for name in ("red", "scarlet", "RED"))
        before = contents(copied.out)
        if change == "added":
            shutil.copytree(str(red), str(scarlet))
        elif change == "removed":
            shutil.rmtree(str(red))
        else:
            red.rename(scarlet if change == "renamed" else upper)
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 2
        error = capsys.readouterr().err
        assert "trained on the classes 'blue', 'green', 'red', and" in error
        assert {"removed": "only in the run: 'red'", "in another case": "'RED'"}.get(change, "'scarlet'") in error
        assert contents(copied.out) == before

    def test_a_classes_txt_that_the_user_has_edited_stays(self, copied, capsys):
        (copied.out / "classes.txt").write_text("sky\ngrass\nfire\n")
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 0
        assert (copied.out / "classes.txt").read_text() == "sky\ngrass\nfire\n"
        assert "classes.txt is not as this run wrote it; it stays as it is" in capsys.readouterr().out


class TestImages:
    def test_added_images_are_reported_and_change_no_bit(self, copied, tmp_path, capsys):
        assert finetune(copied.images, "--out", tmp_path / "whole", epochs=3) == 0
        for number in (1, 2, 3):
            shutil.copy(str(copied.images / "red/000.jpg"), str(copied.images / f"blue/a{number}.jpg"))
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 0
        assert "3 were added, 0 removed" in capsys.readouterr().out
        assert without_times(rows_of(copied.out)) == without_times(rows_of(tmp_path / "whole"))
        alone, resumed = (arrays(out / "last.params") for out in (tmp_path / "whole", copied.out))
        for name, array in alone.items():
            np.testing.assert_array_equal(array, resumed[name], err_msg=name)

    def test_removed_images_are_reported_and_epochs_stay_as_long(self, copied, capsys):
        for name in ("000.jpg", "001.png"):
            (copied.images / "green" / name).unlink()
        shutil.copy(str(copied.images / "red/000.jpg"), str(copied.images / "red/new.jpg"))
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 0
        printed = capsys.readouterr().out
        assert "1 were added, 2 removed" in printed
        assert all(name in printed for name in ("'green/000.jpg'", "'green/001.png'", "'red/new.jpg'"))
        assert "27 images to train on" in printed
        assert len(rows_of(copied.out)) == 3

    def test_images_of_another_folder_are_refused(self, copied, capsys):
        for path in list(copied.images.glob("*/*")):
            path.rename(path.with_name(f"x{path.name}"))
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 2
        assert "holds none of the images that the run had to train on of class blue" in capsys.readouterr().err
        assert contents(copied.out) == before


class TestAnotherRun:
    def test_in_a_named_folder_that_holds_a_run_is_refused(self, copied, capsys):
        before = contents(copied.out)
        for command in (
            lambda: finetune(copied.images, "--out", copied.out),
            lambda: main(["finetune", "--out", str(copied.out)]),
        ):
            assert command() == 2
            error = capsys.readouterr().err
            assert f"--out {copied.out} holds a run already" in error
            assert all(cure in error for cure in ("--resume", "--overwrite", "another --out"))
            assert contents(copied.out) == before

    @pytest.mark.parametrize("name", ["best.params", "classes.txt", "finetune.png"])
    def test_over_a_file_of_the_user_is_refused(self, first_run, tmp_path, capsys, name):
        (tmp_path / name).write_text("mine")
        assert finetune(first_run / "colours", "--out", tmp_path) == 2
        assert "holds a run already" in capsys.readouterr().err
        assert contents(tmp_path) == {tmp_path / name: b"mine"}

    def test_without_out_takes_the_next_free_default_folder(self, first_run, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        images = first_run / "colours"
        assert finetune(images, epochs=1) == 0
        before = contents(tmp_path / "runs/finetune")
        assert finetune(images, "--seed", 1, epochs=1) == 0
        assert "runs/finetune is in use; this run goes to runs/finetune-2\n" in capsys.readouterr().out
        assert finetune(images, "--seed", 1, "--resume") == 0  # the same command resumes its own run
        assert "going on after 1 epochs of the run in runs/finetune-2" in capsys.readouterr().out
        assert contents(tmp_path / "runs/finetune") == before
        assert sorted(os.listdir("runs")) == ["finetune", "finetune-2"]
        assert [len(rows_of(tmp_path / "runs" / name)) for name in ("finetune", "finetune-2")] == [1, 2]

    def test_without_out_writes_its_record_before_it_trains(self, first_run, tmp_path, monkeypatch, capsys):
        class Killed(BaseException):
            pass

        def kill(*_):
            raise Killed

        monkeypatch.chdir(tmp_path)
        images = first_run / "colours"
        shutil.copytree(str(first_run / "out"), "runs/finetune")
        before = contents(tmp_path / "runs/finetune")
        with monkeypatch.context() as patch:
            patch.setattr(image_folder.ImageFolder, "__getitem__", kill)
            with pytest.raises(Killed):
                finetune(images, epochs=1)
        assert finetune(images, "--resume", epochs=1) == 0
        assert "the run in runs/finetune-2 has no whole epoch yet" in capsys.readouterr().out
        assert contents(tmp_path / "runs/finetune") == before
        assert len(rows_of(tmp_path / "runs/finetune-2")) == 1

    def test_overwrites_the_files_of_the_run_and_no_others(self, copied):
        (copied.out / "notes.txt").write_text("mine")
        (copied.out / "checkpoint/notes.txt").write_text("mine")
        assert finetune(copied.images, "--out", copied.out, "--overwrite", "--lr", 0.03, epochs=1) == 0
        assert sorted(path.name for path in copied.out.iterdir()) == sorted([*FILES, "notes.txt"])
        assert [row["learning_rates"] for row in rows_of(copied.out)] == [{"net": 0.03}]
        kept = ["000001.json", "000001.npz", "000001.params", "notes.txt", "run.json"]
        assert sorted(path.name for path in (copied.out / "checkpoint").iterdir()) == kept

    @pytest.mark.parametrize(
        ("options", "status"),
        [(["--freeze", "nothing"], 2), (["--lr", 1e30], 2), (["--resume"], 2), (["--ctx", "tpu"], 2)],
        ids=["a wrong path", "divergence", "--resume too", "a wrong device"],
    )
    def test_that_fails_in_its_first_epoch_overwrites_nothing(self, copied, options, status):
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--overwrite", *options) == status
        assert contents(copied.out) == before

    def test_that_is_interrupted_in_its_first_epoch_overwrites_nothing(self, copied, monkeypatch, capsys):
        def interrupt(image):
            press()
            monkeypatch.undo()
            return batches._centre_crop(32)(image)

        before = contents(copied.out)
        monkeypatch.setattr(batches, "_augmentation", lambda size: interrupt)
        with default_sigint() as press:
            assert finetune(copied.images, "--out", copied.out, "--overwrite") == 130
        assert f"the run in {copied.out} is as it was" in capsys.readouterr().err
        assert contents(copied.out) == before

    def test_overwrites_no_folder_that_was_not_named(self, first_run, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert finetune(first_run / "colours", "--overwrite") == 2
        assert "say which one with --out" in capsys.readouterr().err

    def test_at_the_same_time_is_refused_but_not_after_the_other_was_killed(self, first_run, tmp_path, capsys):
        options = [
            "--data",
            first_run / "colours",
            "--model",
            MODEL,
            "--batch-size",
            8,
            "--lr",
            0.02,
            "--out",
            tmp_path,
        ]
        with start(*options, "--epochs", 10000, "--workers", 2, start_new_session=True) as process:
            try:
                assert any("epoch 1/" in line for line in iter(process.stdout.readline, ""))
                for how in ([], ["--resume"], ["--overwrite"]):
                    assert finetune(first_run / "colours", "--out", tmp_path, *how) == 2
                    assert "another process is training there" in capsys.readouterr().err
                process.kill()  # the processes that load its images survive
                process.wait()
                done = len(rows_of(tmp_path))
                assert finetune(first_run / "colours", "--out", tmp_path, "--resume", epochs=done + 1) == 0
                assert len(rows_of(tmp_path)) == done + 1
            finally:
                with contextlib.suppress(ProcessLookupError):  # they have ended too
                    os.killpg(process.pid, signal.SIGKILL)


class TestIncompleteRuns:
    @pytest.mark.parametrize(
        "name",
        ["metrics.jsonl", "checkpoint", "checkpoint/run.json", "checkpoint/000002.npz", "checkpoint/000002.params"]
        + ["checkpoint/000002.json", "best.params", "last.params"],
    )
    def test_a_run_without_one_of_its_files_is_not_resumed(self, copied, capsys, name):
        gone = copied.out / name
        shutil.rmtree(str(gone)) if gone.is_dir() else gone.unlink()
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 2
        error = capsys.readouterr().err
        assert f"the run in {copied.out} is incomplete: there is no {name}" in error
        assert "Nothing was changed" in error
        assert contents(copied.out) == before

    @pytest.mark.parametrize("how", ["cut", "emptied", "flipped", "a folder"])
    @pytest.mark.parametrize(
        "name",
        ["checkpoint/000002.npz", "checkpoint/000002.params", "checkpoint/000002.json", "checkpoint/run.json"]
        + ["best.params", "last.params", "metrics.jsonl"],
    )
    def test_damaged_runs_are_not_resumed(self, copied, capsys, name, how):
        damaged = copied.out / name
        data = damaged.read_bytes()
        if how == "flipped" and name in ("best.params", "last.params", "metrics.jsonl"):
            pytest.skip("nothing depends on every bit of these")
        if how == "a folder":
            damaged.unlink()
            damaged.mkdir()
        elif how == "flipped":
            damaged.write_bytes(
                data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x40]) + data[len(data) // 2 + 1 :]
            )
        else:
            # In the middle of the last line of a text, where it cannot be taken for a shorter one.
            kept = len(data) - len(data.splitlines()[-1]) // 2 if damaged.suffix == ".jsonl" else len(data) // 2
            damaged.write_bytes(data[:kept] if how == "cut" else b"")
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 2
        assert f"the run in {copied.out} is damaged" in capsys.readouterr().err
        assert contents(copied.out) == before

    def test_a_record_that_names_an_image_of_no_class_is_damaged(self, copied, capsys):
        record = copied.out / "checkpoint/run.json"
        record.write_text(record.read_text().replace("blue/", "blu%/", 1))
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 2
        assert f"the run in {copied.out} is damaged (the image 'blu%/00" in capsys.readouterr().err
        assert contents(copied.out) == before

    def test_metrics_of_fewer_epochs_than_the_checkpoint_are_incomplete(self, copied, capsys):
        path = copied.out / "metrics.jsonl"
        path.write_text(path.read_text().splitlines(keepends=True)[0])
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 2
        assert "there is no checkpoint/000001.params, no checkpoint/000001.npz" in capsys.readouterr().err

    def test_a_missing_classes_txt_is_written_again(self, copied, capsys):
        (copied.out / "classes.txt").unlink()
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 0
        assert "classes.txt was gone and is written again" in capsys.readouterr().out
        assert (copied.out / "classes.txt").read_text() == "blue\ngreen\nred\n"

    def test_a_run_with_other_options_is_not_resumed(self, copied, capsys):
        before = contents(copied.out)
        options = ["--seed", 1, "--batch-size", 9, "--optimizer", "adam"]
        assert finetune(copied.images, "--out", copied.out, "--resume", *options, epochs=3) == 2
        assert "had --batch-size 8, no --optimizer, --seed 0; ask for the same" in capsys.readouterr().err
        again = ["--unfreeze-at", 2, "--freeze", "features.0", "--freeze", "features.1"]
        assert finetune(copied.images, "--out", copied.out, "--overwrite", *again) == 0
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--resume") == 2
        error = capsys.readouterr().err
        assert "had --freeze features.0 --freeze features.1, --unfreeze-at 2; ask for the same" in error
        assert main(["finetune", "--out", str(copied.out), "--resume"]) == 2
        assert "is of a folder of images; add --data" in capsys.readouterr().err
        assert contents(copied.out) == before


class TestWeights:
    """A resumed run starts from the weights that it had, not from others."""

    @pytest.fixture(scope="class")
    def started(self, first_run, tmp_path_factory):
        """A folder with a file of weights, and a whole and an unfinished run that started from it."""
        folder = tmp_path_factory.mktemp("weights")
        shutil.copy(str(first_run / "out/best.params"), str(folder / "start.params"))
        start_from = ["--params", folder / "start.params", "--unfreeze-at", 2]
        for out, epochs in (("whole", 3), ("out", 2)):
            assert finetune(first_run / "colours", "--out", folder / out, *start_from, epochs=epochs) == 0
        return folder

    @pytest.fixture
    def out(self, started, tmp_path):
        shutil.copytree(str(started / "out"), str(tmp_path / "out"))
        return tmp_path / "out"

    def test_other_weights_or_none_are_refused(self, first_run, started, out, capsys):
        mine, other = started / "start.params", started / "whole/last.params"
        before = contents(out)
        for options, error in (
            (["--params", other], f"had --params {mine}, and is given --params {other}, which holds other weights"),
            ([], f"had --params {mine}, and is given no --params"),
        ):
            options = [*options, "--unfreeze-at", 2, "--resume"]
            assert finetune(first_run / "colours", "--out", out, *options, epochs=3) == 2
            assert error in capsys.readouterr().err
            assert contents(out) == before

    def test_weights_are_refused_if_the_run_had_none(self, copied, started, capsys):
        before = contents(copied.out)
        options = ["--params", started / "start.params", "--resume"]
        assert finetune(copied.images, "--out", copied.out, *options, epochs=3) == 2
        assert f"had no --params, and is given --params {started / 'start.params'}" in capsys.readouterr().err
        assert contents(copied.out) == before

    @pytest.mark.parametrize("name", ["gone.params", "copy.params"])
    def test_the_file_of_the_weights_may_be_gone_or_have_moved(self, first_run, started, out, tmp_path, name):
        shutil.copy(str(started / "start.params"), str(tmp_path / "copy.params"))
        options = ["--params", tmp_path / name, "--unfreeze-at", 2, "--resume"]
        assert finetune(first_run / "colours", "--out", out, *options, epochs=3) == 0
        assert without_times(rows_of(out)) == without_times(rows_of(started / "whole"))
        whole, resumed = (arrays(folder / "last.params") for folder in (started / "whole", out))
        for key, array in whole.items():
            np.testing.assert_array_equal(array, resumed[key], err_msg=key)


def test_images_that_have_moved_are_reported(copied, tmp_path, capsys):
    copied.images.rename(tmp_path / "moved")
    assert finetune(tmp_path / "moved", "--out", copied.out, "--resume", epochs=3) == 0
    assert f"they are now read from {tmp_path / 'moved'}\n" in capsys.readouterr().out


def test_the_record_holds_the_options_and_the_division_of_the_images(first_run):
    record = json.loads((first_run / "out/checkpoint/run.json").read_text())
    assert record["options"]["model"] == MODEL
    assert not {"out", "resume", "overwrite", "workers", "epochs", "data"} & record["options"].keys()
    assert record["images"]["classes"] == ["blue", "green", "red"]
    assert len(record["images"]["val"]) == 6
    assert len({*record["images"]["train"], *record["images"]["val"]}) == 33


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_keeps_the_files_of_the_run(images, tmp_path, workers):
    arguments = ("--data", images, "--model", MODEL, "--epochs", 10000, "--batch-size", 8, "--out", tmp_path)
    with start(*arguments, "--workers", workers, start_new_session=True) as process:
        lines = iter(process.stdout.readline, "")
        assert any("epoch 1/" in line for line in lines)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, error
    assert error.count("\n") == 1, error
    assert "interrupted" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    net, _ = network.build(MODEL, 3)
    for name in ("best.params", "last.params"):
        net.load_parameters(str(tmp_path / name))
    assert rows_of(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_full_disk_leaves_no_incomplete_file(images, tmp_path):
    # The limit stands in for the disk: what goes beyond it fails to be written. The network takes 1.1 MB.
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000));"
    arguments = ("--data", images, "--model", MODEL, "--epochs", 1, "--batch-size", 8, "--out", tmp_path)
    with start(*arguments, prelude=limited, stdin=subprocess.DEVNULL) as process:
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, error
    assert error.count("\n") == 1, error
    assert "cannot write" in error
    assert "last.params" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "classes.txt", "metrics.jsonl"]
