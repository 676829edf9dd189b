"""`multitrainer finetune --data` trains what the options say, and writes the files of the run."""

from __future__ import annotations

import time

import mxnet as mx
import numpy as np
import pytest

from cli_support import FILES, MODEL, arrays, rows_of, without_times, write_images

pytest.importorskip("gluoncv")

from multitrainer_cli import main
from multitrainer_cli.data import batches
from multitrainer_cli.training import image_run, network


def finetune(*arguments):
    return main(["finetune", *map(str, arguments)])


def one_line(capsys):
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


@pytest.mark.slow
def test_a_run_from_scratch(images, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert finetune("--data", images, "--model", MODEL, "--epochs", 3, "--batch-size", 8, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    rows = rows_of(out)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0]["learning_rates"] == {"net": 0.01}
    for row in rows:
        assert 0 <= row["train_accuracy"] <= 1
        assert 0 <= row["val_accuracy"] <= 1
        assert row["train_loss"] > 0
        assert row["seconds"] > 0
        assert row["images_per_second"] > 0
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert (out / "classes.txt").read_text().split() == ["blue", "green", "red"]
    assert (out / "finetune.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "from scratch" in printed
    assert "epoch 3/3" in printed


@pytest.mark.slow
def test_last_params_hold_the_last_epoch_and_best_params_the_best(images, tmp_path):
    assert finetune("--data", images, "--model", MODEL, "--epochs", 2, "--batch-size", 8, "--out", tmp_path) == 0
    net, _ = network.build(MODEL, 3)
    net.load_parameters(str(tmp_path / "last.params"))
    assert np.isfinite(net(mx.nd.ones((1, 3, 32, 32))).asnumpy()).all()
    first, second = (row["val_accuracy"] for row in rows_of(tmp_path))
    best, last = arrays(tmp_path / "best.params"), arrays(tmp_path / "last.params")
    assert all(np.array_equal(best[name], last[name]) for name in last) == (second > first)


@pytest.mark.slow
def test_from_given_weights_the_backbone_trains_at_a_tenth_of_the_rate(images, weights, tmp_path, capsys):
    arguments = ("--data", images, "--model", MODEL, "--params", weights, "--epochs", 1, "--batch-size", 8)
    assert finetune(*arguments, "--lr", 0.02, "--out", tmp_path) == 0
    assert rows_of(tmp_path)[0]["learning_rates"] == pytest.approx({"backbone": 0.002, "output": 0.02})
    assert "with a new output" in capsys.readouterr().out


@pytest.mark.slow
def test_a_frozen_part_stays_bit_for_bit(images, weights, tmp_path):
    arguments = ("--data", images, "--model", MODEL, "--params", weights, "--epochs", 2, "--batch-size", 8)
    assert finetune(*arguments, "--freeze", "features", "--out", tmp_path) == 0
    before, after = arrays(weights), arrays(tmp_path / "last.params")
    for name, value in after.items():
        if name.startswith("features."):
            np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert rows_of(tmp_path)[-1]["learning_rates"] == {"output": 0.01, "features": 0.0}


@pytest.mark.slow
def test_multipliers_reach_the_parts_they_name(images, weights, tmp_path):
    arguments = ("--data", images, "--model", MODEL, "--params", weights, "--epochs", 1, "--batch-size", 8)
    parts = ("--lr-mult", "features=0.5", "--lr-mult", "features.3.0=0.25", "--freeze", "features.0", "--lr", 0.1)
    assert finetune(*arguments, *parts, "--optimizer", "nag", "--wd", 0, "--out", tmp_path) == 0
    wanted = {"output": 0.1, "features": 0.05, "features.3.0": 0.025, "features.0": 0.0}
    assert rows_of(tmp_path)[0]["learning_rates"] == pytest.approx(wanted)
    before, after = arrays(weights), arrays(tmp_path / "last.params")
    np.testing.assert_array_equal(before["features.0.weight"], after["features.0.weight"])
    assert not np.array_equal(before["features.3.0.body.0.weight"], after["features.3.0.body.0.weight"])


@pytest.mark.slow
def test_a_part_refines_the_one_that_contains_it_whichever_option_named_it(images, tmp_path, capsys):
    options = ["--freeze", "features", "--lr-mult", "features.3=0.5", "--epochs", 1, "--out", tmp_path]
    assert finetune("--data", images, "--model", MODEL, *options) == 0
    table = {line.split()[0]: line.split()[3] for line in capsys.readouterr().out.splitlines() if "0.0001" in line}
    assert table == {"net": "1", "features": "0", "features.3": "0.5"}


def test_a_run_repeats_with_its_seed_and_any_number_of_workers(images, tmp_path):
    def run(name, *arguments):
        common = ("--data", images, "--model", MODEL, "--epochs", 2, "--batch-size", 8, "--out", tmp_path / name)
        assert finetune(*common, *arguments) == 0
        return [(row["train_loss"], row["val_accuracy"]) for row in rows_of(tmp_path / name)]

    first = run("a", "--seed", 5)
    assert first == run("b", "--seed", 5)
    assert first == run("c", "--seed", 5, "--workers", 2)
    assert first != run("d", "--seed", 6)


@pytest.mark.slow
def test_devices_share_a_batch(images, tmp_path):
    net_of = {}
    for name, contexts in (("one", "cpu"), ("two", "cpu(0),cpu(1)")):
        out = tmp_path / name
        arguments = ("--data", images, "--model", MODEL, "--epochs", 1, "--batch-size", 9, "--ctx", contexts)
        assert finetune(*arguments, "--out", out) == 0
        net_of[name] = rows_of(out)[0]
    # BatchNorm sees half a batch on each of two devices, so close is all there is to ask for.
    assert net_of["two"]["train_loss"] == pytest.approx(net_of["one"]["train_loss"], rel=0.5)


@pytest.mark.slow
def test_a_run_on_two_devices_resumes_to_the_same_bits(images, tmp_path):
    common = ("--data", images, "--model", MODEL, "--batch-size", 8, "--ctx", "cpu(0),cpu(1)")
    assert finetune(*common, "--epochs", 2, "--out", tmp_path / "whole") == 0
    assert finetune(*common, "--epochs", 1, "--out", tmp_path / "halves") == 0
    assert finetune(*common, "--epochs", 2, "--out", tmp_path / "halves", "--resume") == 0
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert without_times(rows_of(halves)) == without_times(rows_of(whole))
    resumed = arrays(halves / "last.params")
    for name, value in arrays(whole / "last.params").items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


@pytest.mark.slow
def test_the_batch_is_no_larger_than_the_data(images, tmp_path, capsys):
    assert finetune("--data", images, "--model", MODEL, "--epochs", 1, "--out", tmp_path) == 0
    assert "batches of 24, not 32" in capsys.readouterr().out


def test_a_model_without_published_weights_is_refused(images, tmp_path, capsys):
    assert finetune("--data", images, "--model", "cifar_resnext29_32x4d", "--pretrained", "--out", tmp_path) == 2
    assert "publishes no weights" in one_line(capsys)


def test_weights_that_cannot_be_downloaded_are_a_user_error(images, tmp_path, capsys, monkeypatch):
    # A port where nobody listens, in place of the real store: the loading code is GluonCV's own.
    monkeypatch.setenv("MXNET_GLUON_REPO", "http://127.0.0.1:9/")
    monkeypatch.setenv("MXNET_HOME", str(tmp_path))
    assert finetune("--data", images, "--model", MODEL, "--pretrained", "--out", tmp_path / "out") == 2
    message = one_line(capsys)
    assert "cannot be downloaded" in message
    assert "--params" in message


def test_weights_of_another_network_are_refused(images, weights, tmp_path, capsys):
    arguments = ("--data", images, "--model", "cifar_resnet56_v1", "--params", weights, "--out", tmp_path)
    assert finetune(*arguments) == 2
    assert "does not fit this --model" in one_line(capsys)


@pytest.mark.slow
def test_workers_that_do_not_answer_end_the_run(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(batches, "TIMEOUT", 1)
    monkeypatch.setattr(batches, "_augmentation", lambda size: lambda image: time.sleep(30))
    assert finetune("--data", images, "--model", MODEL, "--workers", 1, "--out", tmp_path) == 2
    assert "use fewer --workers" in one_line(capsys)


def test_the_input_size_reaches_training_and_validation(images, tmp_path, monkeypatch):
    shapes = []

    def look_at_batches(net, trainer, train, val, *_, **__):
        shapes.extend(next(iter(batches))[0].shape for batches in (train, val))
        return iter(())

    monkeypatch.setattr(image_run, "fit", look_at_batches)
    options = ["--data", images, "--model", MODEL, "--input-size", 40, "--batch-size", 5]
    assert finetune(*options, "--out", tmp_path) == 0
    assert shapes == [(5, 3, 40, 40)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--no-augment", "--freeze", "features"]], ids=["plain", "cached"])
def test_a_resumed_run_with_a_size_and_a_share_equals_one_that_never_stopped(images, tmp_path, capsys, more):
    options = ["--data", images, "--model", MODEL, "--input-size", 48, "--val-split", 0.4, "--batch-size", 6, *more]
    assert finetune(*options, "--epochs", 2, "--out", tmp_path / "whole") == 0
    assert "18 images to train on, 12 to measure on" in capsys.readouterr().out
    assert finetune(*options, "--epochs", 1, "--out", tmp_path / "part") == 0
    for others in (["--input-size", 40], ["--val-split", 0.3]):
        assert finetune(*options, *others, "--epochs", 2, "--resume", "--out", tmp_path / "part") == 2
        assert f"had {others[0]} {'48' if 'size' in others[0] else '0.4'}" in one_line(capsys)
    assert finetune(*options, "--epochs", 2, "--resume", "--out", tmp_path / "part") == 0
    assert without_times(rows_of(tmp_path / "part")) == without_times(rows_of(tmp_path / "whole"))
    whole, part = arrays(tmp_path / "whole/last.params"), arrays(tmp_path / "part/last.params")
    assert all(np.array_equal(part[name], value) for name, value in whole.items())


def test_a_network_that_cannot_take_the_size_is_refused_before_training(images, tmp_path, capsys):
    options = ["--data", images, "--model", "squeezenet1.1", "--input-size", 96]
    assert finetune(*options, "--out", tmp_path / "out") == 2
    assert "--input-size 96: squeezenet1.1 cannot take images of this size" in one_line(capsys)
    assert not (tmp_path / "out/metrics.jsonl").exists()


@pytest.mark.slow
def test_what_is_left_out_and_shared_is_printed(tmp_path, capsys):
    for part in ("train", "VAL", "test"):
        write_images(tmp_path / "d" / part, 3)
    (tmp_path / "d/train/red/._000.jpg").write_bytes(b"x")
    options = ["--data", tmp_path / "d", "--model", MODEL, "--epochs", 1, "--batch-size", 4]
    assert finetune(*options, "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    left_out = "1 folder beside the one to train on (test), 1 hidden file or folder (train/red/._000.jpg)"
    assert f"left out: {left_out}" in lines
    assert [line for line in lines if line.startswith("9 of 9 images to measure on are trained on, too")]


def test_an_image_that_cannot_be_decoded_is_refused_before_training(tmp_path, capsys):
    root = write_images(tmp_path / "d", 3)
    path = root / "red/000.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    assert finetune("--data", root, "--model", MODEL, "--out", tmp_path / "out") == 2
    assert "holds an image that cannot be read (red/000.jpg: cannot be decoded" in one_line(capsys)
    assert not (tmp_path / "out/metrics.jsonl").exists()


def test_divergence_ends_the_run(images, tmp_path, capsys):
    arguments = ("--data", images, "--model", MODEL, "--batch-size", 8, "--epochs", 9, "--lr", 1e19)
    assert finetune(*arguments, "--out", tmp_path) == 2
    assert "training diverged" in one_line(capsys)


@pytest.mark.slow
def test_a_part_that_is_unfrozen_late_stays_as_it_is_until_then(images, weights, tmp_path):
    options = ["--data", images, "--model", MODEL, "--params", weights, "--batch-size", 8, "--unfreeze-at", 2]
    moved = {}
    # One epoch of a run of two: the same bits as the whole one has had by then.
    for epochs in (2, 3):
        out = tmp_path / str(epochs)
        assert main(["finetune", *map(str, [*options, "--epochs", epochs, "--out", out])]) == 0
        after, before = mx.nd.load(str(out / "last.params")), mx.nd.load(str(weights))
        name = "features.0.weight"
        moved[epochs] = float((after[name] - before[name]).abs().sum().asscalar())
    assert moved[3] > moved[2] > 0
    assert [row["learning_rates"]["backbone"] for row in rows_of(tmp_path / "3")] == pytest.approx([0, 0.001, 0.001])


@pytest.mark.slow
def test_a_schedule_that_depends_on_the_epochs_cannot_be_resumed_with_others(images, tmp_path, capsys):
    options = ["--data", images, "--model", MODEL, "--batch-size", 8, "--out", tmp_path, "--lr-schedule", "cosine"]
    assert main(["finetune", *map(str, [*options, "--epochs", 1])]) == 0
    assert main(["finetune", *map(str, [*options, "--epochs", 2, "--resume"])]) == 2
    assert "had --epochs 1" in capsys.readouterr().err
