"""`multitrainer evaluate` gives the accuracy that the run has recorded, and says what else it has measured."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys

import mxnet as mx
import numpy as np
import pytest

from cli_support import contents, finetune, rows_of, write_images
from inference_support import start
from support import PATIENCE

pytest.importorskip("gluoncv")

from multitrainer import load_run
from multitrainer_cli import main


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a finished run."""
    shutil.copytree(str(finished_run), str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Images of classes that are hard to tell apart."""
    return write_images(tmp_path_factory.mktemp("noisy") / "images", 15, ("a", "b", "c"))


def evaluate(run, *options):
    """Run the command; return its exit status and evaluation.json, if it was written to the first folder."""
    status = main(["evaluate", str(run), *map(str, options)])
    path = run / "evaluation" / "evaluation.json"
    return status, json.loads(path.read_text()) if path.exists() else None


def divided(images, folder):
    """Copy images into train/ and val/."""
    for number, path in enumerate(sorted(images.rglob("*.*"))):
        target = folder / ("val" if number % 3 == 0 else "train") / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(path), str(target))
    return folder


KINDS = {
    "random split": [],
    "other batches": ["--batch-size", 5],
    "two devices": ["--ctx", "cpu(0),cpu(1)"],
    "three devices": ["--ctx", "cpu(0),cpu(1),cpu(2)"],
    "cached features": ["--no-augment", "--freeze", "features"],
    "frozen": ["--freeze", "features"],
}


class TestTheRecordedAccuracy:
    def check(self, run, capsys):
        rows = rows_of(run)
        for weights, row in (("best", max(rows, key=lambda row: row["val_accuracy"])), ("last", rows[-1])):
            capsys.readouterr()
            assert main(["evaluate", str(run), "--weights", weights, "--json", "-"]) == 0
            printed = capsys.readouterr()
            found = json.loads(printed.out)
            assert found["accuracy"] == row["val_accuracy"]
            assert found["recorded"] == {"epoch": row["epoch"], "accuracy": row["val_accuracy"]}
            assert found["subject"]["part"] == "val"
            assert "interrupted" not in printed.err
            if "val_loss" in row:
                assert found["cross_entropy"] == pytest.approx(row["val_loss"], rel=1e-4)
            assert f"this is the accuracy that the run has recorded in epoch {row['epoch']}" in printed.err

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_measured_again(self, noisy, tmp_path, capsys, kind):
        assert finetune(noisy, "--out", tmp_path, *KINDS[kind]) == 0
        self.check(tmp_path, capsys)

    @pytest.mark.slow
    def test_of_a_divided_folder(self, noisy, tmp_path, capsys):
        data = divided(noisy, tmp_path / "data")
        assert finetune(data, "--out", tmp_path / "run") == 0
        self.check(tmp_path / "run", capsys)

    @pytest.mark.slow
    def test_of_a_resumed_run(self, noisy, tmp_path, capsys):
        assert finetune(noisy, "--out", tmp_path, epochs=1) == 0
        assert finetune(noisy, "--out", tmp_path, "--resume", epochs=2) == 0
        self.check(tmp_path, capsys)

    @pytest.mark.slow
    def test_on_other_devices_and_with_workers(self, run, capsys):
        best = max(row["val_accuracy"] for row in rows_of(run))
        for options in (["--ctx", "cpu(0),cpu(1)"], ["--workers", 2], ["--batch-size", 1]):
            assert evaluate(run, *options)[1]["accuracy"] == best

    def test_another_one_is_reported(self, run, capsys):
        rows = [{**row, "val_accuracy": 0.123456} for row in rows_of(run)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert evaluate(run)[0] == 0
        assert "warning: the run has recorded another accuracy in epoch 1, 12.3456%" in capsys.readouterr().out

    def test_one_that_is_gone_is_reported(self, run, capsys):
        (run / "metrics.jsonl").write_text("")  # as if killed after best.params was written
        status, found = evaluate(run)
        assert (status, found["recorded"], found["images"]) == (0, None, 6)
        assert "metrics.jsonl is gone or damaged" in capsys.readouterr().out

    def test_of_a_run_whose_folder_has_moved(self, run, images, tmp_path, capsys):
        moved = shutil.copytree(str(images), str(tmp_path / "moved"))
        status, found = evaluate(run, "--data", moved)
        assert (status, found["subject"]["part"], found["images"]) == (0, "val", 6)
        assert found["accuracy"] == found["recorded"]["accuracy"]
        printed = capsys.readouterr().out
        assert f"6 of 30 images in {moved}, which the run has set aside for validation" in printed


def test_it_prints_the_table_and_writes_the_files(run, images, capsys):
    status, found = evaluate(run)
    printed = capsys.readouterr().out
    assert status == 0
    assert f"6 of 30 images in {images}, which the run has set aside for validation" in printed
    assert f"accuracy {found['accuracy']:.2%}, top-2 accuracy" in printed
    assert "confusion matrix" in printed
    assert printed.endswith(f"{run / 'evaluation'}: evaluation.json, confusion.png\n")
    assert (run / "evaluation" / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_the_figures_are_those_of_the_network(run, images):
    _, found = evaluate(run, "--split", "all")
    net, classes, transform = load_run(run)
    paths = sorted(images.rglob("*.*"))
    scores = net(mx.nd.stack(*map(transform, paths)))
    labels = np.array([classes.index(path.parent.name) for path in paths])
    predicted = scores.argmax(axis=1).asnumpy().astype(int)
    assert found["images"] == 30
    assert found["accuracy"] == round(float((predicted == labels).mean()), 6)
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (labels, predicted), 1)
    assert found["confusion"] == confusion.tolist()
    log_probabilities = mx.nd.log_softmax(scores).asnumpy()
    assert found["cross_entropy"] == pytest.approx(-log_probabilities[np.arange(30), labels].mean(), rel=1e-4, abs=1e-5)


class TestOtherImages:
    def test_all_are_measured(self, run, tmp_path, capsys):
        other = write_images(tmp_path / "other", 4, ("red", "blue"))
        status, found = evaluate(run, "--data", other)
        assert (status, found["images"], found["subject"]["part"], found["recorded"]) == (0, 8, "all", None)
        assert found["notes"] == ["there are no images of 'green'"]
        assert [row["images"] for row in found["classes"]] == [4, 0, 4]
        assert "there are no images of 'green'" in capsys.readouterr().out

    def test_of_unknown_classes_are_refused(self, run, tmp_path, capsys):
        other = write_images(tmp_path / "other", 1, ("red", "purple", "pink"))
        before = contents(run)
        assert evaluate(run, "--data", other)[0] == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "classes that the run does not know: 'pink', 'purple'; it knows 'blue', 'green', 'red'" in error
        assert contents(run) == before

    def test_that_cannot_be_read_are_refused(self, run, tmp_path, capsys):
        other = write_images(tmp_path / "other", 1, ("red",))
        (other / "red" / "broken.jpg").write_bytes(b"")
        assert evaluate(run, "--data", other)[0] == 2
        assert "broken.jpg" in capsys.readouterr().err
        assert not (run / "evaluation").exists()

    def test_that_are_not_there(self, run, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        for folder, error in (("nowhere", "no such folder"), ("empty", "expected class folders with images")):
            assert evaluate(run, "--data", tmp_path / folder)[0] == 2
            assert error in capsys.readouterr().err


@pytest.mark.slow
def test_the_folder_of_the_run_may_be_gone(noisy, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(str(noisy), str(data))
    assert finetune(data, "--out", tmp_path / "run", epochs=1) == 0
    data.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert evaluate(tmp_path / "run")[0] == 2
    assert f"the images of the run were in {data}, which is gone; add --data" in capsys.readouterr().err
    assert evaluate(tmp_path / "run", "--data", tmp_path / "elsewhere")[1]["subject"]["part"] == "val"


def test_a_damaged_record_is_refused(run, capsys):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "split": []}))
    assert evaluate(run)[0] == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "run.json is damaged" in error


def test_a_run_on_digits_needs_data(run, tmp_path, capsys):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "data": None, "split": None}))
    assert evaluate(run)[0] == 2
    assert "not trained on a folder of images; add --data DIR" in capsys.readouterr().err
    other = write_images(tmp_path / "other", 2)
    assert evaluate(run, "--data", other)[1]["images"] == 6


class TestFiles:
    @pytest.mark.slow
    def test_the_same_evaluation_is_replaced_and_another_one_is_numbered(self, run, capsys):
        for options in ([], [], ["--split", "train"], ["--weights", "last"], []):
            assert evaluate(run, *options)[0] == 0
        assert sorted(path.name for path in run.glob("evaluation*")) == ["evaluation", "evaluation-2", "evaluation-3"]

    @pytest.mark.slow
    def test_a_run_that_is_renamed_has_the_same_evaluation(self, run):
        evaluate(run)
        renamed = run.rename(run.parent / "renamed")
        status, found = evaluate(renamed)
        assert (status, found["subject"]["run"]) == (0, str(renamed.resolve()))
        assert [path.name for path in renamed.glob("evaluation*")] == ["evaluation"]

    def test_changed_images_are_another_evaluation(self, run, tmp_path):
        other = write_images(tmp_path / "other", 2)
        assert evaluate(run, "--data", other)[0] == 0
        shutil.copy(str(other / "red" / "000.jpg"), str(other / "blue" / "000.jpg"))
        assert evaluate(run, "--data", other)[0] == 0
        assert sorted(path.name for path in run.glob("evaluation*")) == ["evaluation", "evaluation-2"]

    def test_a_named_folder_must_not_hold_another_one(self, run, tmp_path, capsys):
        out = tmp_path / "out"
        assert main(["evaluate", str(run), "--out", str(out)]) == 0
        before = contents(out)
        capsys.readouterr()
        assert main(["evaluate", str(run), "--out", str(out), "--split", "train"]) == 2
        assert f"--out {out} holds another evaluation" in capsys.readouterr().err
        assert contents(out) == before
        assert not (run / "evaluation").exists()

    def test_a_folder_among_the_images_is_refused(self, run, images, capsys):
        assert main(["evaluate", str(run), "--out", str(images / "out")]) == 2
        assert f"is inside {images}, where it would be taken for a class" in capsys.readouterr().err
        assert not (images / "out").exists()

    @pytest.mark.slow
    def test_a_run_may_be_among_the_images(self, noisy, tmp_path, monkeypatch, capsys):
        shutil.copytree(str(noisy), str(tmp_path / "data"))
        monkeypatch.chdir(tmp_path / "data")
        assert finetune(".", "--out", tmp_path / "run", epochs=1) == 0
        shutil.move(str(tmp_path / "run"), "runs")
        status, found = evaluate(tmp_path / "data" / "runs", "--data", ".")
        assert (status, found["subject"]["part"]) == (0, "val")

    def test_json_goes_where_it_is_told(self, run, tmp_path, capsys):
        status, found = evaluate(run, "--json", tmp_path / "figures.json")
        assert status == 0
        assert json.loads((tmp_path / "figures.json").read_text()) == found
        capsys.readouterr()
        evaluate(run, "--json", "-")
        assert json.loads(capsys.readouterr().out) == found

    def test_nothing_else_of_the_run_changes(self, run):
        before = contents(run)
        evaluate(run)
        assert {path: data for path, data in contents(run).items() if path.parent.name != "evaluation"} == before


def test_a_run_without_an_epoch_is_refused(run, capsys):
    (run / "best.params").unlink()
    assert evaluate(run)[0] == 2
    assert "no epoch of it has ended yet" in capsys.readouterr().err


@pytest.mark.slow
def test_an_evaluated_run_can_be_resumed_and_replaced(noisy, tmp_path):
    run = tmp_path / "run"
    assert finetune(noisy, "--out", run, epochs=1) == 0
    first = evaluate(run, "--weights", "last")[1]
    assert finetune(noisy, "--out", run, "--resume", epochs=2) == 0
    assert evaluate(run, "--weights", "last")[1] == first  # the second one is numbered
    second = json.loads((run / "evaluation-2" / "evaluation.json").read_text())
    assert second["recorded"] == {"epoch": 2, "accuracy": rows_of(run)[-1]["val_accuracy"]}
    assert finetune(noisy, "--out", run, "--overwrite", "--seed", 1, epochs=1) == 0
    assert (run / "evaluation" / "evaluation.json").exists()


@pytest.mark.slow
def test_last_weights_of_an_unfinished_epoch_are_named_so_on_any_images(run, tmp_path, capsys):
    other = write_images(tmp_path / "other", 2)
    assert evaluate(run, "--weights", "last", "--data", other)[1]["notes"] == []
    shutil.copy(str(run / "best.params"), str(run / "last.params"))
    net = load_run(run, "last").net
    net.output.bias.set_data(net.output.bias.data() + 1e-3)
    net.save_parameters(str(run / "last.params"))
    capsys.readouterr()
    for options in ([], ["--data", other]):
        assert main(["evaluate", str(run), "--weights", "last", *map(str, options)]) == 0
        assert "last.params may hold the weights of an unfinished epoch" in capsys.readouterr().out


@pytest.mark.slow
def test_a_folder_whose_name_is_not_text(run, images, tmp_path, monkeypatch):
    data = os.path.join(os.fsencode(tmp_path), b"caf\xe9 $x_")
    shutil.copytree(os.fsencode(images), data)
    monkeypatch.chdir(os.fsdecode(data))
    assert evaluate(run, "--data", ".")[0] == 0
    assert finetune(".", "--out", tmp_path / "new", epochs=1) == 0
    assert (tmp_path / "new" / "finetune.png").exists()


@pytest.mark.slow
def test_a_reader_that_has_gone_is_no_error(run):
    with start("evaluate", run) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 141
    assert (run / "evaluation" / "evaluation.json").exists()


def test_a_missing_package_names_the_extra(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert evaluate(run)[0] == 2
    assert "pip install 'multitrainer[finetune]'" in capsys.readouterr().err


def test_output_in_ascii(run, images, tmp_path, monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    data = shutil.copytree(str(images), str(tmp_path / "Bäume"))
    monkeypatch.setattr(sys, "stdout", output)
    assert main(["evaluate", str(run), "--data", data]) == 0
    assert b"B\\xe4ume" in output.buffer.getvalue()
