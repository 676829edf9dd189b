"""`multitrainer finetune --resume`: a run that was stopped comes to what it would have come to."""

from __future__ import annotations

import signal
import time

import mxnet as mx
import numpy as np
import pytest

from cli_support import MODEL, rows_of, start, without_times, write_images
from support import PATIENCE

pytest.importorskip("gluoncv")
pytest.importorskip("sklearn")

from multitrainer import MultiLRTrainer
from multitrainer.cli import main
from multitrainer.cli.data.loader import Loader
from multitrainer.cli.training.interrupts import Interrupts
from multitrainer.cli.training.loop import fit


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    # 27 to train on by eights: what is left over of an epoch begins the next one.
    return write_images(tmp_path_factory.mktemp("images") / "colours", 11)


def run(images, out, *options):
    common = ["--data", images, "--model", MODEL, "--batch-size", 8, "--out", out]
    return main(["finetune", *map(str, [*common, *options])])


def assert_same(one, other):
    assert without_times(rows_of(one)) == without_times(rows_of(other))
    for name in ("best.params", "last.params"):
        first, second = (mx.nd.load(str(out / name)) for out in (one, other))
        assert first.keys() == second.keys()
        for key in first:
            np.testing.assert_array_equal(first[key].asnumpy(), second[key].asnumpy(), err_msg=f"{name}: {key}")


@pytest.mark.parametrize(
    "options", [[], ["--optimizer", "adam", "--lr-mult", "features=0.5", "--freeze", "features.0"]]
)
def test_a_run_goes_on_as_if_it_had_never_stopped(images, tmp_path, capsys, options):
    assert run(images, tmp_path / "whole", *options, "--epochs", 4) == 0
    for epochs in (1, 3, 4):
        assert run(images, tmp_path / "parts", *options, "--epochs", epochs, "--resume") == 0
    assert_same(tmp_path / "whole", tmp_path / "parts")
    printed = capsys.readouterr().out
    assert f"nothing to resume in {tmp_path / 'parts'}; a new run begins" in printed
    assert "going on after 3 epochs" in printed
    kept = sorted(path.name for path in (tmp_path / "parts/checkpoint").iterdir())
    assert kept == ["000004.json", "000004.npz", "000004.params", "run.json"]


def test_what_layers_draw_does_not_depend_on_the_epochs_before():
    def train(upto, done=0):
        with Interrupts() as interrupts:
            rows = list(fit(net, trainer, batches, batches, [mx.cpu()], upto, interrupts, seed=3, epochs_done=done))
        return [row["train_loss"] for row in rows]

    def begin():
        mx.random.seed(1)
        net = mx.gluon.nn.HybridSequential()
        net.add(mx.gluon.nn.Dense(8, in_units=4), mx.gluon.nn.Dropout(0.5), mx.gluon.nn.Dense(2, in_units=8))
        net.initialize()
        return net, MultiLRTrainer(net, "sgd")

    data = mx.gluon.data.ArrayDataset(mx.nd.random.normal(shape=(8, 4)), mx.nd.array([0, 1] * 4))
    batches = Loader(data, mx.gluon.data.BatchSampler(mx.gluon.data.SequentialSampler(8), 4))
    net, trainer = begin()
    whole = train(4)
    net, trainer = begin()
    first = train(2)
    mx.nd.random.normal(shape=(100,)).wait_to_read()  # what else happened meanwhile
    assert first + train(4, done=2) == whole


def kill_again_and_again(options, out, total):
    """Kill the command at moments of all kinds until it has come to its end; return how often."""
    for kills, wait in enumerate(np.random.RandomState(0).uniform(0.2, 1.5, 60)):
        rows = count(out)
        with start(*options, "--out", out, "--resume") as process:
            while process.poll() is None and count(out) < min(rows + 2, total):
                time.sleep(0.02)
            if process.poll() is None and count(out) < total:
                time.sleep(wait)
                process.send_signal(signal.SIGKILL)
            _, error = process.communicate(timeout=PATIENCE)
        if process.returncode == 0:
            return kills
        assert process.returncode == -signal.SIGKILL, error
    raise AssertionError("it did not come to its end")


def count(out):
    return len((out / "metrics.jsonl").read_text().splitlines()) if (out / "metrics.jsonl").exists() else 0


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(images, tmp_path):
    options = ["--data", images, "--model", MODEL, "--batch-size", 8, "--epochs", 12]
    with start(*options, "--out", tmp_path / "whole") as process:
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    assert kill_again_and_again(options, tmp_path / "parts", total=12) > 1
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_the_digits_go_on_too(tmp_path):
    options = ["--epochs", 6]
    with start(*options, "--out", tmp_path / "whole") as process:
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    (tmp_path / "parts").mkdir()
    source = (tmp_path / "whole/digits-source.params").read_bytes()
    (tmp_path / "parts/digits-source.params").write_bytes(source)
    total = 72
    for stop in (8, 33):
        with start(*options, "--out", tmp_path / "parts", "--resume") as process:
            while count(tmp_path / "parts") < stop:
                assert process.poll() is None, process.communicate()
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.communicate()
    with start(*options, "--out", tmp_path / "parts", "--resume") as process:
        printed, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    assert "going on after" in printed
    assert len(rows_of(tmp_path / "parts")) == total
    assert_same(tmp_path / "whole", tmp_path / "parts")
