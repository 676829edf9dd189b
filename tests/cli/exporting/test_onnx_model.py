"""ONNX models: what MXNet's exporter and onnxruntime make of networks, and what they cannot."""

from __future__ import annotations

import sys

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from multitrainer_cli.errors import UserError
from multitrainer_cli.exporting import network_files, onnx_model
from multitrainer_cli.exporting.verification import compare, random_inputs

SIZE = 8


@pytest.mark.parametrize("missing", ["onnx.mapping", "onnxruntime"])
def test_a_missing_package_is_named_with_the_extra(monkeypatch, missing):
    if missing == "onnxruntime":
        pytest.importorskip("onnx.mapping", reason="needs the extra onnx")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"{missing.split('.')[0]} cannot .*pip install 'multitrainer\[onnx\]'"):
        onnx_model.check_installed()


def save(net, folder, size=SIZE):
    network_files.save_network(net, size, folder / "net")
    onnx_model.save_onnx(folder / "net", size, folder / "net.onnx")
    return folder / "net.onnx"


class ChannelShuffle(mx.gluon.HybridBlock):
    """Splits channels as ShuffleNet does."""

    def hybrid_forward(self, F, x):  # noqa: N803
        return F.reshape(x, (0, -4, 2, -1, -2))


def small_network(*layers):
    net = nn.HybridSequential()
    net.add(nn.Conv2D(16, 3), nn.BatchNorm(), *layers, nn.Dropout(0.5), nn.GlobalAvgPool2D(), nn.Dense(4))
    net.initialize(mx.init.Xavier())
    return net


class TestWithOnnx:
    @pytest.fixture(autouse=True)
    def _needs_onnx(self):
        pytest.importorskip("onnx.mapping", reason="needs the extra onnx")
        pytest.importorskip("onnxruntime", reason="needs the extra onnx")

    def test_onnxruntime_computes_what_the_network_computes(self, tmp_path):
        net, inputs = small_network(), random_inputs(SIZE)
        expected = net(mx.nd.array(inputs)).asnumpy()
        found = onnx_model.run_onnxruntime(save(net, tmp_path), inputs)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    def test_the_model_has_one_input_for_batches_of_any_size_and_names_its_operators(self, tmp_path):
        import onnx

        model = onnx.load(str(save(small_network(), tmp_path)))
        (given,) = model.graph.input
        assert given.name == "data"
        shape = [each.dim_param or each.dim_value for each in given.type.tensor_type.shape.dim]
        assert shape == ["batch", 3, SIZE, SIZE]
        assert [(each.domain, each.version) for each in model.opset_import] == [("", 13)]
        assert model.ir_version == 7

    def test_an_operator_that_the_exporter_does_not_know_is_named(self, tmp_path):
        net = small_network(nn.HybridLambda("erfinv"))
        with pytest.raises(UserError, match=r"--onnx: .* does not know the operator erfinv"):
            save(net, tmp_path)

    def test_an_operator_that_it_cannot_convert_is_named(self, tmp_path):
        net = nn.HybridSequential()
        net.add(nn.Conv2D(16, 3), ChannelShuffle(), nn.Dense(4))
        net.initialize()
        with pytest.raises(UserError, match=r"--onnx: .* cannot convert this network: Reshape: "):
            save(net, tmp_path)

    def test_a_model_that_onnxruntime_cannot_read_is_an_error_of_one_line(self, tmp_path):
        (tmp_path / "net.onnx").write_bytes(b"not a model")
        with pytest.raises(UserError, match="onnxruntime cannot run the model") as error:
            onnx_model.run_onnxruntime(tmp_path / "net.onnx", random_inputs(SIZE))
        assert "\n" not in str(error.value)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "model",
        [
            *("cifar_resnet20_v1", "cifar_resnet20_v2", "mobilenet0.25", "mobilenetv2_0.25", "mobilenetv3_small"),
            *("resnet18_v1b", "squeezenet1.1", "densenet121", "inceptionv3", "resnest14"),
        ],
    )
    def test_families_of_the_zoo_agree(self, tmp_path, model):
        from multitrainer_cli.training import network

        size = network.input_size(model)
        net, _ = network.build(model, 5)
        network.initialize(net, [mx.cpu()], model, 5)
        expected = net(mx.nd.array(random_inputs(size))).asnumpy()
        found = onnx_model.run_onnxruntime(save(net, tmp_path, size), random_inputs(size))
        assert compare(expected, found, "onnxruntime").difference < 1e-5
