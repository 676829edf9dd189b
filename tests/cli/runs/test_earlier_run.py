"""A run is resumed as it was begun, or refused; it is never mixed with another one or given other labels."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from cli_support import MODEL, arrays, contents, finetune, rows_of, without_times

pytest.importorskip("gluoncv")
pytest.importorskip("sklearn")

from multitrainer_cli import main
from multitrainer_cli.runs.earlier_run import read_earlier_run


class TestLabels:
    """A run is resumed with the classes that it was trained on."""

    @pytest.mark.parametrize("change", ["renamed", "added", "removed", "in another case"])
    def test_other_classes_are_refused(self, copied, capsys, change):
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


class TestImages:
    """Images that came or went since the run began are reported, and none changes sides."""

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

    def test_other_images_are_refused(self, copied, capsys):
        for path in list(copied.images.glob("*/*")):
            path.rename(path.with_name(f"x{path.name}"))
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 2
        assert "holds none of the images that the run had to train on of class blue" in capsys.readouterr().err
        assert contents(copied.out) == before

    def test_a_folder_that_moved_is_reported(self, copied, tmp_path, capsys):
        copied.images.rename(tmp_path / "moved")
        assert finetune(tmp_path / "moved", "--out", copied.out, "--resume", epochs=3) == 0
        assert f"they are now read from {tmp_path / 'moved'}\n" in capsys.readouterr().out


def test_a_record_alone_begins_from_the_start(tmp_path, capsys):
    record = {"options": {"seed": "1"}, "data": None, "weights": None, "images": None}
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/run.json").write_text(json.dumps(record))
    assert read_earlier_run(tmp_path, record, lambda rows: ["best.params"]) == ([], None)
    assert capsys.readouterr().out == f"the run in {tmp_path} has no whole epoch yet; it begins from the start\n"


class TestIncompleteRuns:
    """A run that lacks a file is refused, and nothing is changed."""

    @pytest.mark.parametrize(
        "name",
        ["metrics.jsonl", "checkpoint", "checkpoint/run.json", "checkpoint/000002.npz", "checkpoint/000002.params"]
        + ["checkpoint/000002.json", "best.params", "last.params"],
    )
    def test_a_missing_file_is_named(self, copied, capsys, name):
        gone = copied.out / name
        shutil.rmtree(str(gone)) if gone.is_dir() else gone.unlink()
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 2
        error = capsys.readouterr().err
        assert f"the run in {copied.out} is incomplete: there is no {name}" in error
        assert "Nothing was changed" in error
        assert contents(copied.out) == before

    def test_metrics_of_fewer_epochs_are_refused(self, copied, capsys):
        path = copied.out / "metrics.jsonl"
        path.write_text(path.read_text().splitlines(keepends=True)[0])
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 2
        assert "there is no checkpoint/000001.params, no checkpoint/000001.npz" in capsys.readouterr().err


class TestDamagedRuns:
    """A run with a damaged file is refused, and nothing is changed."""

    @pytest.mark.parametrize("how", ["cut", "emptied", "flipped", "a folder"])
    @pytest.mark.parametrize(
        "name",
        ["checkpoint/000002.npz", "checkpoint/000002.params", "checkpoint/000002.json", "checkpoint/run.json"]
        + ["best.params", "last.params", "metrics.jsonl"],
    )
    def test_a_damaged_file_is_refused(self, copied, capsys, name, how):
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

    def test_a_record_with_an_image_of_no_class_is_refused(self, copied, capsys):
        record = copied.out / "checkpoint/run.json"
        record.write_text(record.read_text().replace("blue/", "blu%/", 1))
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 2
        assert f"the run in {copied.out} is damaged (the image 'blu%/00" in capsys.readouterr().err
        assert contents(copied.out) == before


def test_other_options_are_refused(copied, capsys):
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
    """A run continues with the weights that it started from, not with others."""

    @pytest.fixture(scope="class")
    def started(self, first_run, tmp_path_factory):
        """Return the folder of a run of one epoch that started from --params, and that file."""
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
    def test_their_file_may_be_gone_or_have_moved(self, first_run, started, out, tmp_path, name):
        shutil.copy(str(started / "start.params"), str(tmp_path / "copy.params"))
        options = ["--params", tmp_path / name, "--unfreeze-at", 2, "--resume"]
        assert finetune(first_run / "colours", "--out", out, *options, epochs=3) == 0
        assert without_times(rows_of(out)) == without_times(rows_of(started / "whole"))
        whole, resumed = (arrays(folder / "last.params") for folder in (started / "whole", out))
        for key, array in whole.items():
            np.testing.assert_array_equal(array, resumed[key], err_msg=key)


def test_the_record_holds_the_options_and_the_division_of_the_images(first_run):
    record = json.loads((first_run / "out/checkpoint/run.json").read_text())
    assert record["options"]["model"] == MODEL
    assert not {"out", "resume", "overwrite", "workers", "epochs", "data"} & record["options"].keys()
    assert record["images"]["classes"] == ["blue", "green", "red"]
    assert len(record["images"]["val"]) == 6
    assert len({*record["images"]["train"], *record["images"]["val"]}) == 33
