"""A run is resumed as it was begun, or refused; it is never mixed with another one or given other labels."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from cli_support import MODEL, arrays, contents, finetune, rows_of, without_times
from run_support import NETWORK, train

pytest.importorskip("gluoncv")
pytest.importorskip("sklearn")

from multitrainer_cli import main
from multitrainer_cli.errors import UserError
from multitrainer_cli.runs import record
from multitrainer_cli.runs.earlier_run import read_earlier_run


class TestLabels:
    """A run is resumed with the classes that it was trained on."""

    @pytest.mark.slow
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

    @pytest.mark.slow
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

    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_a_folder_that_moved_is_reported(self, copied, tmp_path, capsys):
        copied.images.rename(tmp_path / "moved")
        assert finetune(tmp_path / "moved", "--out", copied.out, "--resume", epochs=3) == 0
        assert f"they are now read from {tmp_path / 'moved'}\n" in capsys.readouterr().out


def test_a_record_alone_begins_from_the_start(tmp_path, capsys):
    wanted = {"options": {"seed": "1"}, "data": None, "weights": None}
    record.write(tmp_path / "run.json", NETWORK, **wanted, images=None)
    assert read_earlier_run(tmp_path, wanted, lambda rows: ["best.params"]) == ([], None, None)
    assert capsys.readouterr().out == f"the run in {tmp_path} has no whole epoch yet; it begins from the start\n"


class TestIncompleteRuns:
    """A run that lacks a file is refused, and nothing is changed."""

    @pytest.mark.parametrize(
        "name",
        ["metrics.jsonl", "checkpoint", "run.json", "checkpoint/000002.npz", "checkpoint/000002.params"]
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
        ["checkpoint/000002.npz", "checkpoint/000002.params", "checkpoint/000002.json", "run.json"]
        + ["best.params", "last.params", "metrics.jsonl"],
    )
    def test_a_damaged_file_is_refused(self, copied, capsys, name, how):
        damaged = copied.out / name
        data = damaged.read_bytes()
        if how == "flipped" and name in ("last.params", "metrics.jsonl"):
            pytest.skip("nothing depends on every bit of these")
        if how == "a folder":
            damaged.unlink()
            damaged.mkdir()
        elif how == "flipped":
            # In the middle of run.json may be a letter of a name.
            place = 0 if name == "run.json" else len(data) // 2
            damaged.write_bytes(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :])
        else:
            # In the middle of the last line of a text, where it cannot be taken for a shorter one.
            kept = len(data) - len(data.splitlines()[-1]) // 2 if damaged.suffix == ".jsonl" else len(data) // 2
            damaged.write_bytes(data[:kept] if how == "cut" else b"")
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 2
        assert f"the run in {copied.out} is damaged" in capsys.readouterr().err
        assert contents(copied.out) == before

    def test_a_record_with_an_image_of_no_class_is_refused(self, copied, capsys):
        path = copied.out / "run.json"
        path.write_text(path.read_text().replace('"blue/', '"blu%/', 1))
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 2
        assert f"the run in {copied.out} is damaged (the image 'blu%/00" in capsys.readouterr().err
        assert contents(copied.out) == before

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            (lambda row: [row, row], r"line 2: expected epoch 2, got 1"),
            (lambda row: [{**row, "epoch": True}], "line 1: expected epoch 1, got True"),
            (lambda row: [[row]], "line 1: expected an object, got"),
            (lambda row: [{**row, "val_accuracy": "x"}], "line 1: val_accuracy is 'x', not a number"),
            (lambda row: [{**row, "val_accuracy": True}], "line 1: val_accuracy is True, not a number"),
            (lambda row: [{**row, "val_loss": None}], "line 1: val_loss is None, not a number"),
            (lambda row: [{**row, "train_loss": float("nan")}], "line 1: train_loss is nan, not a number"),
            (lambda row: [{**row, "learning_rates": 3}], "line 1: learning_rates are 3, not a number for each group"),
        ],
    )
    def test_rows_that_no_run_writes_are_refused(self, tmp_path, change, error):
        train(tmp_path, 1, 0)
        rows = change(rows_of(tmp_path)[0])
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        before = contents(tmp_path)
        with pytest.raises(UserError, match=f"is damaged .metrics.jsonl, {error}"):
            train(tmp_path, 2, 0, resume=True)
        assert contents(tmp_path) == before

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"classes": "ab"}, "expected a list of names as classes, got 'ab'"),
            ({"data": 5}, "expected the name of a folder as data, got 5"),
            ({"format": True}, "is not the record of a run"),
            ({"split": {"train": {}, "val": {"a/1": [1, 2]}}}, "the split has no images in train"),
            ({"split": {"train": {"a/1": [1]}, "val": {"a/2": [1, 2]}}}, r"the image 'a/1' has no size .*, but \[1\]"),
            ({"split": {"train": {"a/1": [1, 2]}, "val": {"a/1": [1, 2]}}}, "the image 'a/1' is in train and in val"),
            ({"split": {"train": {"a/q/1": [1, 2]}, "val": {}}}, "the image 'a/q/1' is in none of the classes"),
            ({"split": {"train": {"/a/1": [1, 2]}, "val": {}}}, "the image '/a/1' is in none of the classes"),
        ],
    )
    def test_a_record_with_an_odd_field_is_refused(self, tmp_path, change, error):
        train(tmp_path, 1, 0)
        path = tmp_path / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(UserError, match=f"is damaged .*{error}"):
            train(tmp_path, 2, 0, resume=True)

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            (
                {"model": "cifar_resnet56_v1"},
                "run.json: model is 'cifar_resnet56_v1', and that of the options and images",
            ),
            ({"input": {"size": 33}}, "run.json: input is {'size': 33}, and"),
            ({"input": 5}, "run.json: input is 5, and"),
        ],
    )
    def test_a_record_of_another_network_is_refused(self, copied, capsys, change, error):
        path = copied.out / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 2
        assert f"is damaged ({error}" in capsys.readouterr().err
        assert contents(copied.out) == before

    @pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "checkpoint/000001.json"])
    def test_deeply_nested_json_is_refused(self, tmp_path, name):
        train(tmp_path, 1, 0)
        (tmp_path / name).write_text("[" * 100_000)
        with pytest.raises(UserError, match=r"is damaged \(its JSON is nested too deeply\)"):
            train(tmp_path, 2, 0, resume=True)


@pytest.mark.slow
def test_other_options_are_refused(copied, capsys):
    before = contents(copied.out)
    options = ["--seed", 1, "--batch-size", 9, "--optimizer", "adam"]
    assert finetune(copied.images, "--out", copied.out, "--resume", *options, epochs=3) == 2
    assert "had --batch-size 8, --optimizer sgd, --seed 0; ask for the same" in capsys.readouterr().err
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

    @pytest.mark.slow
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

    @pytest.mark.slow
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
    written = json.loads((first_run / "out/run.json").read_text())
    assert written["options"]["model"] == written["model"] == MODEL
    assert not {"out", "resume", "overwrite", "workers", "epochs", "data"} & written["options"].keys()
    assert written["classes"] == ["blue", "green", "red"]
    assert len(written["split"]["val"]) == 6
    assert len({*written["split"]["train"], *written["split"]["val"]}) == 33


class TestSpelling:
    """A run is resumed by any command line that asks for the same run, and a refusal names only what differs."""

    @pytest.fixture
    def began(self, first_run, tmp_path):
        options = ["--lr-mult", "features.1=0.5", "--lr-mult", "features.2=0.25", "--freeze", "features.0"]
        assert finetune(first_run / "colours", "--out", tmp_path / "out", *options, epochs=1) == 0
        return first_run / "colours", tmp_path / "out"

    @pytest.mark.slow
    def test_the_same_run_in_other_words_ends_alike(self, began, tmp_path):
        images, out = began
        options = ["--lr-mult", "features.2=.250", "--lr-mult", " features.1=5e-1", "--freeze", "features.0"]
        words = ["--lr", "0.020", "--lr-schedule", "constant", "--warmup", 0, "--wd", "1e-4", "--optimizer", "SGD"]
        shutil.copytree(str(out), str(tmp_path / "plain"))
        assert finetune(images, "--out", out, "--resume", *options, *words, "--model", MODEL.upper()) == 0
        plain = ["--lr-mult", "features.1=0.5", "--lr-mult", "features.2=0.25", "--freeze", "features.0"]
        assert finetune(images, "--out", tmp_path / "plain", "--resume", *plain) == 0
        assert [row["train_loss"] for row in rows_of(out)] == [row["train_loss"] for row in rows_of(tmp_path / "plain")]
        other, same = (arrays(folder / "last.params") for folder in (out, tmp_path / "plain"))
        for name, array in same.items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)

    @pytest.mark.parametrize(
        ("options", "difference"),
        [
            (["--lr-schedule", "cosine"], "--lr-schedule constant"),
            (["--optimizer", "adamw"], "--optimizer sgd"),
            (["--optimizer", "adam"], "--optimizer sgd"),
            (["--lr", "0.02000001"], "--lr 0.02"),
            (["--warmup", "0.5"], "no --warmup"),
        ],
    )
    def test_only_what_differs_is_named(self, copied, capsys, options, difference):
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--resume", *options, epochs=3) == 2
        assert f"had {difference}; ask for the same" in capsys.readouterr().err
        assert contents(copied.out) == before


class TestLength:
    """A run that has as many epochs as were asked for, or more, says so."""

    @pytest.mark.parametrize("damaged", [False, True])
    def test_fewer_epochs_change_nothing(self, copied, capsys, damaged):
        if damaged:
            (copied.out / "classes.txt").unlink()
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=1) == 0
        expected = f"\nthe run in {copied.out} has 2 epochs, more than --epochs 1; it stays as it is\n"
        assert capsys.readouterr().out.endswith(expected)
        assert contents(copied.out) == before

    def test_as_many_epochs_draw_the_figure_that_a_killed_run_may_lack(self, copied, capsys):
        (copied.out / "finetune.png").unlink()
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=2) == 0
        assert f"the run in {copied.out} has all its 2 epochs; give more --epochs" in capsys.readouterr().out
        after = contents(copied.out)
        assert after.pop(copied.out / "finetune.png").startswith(b"\x89PNG")
        assert after == before


class TestOtherVersions:
    """A run of another version is refused with what to do."""

    @pytest.mark.slow
    def test_an_older_one_kept_its_record_elsewhere(self, copied, capsys):
        (copied.out / "run.json").rename(copied.out / "checkpoint/run.json")
        before = contents(copied.out)
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 2
        error = capsys.readouterr().err
        assert "was begun by an older multitrainer, which kept its record in checkpoint/run.json; go on with" in error
        assert finetune(copied.images, "--out", copied.out, epochs=3) == 2
        assert "holds a run already" in capsys.readouterr().err
        assert contents(copied.out) == before
        assert finetune(copied.images, "--out", copied.out, "--overwrite", epochs=1) == 0
        assert not (copied.out / "checkpoint/run.json").exists()

    @pytest.mark.parametrize("versions", [[], {}, None])
    def test_a_newer_one_may_keep_its_versions_in_another_way(self, tmp_path, versions):
        newer = {"format": 2, "model": None, "options": {}, "versions": versions}
        (tmp_path / "run.json").write_text(json.dumps(newer))
        with pytest.raises(UserError, match=r"run\.json was written by a newer multitrainer; go on with that version"):
            train(tmp_path, 1, 0, resume=True)

    def test_a_newer_one_has_a_format_of_its_own(self, copied, capsys):
        path = copied.out / "run.json"
        newer = {"format": 2, "model": None, "options": [], "versions": {"multitrainer": "9.0"}}
        path.write_text(json.dumps(newer))
        assert finetune(copied.images, "--out", copied.out, "--resume", epochs=3) == 2
        assert "run.json was written by a newer multitrainer, 9.0; go on with that version" in capsys.readouterr().err
        for name in ("best.params", "metrics.jsonl"):
            (copied.out / name).unlink()
        assert finetune(copied.images, "--out", copied.out, epochs=3) == 2
        assert "holds a run already" in capsys.readouterr().err
        assert path.read_text() == json.dumps(newer)

    def test_a_file_of_the_user_is_no_record(self, copied, tmp_path, capsys):
        (tmp_path / "mine").mkdir()
        for text in ("{}", "[1]", "mine", '{"format": 0, "model": "", "options": {}, "versions": {}}'):
            (tmp_path / "mine/run.json").write_text(text)
            assert finetune(copied.images, "--out", tmp_path / "mine", "--resume", epochs=3) == 2
            assert "is damaged (" in capsys.readouterr().err
            assert contents(tmp_path / "mine") == {tmp_path / "mine/run.json": text.encode()}
