"""The Module API: which Modules have optimizers, what they update, and under which index."""

import mxnet as mx
import pytest

from module_support import bound, convolution, ready
from multitrainer import _mxnet


def test_a_module_has_its_optimizer_and_parameters():
    optimizer = mx.optimizer.create("sgd")
    module = bound(fixed_param_names=["conv1_bias"])
    module.init_optimizer(optimizer=optimizer)
    assert list(_mxnet.modules_inside(module)) == [module]
    assert _mxnet.module_optimizer(module) is optimizer
    assert _mxnet.module_parameters(module) == ["conv1_weight", "conv1_bias"]
    assert _mxnet.fixed_parameters(module) == {"conv1_bias"}
    assert not _mxnet.updates_on_servers(module)


def test_modules_inside_chains_and_buckets():
    chain, inner = mx.mod.SequentialModule(), mx.mod.SequentialModule()
    first, second = (mx.mod.Module(convolution(), label_names=["label"]) for _ in range(2))
    inner.add(first)
    chain.add(inner)
    chain.add(second)
    chain.add(mx.mod.PythonLossModule())
    assert list(_mxnet.modules_inside(chain)) == [first, second]
    buckets = mx.mod.BucketingModule(lambda key: (convolution(), ["data"], ["label"]), default_bucket_key=1)
    assert list(_mxnet.modules_inside(buckets)) == []
    shapes = [("data", (1, 1, 3, 3))], [("label", (1, 1))]
    buckets.bind(*shapes)
    assert len(list(_mxnet.modules_inside(buckets))) == 1
    buckets.init_params()
    buckets.switch_bucket(2, *shapes)
    assert len(list(_mxnet.modules_inside(buckets))) == 2


@pytest.mark.parametrize("devices", [1, 2])
def test_names_by_index_are_those_the_optimizer_gets(devices):
    module = ready(kvstore=None, context=[mx.cpu(i) for i in range(devices)])
    assert _mxnet.names_by_index(module) == module._optimizer.idx2name
    assert len(_mxnet.names_by_index(module)) == 2 * devices


def test_a_kvstore_that_updates_in_this_process_has_neither_servers_nor_indices():
    module = ready(kvstore=mx.kv.create("local"))
    assert module._update_on_kvstore
    assert not _mxnet.updates_on_servers(module)
    assert _mxnet.names_by_index(module) == {}
