"""The symbol and parameters that are written compute what the network predicts, in whatever state it was."""

from __future__ import annotations

import json

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from mxnet.gluon import nn

from multitrainer.images import ImageTransform
from multitrainer_cli.errors import UserError
from multitrainer_cli.exporting import network_files
from multitrainer_cli.exporting.network_files import FileNames
from multitrainer_cli.exporting.verification import random_inputs

SIZE = 8


def make_network(contexts=None):
    """Return a network with layers that work differently in training, which has been trained on a batch."""
    net = nn.HybridSequential()
    net.add(nn.Conv2D(16, 3), nn.BatchNorm(), nn.Activation("relu"), nn.Dropout(0.5), nn.Flatten(), nn.Dense(4))
    contexts = contexts or [mx.cpu()]
    net.initialize(mx.init.Xavier(), ctx=contexts)
    for context in contexts:
        with autograd.record():
            loss = net(mx.nd.array(3 * random_inputs(SIZE) + 2, ctx=context)).sum()
        loss.backward()
    return net


def load(prefix):
    return mx.gluon.SymbolBlock.imports(f"{prefix}-symbol.json", ["data"], f"{prefix}-0000.params")


def check_same(net, prefix, expected):
    found = load(prefix)(mx.nd.array(random_inputs(SIZE))).asnumpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("state", ["plain", "hybridized", "static", "traced in training"])
def test_the_import_predicts_what_the_network_predicts(tmp_path, state):
    net = make_network()
    expected = net(mx.nd.array(random_inputs(SIZE))).asnumpy()
    if state != "plain":
        net.hybridize(static_alloc=state == "static", static_shape=state == "static")
    if state == "traced in training":
        with autograd.record():
            net(mx.nd.array(random_inputs(SIZE)))
        mx.nd.waitall()
    network_files.save_network(net, SIZE, tmp_path / "net")
    check_same(net, tmp_path / "net", expected)


def test_a_network_on_two_devices_is_exported(tmp_path):
    net = make_network([mx.cpu(0), mx.cpu(1)])
    expected = net(mx.nd.array(random_inputs(SIZE), ctx=mx.cpu(1))).asnumpy()
    network_files.save_network(net, SIZE, tmp_path / "net")
    check_same(net, tmp_path / "net", expected)


def test_softmax_turns_scores_to_probabilities(tmp_path):
    net = make_network()
    scores = net(mx.nd.array(random_inputs(SIZE))).asnumpy()
    network_files.save_network(network_files.with_softmax(net), SIZE, tmp_path / "net")
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    check_same(net, tmp_path / "net", exponentials / exponentials.sum(axis=1, keepdims=True))


def test_a_disk_that_is_full_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "net-0000.params").symlink_to("/dev/full")
    with pytest.raises(UserError) as error:
        network_files.save_network(make_network(), SIZE, tmp_path / "net")
    assert str(error.value) == (
        "cannot write net-0000.params: the file is incomplete; make room on the disk or choose another --out"
    )


def test_the_description_names_classes_preprocessing_and_files(tmp_path):
    classes = ["grüne Äpfel", "red, ripe", " 花 "]
    transform = ImageTransform(64, 73, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    names = FileNames.of("resnet18_v1b_0.89", with_onnx=False)
    network_files.save_description(tmp_path, names, classes, transform, softmax=True)
    assert (tmp_path / "classes.txt").read_text(encoding="utf-8").splitlines() == classes
    description = json.loads((tmp_path / "preprocess.json").read_text(encoding="utf-8"))
    assert description["files"] == names.all()
    assert {name: description[name] for name in ("size", "resize", "mean", "std", "layout", "output")} == {
        **{"size": 64, "resize": 73, "mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]},
        **{"layout": "NCHW", "output": "probabilities"},
    }
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "Resize(73, keep_ratio=True), CenterCrop(64)" in readme
    assert "Normalize((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))" in readme
    assert '"resnet18_v1b_0.89-symbol.json", ["data"], "resnet18_v1b_0.89-0000.params"' in readme
    assert "onnx" not in readme
    assert max(map(len, readme.splitlines())) <= 120


def test_the_names_of_an_export_hold_the_onnx_model_if_it_is_written():
    plain, with_onnx = (FileNames.of("m1.0", with_onnx).all() for with_onnx in (False, True))
    assert set(plain) == {"preprocess.json", "classes.txt", "README.md", "m1.0-symbol.json", "m1.0-0000.params"}
    assert set(with_onnx) - set(plain) == {"m1.0.onnx"}
