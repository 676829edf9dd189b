"""The networks of benchmarks/whole_step.py are the same in MXNet and in PyTorch, and the benchmark runs."""

import importlib
import pathlib
import sys

import mxnet as mx
import numpy as np
import pytest

import multitrainer

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
NETWORKS = ["resnet50_v1b", "resnet18_v1b", "mobilenet1.0", "mobilenetv2_1.0"]


@pytest.fixture(scope="module", autouse=True)
def _in_one_folder():
    """Let the scripts import each other, as they can when one is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture(scope="module")
def gluoncv():
    """Return GluonCV, which refuses to be imported beside PyTorch 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        return pytest.importorskip("gluoncv")


@pytest.fixture(scope="module")
def torch(gluoncv):
    return pytest.importorskip("torch", reason="PyTorch is in the extra `bench`")


@pytest.fixture(params=NETWORKS)
def pair(request, gluoncv, torch):
    """Return a network of GluonCV, with values that no layer leaves as they are, and that of PyTorch with the same."""
    theirs = importlib.import_module("pytorch_networks")
    net = gluoncv.model_zoo.get_model(request.param, classes=10)
    net.initialize(mx.init.MSRAPrelu("in", slope=0))
    net(mx.nd.zeros((1, 3, 64, 64)))
    for name, param in net.collect_params().items():
        if not name.endswith("weight"):
            middle = 1 if name.endswith(("gamma", "var")) else 0
            param.set_data(mx.nd.random.uniform(middle - 0.3, middle + 0.3, shape=param.shape))
    other = theirs.NETWORKS[request.param](10)
    arrays = theirs.arrays(other)
    params = list(net.collect_params().values())
    assert [tuple(array.shape) for array in arrays] == [param.shape for param in params]
    for array, param in zip(arrays, params):
        array.copy_(torch.from_numpy(param.data().asnumpy()))
    return net, other


class TestPyTorchNetworks:
    @pytest.mark.parametrize("training", [False, True])
    def test_compute_the_same(self, pair, torch, training):
        net, other = pair
        x = np.random.randn(4, 3, 64, 64).astype("float32")
        with mx.autograd.record(train_mode=training):
            expected = net(mx.nd.array(x)).asnumpy()
        with torch.no_grad():
            found = other.train(training)(torch.from_numpy(x)).numpy()
        assert np.ptp(expected, axis=0).max() > 0.01 * np.abs(expected).max()  # it depends on the images
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()

    def test_have_the_same_stages(self, pair):
        net, other = pair
        counts = [
            sum(param.data().size for param in stage.collect_params().values() if param.grad_req != "null")
            for stage in multitrainer.stages(net)
        ]
        assert [sum(param.numel() for param in stage.parameters()) for stage in other] == counts


class TestVerdict:
    def test_names_the_rows_that_miss_a_goal(self):
        whole_step = importlib.import_module("whole_step")
        case = whole_step.Case("resnet18_v1b", 8, whole_step.HALF)
        seconds = {"Trainer": [4, 4], "MultiLRTrainer": [1, 2], "PyTorch": [2, 2], "PyTorch, channels_last": [4, 1]}
        memory = {"Trainer": 900, "MultiLRTrainer": 600, "PyTorch": 700, "PyTorch, channels_last": 800}
        missed = whole_step.row_of(case, seconds, memory)
        assert missed["MultiLRTrainer"]["of PyTorch's best"] == {"median": 1.25, "low": 0.5, "high": 2}
        reached = whole_step.row_of(case._replace(batch=32), {**seconds, "MultiLRTrainer": [1, 0.5]}, memory)
        other = whole_step.row_of(case._replace(network="mobilenet1.0"), seconds, memory)
        assert whole_step.verdict([missed, reached, other]).splitlines() == [
            "Goal for the ResNets, time at most 0.9 of PyTorch's best: reached in 1 of 2 rows; "
            "missed by resnet18_v1b 8 half frozen.",
            "Goal for the ResNets, memory at most 1.0 of PyTorch's best: reached in 2 of 2 rows.",
        ]
