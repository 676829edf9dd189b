from __future__ import annotations

import argparse

import mxnet as mx
import numpy as np
import pytest

pytest.importorskip("gluoncv")

from multitrainer_cli.errors import UserError
from multitrainer_cli.training import network

HEADS = {
    "cifar_resnet20_v1": "output",
    "resnet18_v1": "output",
    "resnet18_v1b": "fc",
    "resnet50_v1d": "fc",
    "resnet18_v2": "output",
    "mobilenet0.25": "output",
    "mobilenet1.0": "output",
    "mobilenetv2_0.25": "output",
    "mobilenetv3_small": "output",
    "densenet121": "output",
    "vgg11": "output",
    "alexnet": "output",
    "squeezenet1.0": "output",
    "resnext50_32x4d": "output",
    "inceptionv3": "output",
    "googlenet": "output",
    "hrnet_w18_small_v1_c": "classifier",
    "resnext101e_64x4d": "output",
    "nasnet_4_1056": "out",
}


@pytest.mark.parametrize("model", sorted(HEADS))
def test_the_head_is_the_last_layer(model):
    assert network.build(model, 3)[1] == HEADS[model]


def _built(model, classes):
    net, head = network.build(model, classes)
    network.initialize(net, [mx.cpu()], model, classes)
    return net, head


def _values(net):
    return {name: param.data().asnumpy() for name, param in net._collect_params_with_prefix().items()}


@pytest.mark.parametrize("model", ["cifar_resnet20_v1", "resnet18_v1b", "mobilenetv2_0.25", "squeezenet1.0"])
def test_everything_but_the_head_is_loaded(tmp_path, model):
    source, _ = _built(model, 5)
    source.save_parameters(str(tmp_path / "p"))
    net, head = _built(model, 3)
    before, wanted = _values(net), _values(source)
    network.load_backbone(net, head, tmp_path / "p")
    for name, value in _values(net).items():
        is_head = name.startswith(head + ".")
        np.testing.assert_array_equal(value, before[name] if is_head else wanted[name], err_msg=name)


@pytest.mark.parametrize("classes", [3, 5])
def test_the_head_is_new_even_if_the_one_of_the_file_fits(tmp_path, classes):
    source, head = _built("cifar_resnet20_v1", classes)
    source.save_parameters(str(tmp_path / "p"))
    net, _ = _built("cifar_resnet20_v1", 3)
    network.load_backbone(net, head, tmp_path / "p")
    assert net.output.weight.shape == (3, 64)
    assert not np.array_equal(net.output.weight.data().asnumpy()[:3], source.output.weight.data().asnumpy()[:3])


@pytest.mark.parametrize("how", ["collect_params", "export"])
def test_files_with_parameter_names_are_loaded_too(tmp_path, how):
    source, head = _built("cifar_resnet20_v1", 5)
    path = tmp_path / "p.params"
    if how == "export":
        source.hybridize()
        source(mx.nd.zeros((1, 3, 32, 32)))
        source.export(str(tmp_path / "net"))
        path = tmp_path / "net-0000.params"
    else:
        source.collect_params().save(str(path))
    net, _ = _built("cifar_resnet20_v1", 3)
    network.load_backbone(net, head, path)
    for name, value in _values(net).items():
        if not name.startswith("output."):
            np.testing.assert_array_equal(value, _values(source)[name], err_msg=name)


def _refused(net, head, path):
    with pytest.raises(UserError) as caught:
        network.load_backbone(net, head, path)
    return str(caught.value)


def test_a_file_of_another_network_is_refused_and_nothing_is_loaded(tmp_path):
    source, _ = _built("cifar_resnet56_v1", 3)
    source.save_parameters(str(tmp_path / "p"))
    net, head = _built("cifar_resnet20_v1", 3)
    before = _values(net)
    assert "does not fit this --model" in _refused(net, head, tmp_path / "p")
    assert all(np.array_equal(value, before[name]) for name, value in _values(net).items())


