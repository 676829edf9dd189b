"""--accumulate, --clip-grad, --ema, --early-stop and --tensorboard, each alone, all together, stopped and resumed."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from cli_support import (
    MODEL,
    arrays,
    assert_same,
    contents,
    kill_again_and_again,
    rows_of,
    scalars_of,
    start,
    write_images,
)
from support import PATIENCE, close

pytest.importorskip("gluoncv")
pytest.importorskip("tensorboardX")

from multitrainer_cli import main

ALL = ("--accumulate", 2, "--clip-grad", 0.5, "--ema", 0.9, "--early-stop", 99, "--tensorboard", "--optimizer", "adamw")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    # 27 to train on: in batches of 4, three epochs have 6, 7 and 7 of them.
    return write_images(tmp_path_factory.mktemp("images") / "colours", 11)


def run(images, out, *options):
    common = ["--data", images, "--model", MODEL, "--batch-size", 4, "--out", out]
    return main(["finetune", *map(str, [*common, *options])])


def assert_close(one, other, tolerance=1e-4):
    for field in ("train_loss", "train_accuracy", "val_accuracy"):
        assert [row[field] for row in rows_of(one)] == pytest.approx([row[field] for row in rows_of(other)], rel=1e-4)
    for name in ("best.params", "last.params"):
        second = arrays(other / name)
        for key, array in arrays(one / name).items():
            assert close(array, second[key], tolerance), f"{name}: {key}"


class TestAccumulate:
    @pytest.mark.slow
    @pytest.mark.parametrize("features", [[], ["--no-augment"]])
    def test_two_batches_of_4_are_one_of_8(self, images, weights, tmp_path, capsys, features):
        """With the backbone frozen no BatchNorm looks at the batch."""
        options = ["--params", weights, "--freeze", "features", "--epochs", 1, "--lr", 0.05, *features]
        assert run(images, tmp_path / "whole", *options, "--batch-size", 8) == 0
        assert "one update for every" not in capsys.readouterr().out
        assert run(images, tmp_path / "halves", *options, "--accumulate", 2) == 0
        assert "one update for every 2 batches of 4 images, and at the end of an epoch\n" in capsys.readouterr().out
        assert_close(tmp_path / "halves", tmp_path / "whole", 1e-5)

    @pytest.mark.slow
    def test_more_batches_than_an_epoch_has_are_reported(self, images, tmp_path, capsys):
        assert run(images, tmp_path, "--epochs", 1, "--accumulate", 100) == 0
        assert "and at the end of an epoch; an epoch has only 6\n" in capsys.readouterr().out
        assert run(images, tmp_path, "--epochs", 2, "--accumulate", 50, "--resume") == 2
        assert "had --accumulate 100" in capsys.readouterr().err

    @pytest.mark.slow
    def test_a_part_is_unfrozen_with_the_first_update_of_its_epoch(self, images, tmp_path, capsys):
        options = ["--epochs", 2, "--accumulate", 4, "--lr", 0.1, "--unfreeze-at", "features=2"]
        assert run(images, tmp_path, *options) == 0
        assert "epoch 2, update 3, unfreezes features (1)" in capsys.readouterr().out
        assert [row["learning_rates"]["features"] for row in rows_of(tmp_path)] == [0, 0.1]


class TestClipGrad:
    @pytest.mark.slow
    def test_it_bounds_the_update(self, images, tmp_path):
        """SGD without momentum and decay moves by the rate times the norm of the gradients at most."""
        moved = {}
        for norm in (1e-3, 1e3):
            out = tmp_path / str(norm)
            options = ["--epochs", 1, "--batch-size", 27, "--lr", 1, "--wd", 0, "--clip-grad", norm]
            assert run(images, out, *options) == 0
            moved[norm] = arrays(out / "last.params")
        trained = [name for name in moved[1e-3] if "running" not in name]
        start_of = self.initial(images, tmp_path, trained)
        length = {
            norm: np.sqrt(sum(((after[name] - start_of[name]) ** 2).sum() for name in trained))
            for norm, after in moved.items()
        }
        assert length[1e-3] == pytest.approx(1e-3, rel=1e-3)
        assert length[1e3] > 0.1

    @staticmethod
    def initial(images, tmp_path, names):
        """Return the weights that the seed gives: a rate this small does not change them."""
        options = ["--epochs", 1, "--batch-size", 27, "--lr", 1e-20, "--wd", 0]
        assert run(images, tmp_path / "initial", *options) == 0
        found = arrays(tmp_path / "initial/last.params")
        return {name: found[name] for name in names}


class TestEma:
    @pytest.mark.slow
    def test_the_averages_are_measured_and_kept_and_training_is_as_without(self, images, tmp_path):
        """A decay near 0 gives the weights themselves; a long one stays near those that training begins with."""
        options = ["--epochs", 2, "--lr", 0.05]
        for name, more in {"without": [], "short": ["--ema", 1e-30], "long": ["--ema", 0.99]}.items():
            assert run(images, tmp_path / name, *options, *more) == 0
        assert_same(tmp_path / "without", tmp_path / "short")
        losses = [[row["train_loss"] for row in rows_of(tmp_path / name)] for name in ("without", "long")]
        assert losses[0] == losses[1]
        raw, averaged = arrays(tmp_path / "without/last.params"), arrays(tmp_path / "long/last.params")
        checkpoint = arrays(tmp_path / "long/checkpoint/000002.params")
        for name, array in raw.items():
            np.testing.assert_array_equal(array, checkpoint[name], err_msg=name)
            assert np.array_equal(array, averaged[name]) == ("running" in name), name

    @pytest.mark.slow
    def test_another_decay_is_not_resumed(self, images, tmp_path, capsys):
        assert run(images, tmp_path, "--epochs", 1, "--ema", 0.9) == 0
        before = contents(tmp_path)
        for options in ([], ["--ema", 0.99]):
            assert run(images, tmp_path, "--epochs", 2, "--resume", *options) == 2
            assert "had --ema 0.9" in capsys.readouterr().err
        assert contents(tmp_path) == before


class TestEarlyStop:
    OPTIONS = ("--epochs", 9, "--freeze", "features", "--lr", 1e-9)  # nothing is learned

    @pytest.mark.slow
    def test_a_resumed_run_stops_at_the_same_epoch_and_says_so(self, images, tmp_path, capsys):
        stopped = "stopped after epoch 3: the validation accuracy has not risen since epoch 1."
        assert run(images, tmp_path / "whole", *self.OPTIONS, "--early-stop", 2) == 0
        assert stopped in capsys.readouterr().out
        for epochs in (1, 2, 9, 9):
            assert (
                run(images, tmp_path / "parts", *self.OPTIONS, "--early-stop", 2, "--epochs", epochs, "--resume") == 0
            )
        assert capsys.readouterr().out.count(stopped) == 2
        assert len(rows_of(tmp_path / "parts")) == 3
        assert_same(tmp_path / "whole", tmp_path / "parts")

    @pytest.mark.slow
    def test_with_more_patience_it_trains_on(self, images, tmp_path, capsys):
        assert run(images, tmp_path / "parts", *self.OPTIONS, "--early-stop", 1) == 0
        assert len(rows_of(tmp_path / "parts")) == 2
        assert run(images, tmp_path / "parts", *self.OPTIONS, "--early-stop", 3, "--resume") == 0
        assert len(rows_of(tmp_path / "parts")) == 4
        assert run(images, tmp_path / "parts", *self.OPTIONS, "--epochs", 5, "--resume") == 0
        assert run(images, tmp_path / "whole", *self.OPTIONS, "--epochs", 5) == 0
        assert_same(tmp_path / "whole", tmp_path / "parts")
        assert "stopped" not in capsys.readouterr().out.splitlines()[-1]


class TestTensorBoard:
    @pytest.mark.slow
    def test_a_resumed_run_logs_every_epoch_once_and_an_overwritten_one_is_gone(self, images, tmp_path):
        assert run(images, tmp_path, "--epochs", 1) == 0
        assert not (tmp_path / "tensorboard").exists()
        for epochs in (2, 3, 3):
            assert run(images, tmp_path, "--epochs", epochs, "--tensorboard", "--resume") == 0
        rows = rows_of(tmp_path)
        for tag, field in {"loss/training": "train_loss", "accuracy/validation": "val_accuracy"}.items():
            logged = [(step, value) for name, step, value in scalars_of(tmp_path) if name == tag]
            assert logged == [(row["epoch"], pytest.approx(row[field])) for row in rows]
        assert {name for name, *_ in scalars_of(tmp_path)} >= {"accuracy/training", "learning_rate/net"}
        assert run(images, tmp_path, "--epochs", 1, "--overwrite") == 0
        assert scalars_of(tmp_path) == []

    def test_without_the_package_nothing_is_trained(self, images, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
        assert run(images, tmp_path / "out", "--tensorboard") == 2
        assert "pip install 'multitrainer[tensorboard]'" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


class TestAllTogether:
    def test_a_resumed_run_ends_as_one_that_never_stopped(self, images, weights, tmp_path):
        options = [*ALL, "--params", weights, "--layer-decay", 0.8, "--no-bias-decay", "--warmup", 0.5]
        options += ["--unfreeze-at", 2, "--label-smoothing", 0.1, "--mixup", 0.2, "--class-weights", "balanced"]
        assert run(images, tmp_path / "whole", *options, "--epochs", 4) == 0
        for epochs in (2, 3, 4):
            assert run(images, tmp_path / "parts", *options, "--epochs", epochs, "--resume") == 0
        assert_same(tmp_path / "whole", tmp_path / "parts")
        assert scalars_of(tmp_path / "whole") == scalars_of(tmp_path / "parts")

    @pytest.mark.slow
    def test_two_devices(self, images, weights, tmp_path):
        """With the backbone frozen, devices that divide a batch train as one does, also if they are resumed."""
        options = [*ALL, "--params", weights, "--freeze", "features", "--lr", 0.05]
        assert run(images, tmp_path / "one", *options, "--epochs", 3) == 0
        for epochs in (1, 3):
            devices = ["--ctx", "cpu(0),cpu(1)", "--resume"]
            assert run(images, tmp_path / "two", *options, "--epochs", epochs, *devices) == 0
        assert_close(tmp_path / "two", tmp_path / "one")

    @pytest.mark.slow
    def test_cached_features(self, images, weights, tmp_path, capsys):
        options = [*ALL, "--params", weights, "--freeze", "features", "--lr", 0.05, "--no-augment"]
        assert run(images, tmp_path / "whole", *options, "--epochs", 3) == 0
        assert "computed once" in capsys.readouterr().out
        for epochs in (1, 3):
            assert run(images, tmp_path / "parts", *options, "--epochs", epochs, "--resume") == 0
        assert_same(tmp_path / "whole", tmp_path / "parts")

    def test_every_option_needs_data(self, tmp_path, capsys):
        assert main(["finetune", *map(str, ALL[:-2]), "--out", str(tmp_path / "out")]) == 2
        named = "--accumulate, --clip-grad, --ema, --early-stop, --tensorboard can only be used with --data"
        assert named in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("option", "wrong"),
        [("--accumulate", "0"), ("--accumulate", "1.5"), ("--clip-grad", "0"), ("--clip-grad", "nan")]
        + [("--ema", "1"), ("--ema", "0"), ("--ema", "nan"), ("--early-stop", "0")],
    )
    def test_wrong_values_are_one_line(self, images, tmp_path, capsys, option, wrong):
        assert run(images, tmp_path / "out", option, wrong) == 2
        error = capsys.readouterr().err
        assert f"argument {option}: " in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()

    @pytest.mark.slow
    def test_a_process_killed_at_any_moment_can_be_resumed(self, images, tmp_path):
        options = ["--data", images, "--model", MODEL, "--batch-size", 4, *ALL, "--epochs", 8]
        with start(*options, "--out", tmp_path / "whole") as process:
            _, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, error
        assert kill_again_and_again(options, tmp_path / "parts", total=8) >= 1
        assert_same(tmp_path / "whole", tmp_path / "parts")
        assert scalars_of(tmp_path / "whole") == scalars_of(tmp_path / "parts")
