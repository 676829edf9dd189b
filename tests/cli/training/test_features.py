"""Features of a frozen backbone are computed once, and the training stays the same."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest

from cli_support import MODEL, default_sigint, rows_of, write_images

pytest.importorskip("gluoncv")

from multitrainer import MultiLRTrainer
from multitrainer_cli import main
from multitrainer_cli.data.loader import Loader
from multitrainer_cli.interrupts import Interrupts
from multitrainer_cli.training import features, network

FROZEN = ("--no-augment", "--freeze", "features")


def run(images, out, *options, epochs=3):
    common = ["--data", images, "--model", MODEL, "--epochs", epochs, "--batch-size", 8, "--out", out]
    return main(["finetune", *map(str, [*common, *options])])


def count_calls(monkeypatch, kind):
    """Count how many images the backbone sees."""
    seen = []
    features_of = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, x: (seen.append(len(x)), features_of(self, x))[1])
    return seen


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    # 27 to train on by eights: what is left over of an epoch begins the next one.
    return write_images(tmp_path_factory.mktemp("images") / "colours", 11)


def without_features(monkeypatch):
    monkeypatch.setattr(features, "trains_head_only", lambda *_: False)


@pytest.mark.slow
def test_training_on_cached_features_is_the_same_training(uneven, weights, tmp_path, monkeypatch, capsys):
    options = (*FROZEN, "--params", weights, "--lr", 0.1)
    seen = count_calls(monkeypatch, features.Backbone)
    assert run(uneven, tmp_path / "cached", *options) == 0
    assert "features of 33 images are computed once, " in capsys.readouterr().out
    checked = 2 * 6  # one batch, to see whether the head can stand for the network
    assert sum(seen) == 33 + checked
    without_features(monkeypatch)
    assert run(uneven, tmp_path / "whole", *options) == 0
    assert sum(seen) == 33 + checked
    for cached, whole in zip(rows_of(tmp_path / "cached"), rows_of(tmp_path / "whole")):
        assert cached["train_loss"] == pytest.approx(whole["train_loss"], abs=1e-4)
        assert cached["train_accuracy"] == whole["train_accuracy"]
        assert cached["val_accuracy"] == whole["val_accuracy"]
        assert cached["learning_rates"] == whole["learning_rates"]
    one, other = (mx.nd.load(str(tmp_path / name / "last.params")) for name in ("cached", "whole"))
    assert one.keys() == other.keys()
    for name in one:
        if name.startswith("features"):
            np.testing.assert_array_equal(one[name].asnumpy(), other[name].asnumpy(), err_msg=name)
        else:
            np.testing.assert_allclose(one[name].asnumpy(), other[name].asnumpy(), atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_features_larger_than_the_memory_are_on_disk(uneven, weights, tmp_path, capsys):
    options = (*FROZEN, "--params", weights)
    assert run(uneven, tmp_path / "memory", *options) == 0
    assert "MB in memory" in capsys.readouterr().out
    assert run(uneven, tmp_path / "disk", *options, "--feature-memory", 0) == 0
    assert "MB on disk" in capsys.readouterr().out
    memory, disk = (
        [(row["train_loss"], row["val_accuracy"]) for row in rows_of(tmp_path / name)] for name in ("memory", "disk")
    )
    assert memory == disk
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {
        path.name for path in (tmp_path / "memory").iterdir()
    }


@pytest.mark.slow
def test_a_full_disk_is_a_user_error(uneven, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features.np, "memmap", _no_space)
    assert run(uneven, tmp_path, *FROZEN, "--feature-memory", 0) == 2
    assert "make room on the disk" in capsys.readouterr().err


def _no_space(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [("--freeze", "features"), ("--no-augment",), ("--no-augment", "--unfreeze-at", "3")]
)
def test_features_that_change_are_not_cached(uneven, tmp_path, capsys, options):
    assert run(uneven, tmp_path, *options) == 0
    assert "computed once" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_resumed_run_trains_on_the_same_features(uneven, weights, tmp_path):
    options = (*FROZEN, "--params", weights)
    assert run(uneven, tmp_path / "whole", *options, epochs=4) == 0
    for epochs in (1, 3, 4):
        assert run(uneven, tmp_path / "parts", *options, "--resume", epochs=epochs) == 0
    for name in ("train_loss", "val_accuracy"):
        assert [row[name] for row in rows_of(tmp_path / "whole")] == [row[name] for row in rows_of(tmp_path / "parts")]


@pytest.mark.slow
def test_workers_and_devices_change_nothing(uneven, weights, tmp_path):
    losses = []
    for number, options in enumerate([(), ("--workers", 2), ("--ctx", "cpu(0),cpu(1)")]):
        assert run(uneven, tmp_path / str(number), *FROZEN, "--params", weights, *options) == 0
        losses.append([row["train_loss"] for row in rows_of(tmp_path / str(number))])
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[0], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "places"),
    [(30, "in memory"), (25, "in memory and on disk"), (7, "in memory and on disk"), (5, "on disk")],
)
def test_training_and_validation_share_the_memory(values, places):
    def loader(count):
        data = mx.gluon.data.ArrayDataset(mx.nd.random.normal(shape=(count, 4)), mx.nd.arange(count))
        return Loader(data, mx.gluon.data.BatchSampler(mx.gluon.data.SequentialSampler(count), 4, "keep"))

    net = Tail()
    net.initialize(mx.init.Normal(1))
    train, val = loader(24), loader(6)
    with Interrupts() as interrupts:
        cache = features.FeatureCache([mx.cpu()], interrupts, memory=values * 4 * 4 / 2**20)
        task = features.cache_features(net, "output", train, train, val, cache)
    assert task.note.endswith(f"MB {places}")
    for images, cached in ((train, task.train), (val, task.val)):
        for (x, label), (head_input, same_label) in zip(images, cached):
            np.testing.assert_allclose(task.block(head_input).asnumpy(), net(x).asnumpy(), rtol=1e-5)
            np.testing.assert_array_equal(label.asnumpy(), same_label.asnumpy())


class Tail(mx.gluon.HybridBlock):
    """A network whose last layer with parameters is not the last thing it does."""

    def __init__(self, dropout=0.0, after=False):
        super().__init__()
        with self.name_scope():
            self.features = mx.gluon.nn.HybridSequential()
            self.features.add(mx.gluon.nn.Dense(4, in_units=4), mx.gluon.nn.Dropout(dropout))
            self.output = mx.gluon.nn.Dense(3, in_units=4)
        self.after = after

    def hybrid_forward(self, F, x):  # noqa: N803
        x = self.output(self.features(x))
        return F.relu(x) if self.after else x


@pytest.mark.parametrize(
    ("options", "reason"), [({"dropout": 0.5}, "Dropout"), ({"after": True}, "something comes after"), ({}, None)]
)
def test_the_reason_not_to_cache(options, reason):
    net = Tail(**options)
    net.initialize(mx.init.Normal(1))
    found = features.Backbone(net, "output").reason_not_to_cache(mx.nd.random.normal(shape=(16, 4)))
    assert found is None if reason is None else reason in found


def test_a_network_whose_features_change_is_trained_as_a_whole():
    net = Tail(dropout=0.5)
    net.initialize(mx.init.Normal(1))
    data = mx.gluon.data.ArrayDataset(mx.nd.ones((8, 4)), mx.nd.arange(8))
    loader = Loader(data, mx.gluon.data.BatchSampler(mx.gluon.data.SequentialSampler(8), 4, "keep"))
    with Interrupts() as interrupts:
        cache = features.FeatureCache([mx.cpu()], interrupts)
        task = features.cache_features(net, "output", loader, loader, loader, cache)
    assert task[:3] == (net, loader, loader)
    assert task.note.startswith("the backbone is frozen, but its features cannot be kept: while it trains")
    assert net._active


def test_features_are_found_by_position_with_or_without_a_seed():
    cached = features.CachedFeatures(np.arange(6.0).reshape(3, 2), np.array([5, 6, 7]))
    assert len(cached) == 3
    for index in (1, (1, 12345)):
        values, label = cached[index]
        assert (values.tolist(), label) == ([2.0, 3.0], 6)


def test_ctrl_c_stops_the_computation():
    net = Tail()
    net.initialize()
    data = mx.gluon.data.ArrayDataset(mx.nd.ones((8, 4)), mx.nd.arange(8))
    loader = Loader(data, mx.gluon.data.BatchSampler(mx.gluon.data.SequentialSampler(8), 4, "keep"))
    with default_sigint() as press, Interrupts() as interrupts:
        press()
        with pytest.raises(KeyboardInterrupt):
            features.FeatureCache([mx.cpu()], interrupts).compute(features.Backbone(net, "output"), loader)


def test_only_the_head_is_trained_now_and_later():
    net, head = network.build(MODEL, 3)
    network.initialize(net, [mx.cpu()], MODEL, 3)
    for multiplier, frozen in ((0, True), (0.1, False), (lambda update: 0 if update < 5 else 1, False)):
        trainer = MultiLRTrainer([net, (net.features, multiplier)], "sgd")
        assert features.trains_head_only(net, head, trainer) is frozen
    trainer = MultiLRTrainer([(net.features, 0), (network.find(net, head), lambda update: 1)], "sgd")
    assert features.trains_head_only(net, head, trainer)