def test_a_backbone_of_another_width_is_refused(tmp_path):
    net, head = _built("cifar_resnet20_v1", 3)
    arrays = {name: mx.nd.array(value) for name, value in _values(net).items()}
    arrays["features.0.weight"] = mx.nd.zeros((7, 3, 3, 3))
    mx.nd.save(str(tmp_path / "p"), arrays)
    message = _refused(net, head, tmp_path / "p")
    assert "features.0.weight has shape (7, 3, 3, 3) in it and (16, 3, 3, 3) in the network" in message


def test_a_file_that_holds_no_parameters_is_refused(tmp_path):
    net, head = _built("cifar_resnet20_v1", 3)
    (tmp_path / "p").write_text("nothing of the kind")
    assert "cannot be read as MXNet parameters" in _refused(net, head, tmp_path / "p")
    assert "cannot be read" in _refused(net, head, tmp_path / "missing")
    mx.nd.save(str(tmp_path / "list"), [mx.nd.zeros(1)])
    assert "without names" in _refused(net, head, tmp_path / "list")


@pytest.mark.parametrize("model", ["resnet50_v1b_gn", "resnet101_v1b_gn"])
def test_a_network_that_cannot_be_hybridized_is_refused(model):
    net, _ = network.build(model, 3)
    with pytest.raises(UserError, match=f"--model {model} cannot be hybridized under MXNet 1.9.1") as caught:
        network.initialize(net, [mx.cpu()], model, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "size"), [("CIFAR_resnet20_v1", 32), ("inceptionv3", 299), ("Xception", 299), ("resnet18_v1b", 224)]
)
def test_the_input_size_depends_on_the_model(model, size):
    assert network.input_size(model) == size


@pytest.mark.parametrize(("options", "expected"), [({}, False), ({"pretrained": True}, True), ({"params": "f"}, True)])
def test_weights_are_published_or_in_a_file(options, expected):
    args = argparse.Namespace(**{"pretrained": None, "params": None, **options})
    assert network.has_weights(args) is expected


def test_an_initialized_network_must_score_every_class():
    net, _ = network.build("cifar_resnet20_v1", 3)
    with pytest.raises(UserError, match="is not an image classifier"):
        network.initialize(net, [mx.cpu()], "cifar_resnet20_v1", 4)


def test_a_network_is_built_with_the_same_names_every_time():
    one, other = (network.build("cifar_resnet20_v1", 3)[0] for _ in range(2))
    assert list(one.collect_params().keys()) == list(other.collect_params().keys())


def test_a_path_leads_to_a_block_or_a_parameter():
    net, _ = network.build("cifar_resnet20_v1", 3)
    assert network.find(net, "features") is net.features
    assert network.find(net, "features.3.0") is net.features[3][0]
    assert network.find(net, "output.bias") is net.output.bias


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("feature", "the network has features, output"),
        ("features.99", "features has 0, 1, 2, 3, 4"),
        ("output.gamma", "output has weight, bias"),
        ("output.weight.data", "output.weight has nothing below it"),
        ("features.5", "features has 0, 1, 2, 3, 4"),
        ("", "the network has features, output"),
    ],
)
def test_an_unknown_path_is_answered_with_the_names_there(path, answer):
    net, _ = network.build("cifar_resnet20_v1", 3)
    with pytest.raises(UserError) as caught:
        network.find(net, path)
    assert answer in str(caught.value)


def test_a_failure_of_mxnet_with_a_known_cure_is_a_user_error():
    blocked = network.explain_failure(mx.MXNetError("could not construct a sub-memory"), "nasnet_4_1056")
    assert isinstance(blocked, UserError)
    assert "--model nasnet_4_1056" in str(blocked)
    assert "DNNL_MAX_CPU_ISA=AVX2" in str(blocked)
    assert "--batch-size" in str(network.explain_failure(mx.MXNetError("cudaMalloc failed: out of memory"), "x"))
    other = mx.MXNetError("something else")
    assert network.explain_failure(other, "x") is other
