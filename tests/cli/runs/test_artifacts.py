from __future__ import annotations

import json
import os
import re
import sys
import warnings

import mxnet as mx
import numpy as np
import pytest

from cli_support import contents
from multitrainer import MultiLRTrainer
from multitrainer_cli.errors import UserError
from multitrainer_cli.runs import artifacts
from support import mlp


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def fail():
        with artifacts.replacing(path) as temporary:
            temporary.write_text("half of what")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "before"
    assert os.listdir(str(tmp_path)) == ["file"]
    artifacts.save_text(path, "after")
    assert path.read_text() == "after"
    assert os.listdir(str(tmp_path)) == ["file"]


def test_a_folder_that_has_gone_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*gone.*file"):
        artifacts.save_text(tmp_path / "gone" / "file", "text")
    net = mx.gluon.nn.Dense(1, in_units=1)
    net.initialize()
    with pytest.raises(UserError, match=r"cannot write .*gone.*net\.params"):
        artifacts.save_parameters(net, tmp_path / "gone" / "net.params")
    with pytest.raises(UserError, match=r"cannot write .*gone.*net\.npz"):
        artifacts.save_states(MultiLRTrainer(net, "sgd"), tmp_path / "gone" / "net.npz")


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
@pytest.mark.parametrize("kind", ["text", "parameters", "states", "figure"])
def test_a_file_that_does_not_fit_on_the_disk_is_named_and_stays_as_it_was(tmp_path, kind):
    resource = pytest.importorskip("resource")
    net = mx.gluon.nn.Dense(8, in_units=8)
    net.initialize()
    trainer = MultiLRTrainer(net, "sgd")
    path = tmp_path / "file"
    write = {
        "text": lambda: artifacts.save_text(path, "x" * 1000),
        "parameters": lambda: artifacts.save_parameters(net, path),
        "states": lambda: artifacts.save_states(trainer, path),
        "figure": lambda: artifacts.save_figure(pytest.importorskip("matplotlib.figure").Figure(), path),
    }[kind]
    write()
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in {0, 1, *range(0, len(before), max(1, len(before) // 20)), *range(len(before) - 30, len(before))}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # in place of a disk with so much room
        try:
            with pytest.raises(UserError, match=re.escape(f"cannot write {path}: ")):
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert contents(tmp_path) == {path: before}


def test_parameters_come_back(tmp_path):
    net = mx.gluon.nn.Dense(2, in_units=3)
    net.initialize()
    artifacts.save_parameters(net, tmp_path / "p")
    np.testing.assert_array_equal(mx.nd.load(str(tmp_path / "p"))["weight"].asnumpy(), net.weight.data().asnumpy())


def test_a_letter_that_the_font_lacks_is_no_warning(tmp_path):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    figure.suptitle("花")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        artifacts.save_figure(figure, tmp_path / "p.png")


def test_metrics_are_one_json_object_a_line(tmp_path):
    metrics = artifacts.MetricsFile(tmp_path / "m.jsonl")
    for epoch in (1, 2):
        metrics.add({"epoch": epoch})
        lines = (tmp_path / "m.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == list(range(1, epoch + 1))


def test_on_one_device_the_file_is_that_of_mxnet(tmp_path):
    net = mlp()
    artifacts.save_parameters(net, tmp_path / "own.params")
    net.save_parameters(str(tmp_path / "mxnet.params"))
    assert (tmp_path / "own.params").read_bytes() == (tmp_path / "mxnet.params").read_bytes()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_equal_copies_on_several_devices_are_saved_to_the_bit(tmp_path, count):
    net = mlp(ctx=[mx.cpu(number) for number in range(count)])
    net[0].weight.set_data(mx.nd.random.normal(shape=(4, 3)))
    artifacts.save_parameters(net, tmp_path / "net.params")
    saved = mx.nd.load(str(tmp_path / "net.params"))
    for name, param in net._collect_params_with_prefix().items():
        np.testing.assert_array_equal(saved[name].asnumpy(), param.data(mx.cpu(0)).asnumpy(), err_msg=name)
