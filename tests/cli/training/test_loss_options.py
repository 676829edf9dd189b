"""--label-smoothing, --mixup and --class-weights: what they are refused for, and what a run makes of them."""

from __future__ import annotations

import argparse
import re

import numpy as np
import pytest

from cli_support import arrays, finetune, rows_of, without_times, write_images

pytest.importorskip("gluoncv")

from multitrainer_cli.data.split import open_folder
from multitrainer_cli.training import features, loss_options
from multitrainer_cli.training.mixup import Mixup
from multitrainer_cli.training.schedule import TrainingLength

ALL = ("--label-smoothing", 0.1, "--mixup", 0.4, "--class-weights", "red=2", "--class-weights", "blue=0.5")
FROZEN = ("--no-augment", "--freeze", "features")


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Images to train on: 8 of blue, 4 of green, 2 of red."""
    folder = tmp_path_factory.mktemp("images") / "uneven"
    for name, count in (("blue", 8), ("green", 4), ("red", 2)):
        write_images(folder / "train", count, [name])
        write_images(folder / "val", count, [name])
    return folder


def weights_of(folder, *texts):
    args = argparse.Namespace(class_weights=list(texts))
    return loss_options.class_weights(args, open_folder(folder, 0))


def test_balanced_weights_agree_with_scikit_learn(uneven):
    weights = weights_of(uneven, "balanced")
    assert weights == pytest.approx([14 / (3 * 8), 14 / (3 * 4), 14 / (3 * 2)])
    class_weight = pytest.importorskip("sklearn.utils.class_weight")
    labels = [0] * 8 + [1] * 4 + [2] * 2
    assert weights == pytest.approx(class_weight.compute_class_weight("balanced", classes=np.arange(3), y=labels))


def test_given_weights_keep_their_ratio_and_have_a_mean_of_1_over_the_images(uneven):
    weights = weights_of(uneven, "red=3", "blue=0.5")
    assert weights / weights[1] == pytest.approx([0.5, 1, 3])
    assert weights @ [8, 4, 2] / 14 == pytest.approx(1)


def test_a_factor_of_all_weights_changes_nothing(uneven):
    for factor in (7, 1e300, 1e-320):
        texts = [f"{name}={factor}" for name in ("red", "green", "blue")]
        assert weights_of(uneven, *texts) == pytest.approx([1, 1, 1])


WRONG = {
    "no such class": (["--class-weights", "rde=2"], "there is no class rde; closest: .*red"),
    "no weight": (["--class-weights", "red"], "expected balanced, or CLASS=W"),
    "balanced and more": (["--class-weights", "balanced", "--class-weights", "red=1"], "cannot be combined with red=1"),
    "all 0": ([part for name in ("blue", "green", "red") for part in ("--class-weights", f"{name}=0")], "weight 0"),
    "smoothing": (["--label-smoothing", 1], "at least 0 and below 1"),
    "off without mixup": (["--mixup-off-epoch", 1], "--mixup-off-epoch 1 needs --mixup"),
    "off with mixup 0": (["--mixup-off-epoch", 1, "--mixup", 0], "--mixup-off-epoch 1 needs --mixup"),
    "always off": (["--mixup-off-epoch", 2, "--mixup", 1], "the last 2 of 2 epochs would be all of them"),
    "single images": (["--mixup", 1, "--batch-size", 1], "raise --batch-size"),
}


@pytest.mark.parametrize("what", sorted(WRONG))
def test_a_mistake_is_one_line(images, tmp_path, capsys, what):
    options, answer = WRONG[what]
    assert finetune(images, *options, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(answer, error)
    assert not list(tmp_path.rglob("*.json*"))


def test_an_unknown_class_is_named_before_any_image_is_read(tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "0.jpg").write_text("no image")
    assert finetune(tmp_path / "data", "--class-weights", "cow=1", "--out", tmp_path / "out") == 2
    assert "there is no class cow; closest: cat, dog" in capsys.readouterr().err.replace("dog, cat", "cat, dog")
    assert not (tmp_path / "out").exists()


def test_the_options_need_images(capsys):
    from multitrainer_cli import main

    assert main(["finetune", "--label-smoothing", "0.1", "--mixup", "1", "--class-weights", "a=1"]) == 2
    assert "--label-smoothing, --mixup, --class-weights can only be used with --data" in capsys.readouterr().err


@pytest.mark.slow
def test_weights_and_the_meaning_of_the_accuracy_are_printed(images, tmp_path, capsys):
    assert finetune(images, *ALL, "--out", tmp_path, epochs=1) == 0
    printed = capsys.readouterr().out
    # Of 8 images each: 0.5, 1 and 2 times 24 / 28.
    assert "to a mean of 1 over the images to train on: blue 0.429, green 0.857, red 1.71\n" in printed
    assert "the training accuracy counts, of the two labels of a mixed image, the one with the larger share" in printed
    row = rows_of(tmp_path)[0]
    line = f"training {row['train_accuracy']:.1%}, loss {row['train_loss']:.4g}  validation {row['val_accuracy']:.1%}"
    assert f"epoch 1/1  {line}, loss {row['val_loss']:.4g}  " in printed


def test_weights_of_many_classes_are_summed_up():
    names = [f"class{number}" for number in range(9)]
    weights = np.array([1, 2, 0.25, 1, 1, 1, 4, 1, 1])
    assert loss_options._list_weights(names, weights) == "from 0.25 (class2) to 4 (class6)"


def test_a_resumed_run_ends_as_one_that_never_stopped(images, tmp_path):
    assert finetune(images, *ALL, "--out", tmp_path / "whole", epochs=3) == 0
    for epochs in (1, 3):
        options = (*ALL, "--workers", 2, "--out", tmp_path / "parts", "--resume")
        assert finetune(images, *options, epochs=epochs) == 0
    whole, parts = (rows_of(tmp_path / name) for name in ("whole", "parts"))
    assert without_times(whole) == without_times(parts)
    for name, array in arrays(tmp_path / "whole/last.params").items():
        np.testing.assert_array_equal(array, arrays(tmp_path / "parts/last.params")[name], err_msg=name)


@pytest.mark.slow
def test_what_changes_the_loss_is_the_same_when_a_run_is_resumed(images, tmp_path, capsys):
    assert finetune(images, *ALL, "--out", tmp_path, epochs=1) == 0
    for options, had in (((*ALL[:2],), "--mixup 0.4"), ((*ALL[:6], "--class-weights", "blue=1"), "blue=0.5")):
        assert finetune(images, *options, "--out", tmp_path, "--resume", epochs=1) == 2
        assert had in capsys.readouterr().err


@pytest.mark.slow
def test_epochs_without_mixup_at_the_end_fix_the_number_of_epochs(images, tmp_path, capsys):
    options = ("--mixup", 1, "--mixup-off-epoch", 1, "--out", tmp_path)
    assert finetune(images, *options, epochs=2) == 0
    assert finetune(images, *options, "--resume", epochs=3) == 2
    assert "had --epochs 2" in capsys.readouterr().err


@pytest.mark.parametrize(("off", "mixing"), [(None, 5), (1, 4), (4, 1)])
def test_the_last_epochs_are_trained_without_mixup(uneven, off, mixing):
    args = argparse.Namespace(label_smoothing=None, mixup=0.4, mixup_off_epoch=off, class_weights=None)
    objective = loss_options.make_objective(args, open_folder(uneven, 0), TrainingLength(14, 7, 5))
    assert objective.mixup == Mixup(0.4, mixing)


@pytest.mark.slow
def test_features_are_not_cached_for_images_that_are_mixed(images, weights, tmp_path, capsys, monkeypatch):
    options = (*FROZEN, "--params", weights)
    assert finetune(images, *options, "--mixup", 1, "--out", tmp_path / "mixed", epochs=1) == 0
    assert "its features cannot be kept: --mixup mixes images" in capsys.readouterr().out
    monkeypatch.setattr(features, "trains_head_only", lambda *_: False)
    assert finetune(images, *options, "--mixup", 1, "--out", tmp_path / "plain", epochs=1) == 0
    assert without_times(rows_of(tmp_path / "mixed")) == without_times(rows_of(tmp_path / "plain"))


@pytest.mark.slow
def test_cached_features_have_the_same_smoothed_and_weighted_loss(images, weights, tmp_path, capsys, monkeypatch):
    options = (*FROZEN, "--params", weights, "--label-smoothing", 0.1, "--class-weights", "red=3")
    assert finetune(images, *options, "--out", tmp_path / "cached", epochs=2) == 0
    assert "computed once" in capsys.readouterr().out
    monkeypatch.setattr(features, "trains_head_only", lambda *_: False)
    assert finetune(images, *options, "--out", tmp_path / "whole", epochs=2) == 0
    for cached, whole in zip(rows_of(tmp_path / "cached"), rows_of(tmp_path / "whole")):
        for field in ("train_loss", "val_loss"):
            assert cached[field] == pytest.approx(whole[field], abs=1e-4)


@pytest.mark.slow
def test_two_devices_minimize_what_one_does(images, weights, tmp_path):
    for name, contexts in (("one", "cpu"), ("two", "cpu(0),cpu(1)")):
        options = (*ALL, "--params", weights, "--freeze", "features", "--ctx", contexts, "--out", tmp_path / name)
        assert finetune(images, *options) == 0
    for two, one in zip(rows_of(tmp_path / "two"), rows_of(tmp_path / "one")):
        for field in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert two[field] == pytest.approx(one[field], rel=1e-4), field


@pytest.mark.slow
def test_weights_of_1_are_those_of_a_run_without_weights(images, tmp_path):
    assert finetune(images, "--out", tmp_path / "whole", epochs=2) == 0
    assert finetune(images, "--out", tmp_path / "parts", epochs=1) == 0
    assert finetune(images, "--class-weights", "blue=1.0", "--out", tmp_path / "parts", "--resume", epochs=2) == 0
    whole, parts = (rows_of(tmp_path / name) for name in ("whole", "parts"))
    assert without_times(whole) == without_times(parts)
