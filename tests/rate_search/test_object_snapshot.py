"""What an object holds is put back into the same objects, and code is left alone."""

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from multitrainer.rate_search.object_snapshot import ObjectSnapshot
from support import backward, batches, mlp


class Thing:
    def __init__(self, **attributes):
        vars(self).update(attributes)


def test_containers_and_objects_to_any_depth():
    inner = {"list": [1, [2]], "set": {3}, "array": np.arange(3.0)}
    thing = Thing(inner=inner, pair=(inner, Thing(number=4)), name="before")
    snapshot = ObjectSnapshot([thing])
    inner["list"][1].append(5)
    inner["list"].append(6)
    inner["set"].add(7)
    inner["array"] += 1
    inner["new"] = thing.new = 8
    thing.pair[1].number = 9
    del thing.name
    snapshot.restore()
    assert thing.inner is inner is thing.pair[0]
    assert inner.pop("array").tolist() == [0, 1, 2]
    assert inner == {"list": [1, [2]], "set": {3}}
    assert (thing.pair[1].number, thing.name, hasattr(thing, "new")) == (4, "before", False)


def test_an_object_that_was_replaced_comes_back():
    first = [1]
    thing = Thing(value=first, array=mx.nd.ones(2))
    array = thing.array
    snapshot = ObjectSnapshot([thing])
    array[:] = 5
    thing.value, thing.array = [2], mx.nd.zeros(3)
    snapshot.restore()
    assert thing.value is first
    assert thing.array is array
    assert array.asnumpy().tolist() == [1, 1]


def test_two_names_of_one_object_stay_two_names():
    shared = {}
    thing = Thing(one=shared, two={0: shared})
    snapshot = ObjectSnapshot([thing])
    shared["x"] = 1
    thing.two = {0: {}}
    snapshot.restore()
    assert thing.one is thing.two[0] is shared
    assert shared == {}


def test_circles_end():
    thing = Thing()
    thing.self, thing.list = thing, [thing]
    snapshot = ObjectSnapshot([thing])
    thing.list.append(1)
    snapshot.restore()
    assert thing.list == [thing]


def test_nan_and_the_sign_of_zero_keep_their_bits():
    values = np.array([np.nan, -0.0, np.inf, 1e-45], "float32")
    thing = Thing(array=mx.nd.array(values))
    bits = thing.array.asnumpy().tobytes()
    snapshot = ObjectSnapshot([thing])
    thing.array[:] = 0
    snapshot.restore()
    assert thing.array.asnumpy().tobytes() == bits


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "uint8"])
def test_dtypes(dtype):
    array = mx.nd.array([1, 2, 3], dtype=dtype)
    snapshot = ObjectSnapshot([[array]])
    array[:] = 0
    snapshot.restore()
    assert array.dtype == np.dtype(dtype)
    assert array.asnumpy().tolist() == [1, 2, 3]


def test_row_sparse_arrays():
    array = mx.nd.sparse.row_sparse_array(([[1, 2]], [1]), shape=(4, 2))
    snapshot = ObjectSnapshot([[array]])
    mx.nd.sparse.row_sparse_array(([[3, 4], [5, 6]], [0, 2]), shape=(4, 2)).copyto(array)
    snapshot.restore()
    assert array.indices.asnumpy().tolist() == [1]
    assert array.asnumpy().tolist() == [[0, 0], [1, 2], [0, 0], [0, 0]]


def test_parameters_with_gradients_and_whether_these_are_fresh():
    net = mlp()
    backward(net, *batches(1)[0])
    weight, stale = net[0].weight, net[2].weight
    stale.data()._fresh_grad = False
    before = [array.asnumpy() for param in (weight, stale) for array in (param.data(), param.grad())]
    snapshot = ObjectSnapshot([net.collect_params()])
    weight.set_data(weight.data() + 1)
    weight.grad()[:] = 7
    stale.grad()[:] = 8
    weight.data()._fresh_grad, stale.data()._fresh_grad = False, True
    snapshot.restore()
    after = [array.asnumpy() for param in (weight, stale) for array in (param.data(), param.grad())]
    assert all(one.tobytes() == two.tobytes() for one, two in zip(before, after))
    assert weight.data()._fresh_grad
    assert not stale.data()._fresh_grad


def test_arrays_of_a_parameter_that_were_replaced_get_the_values():
    param = mlp()[0].weight
    before = param.data().asnumpy()
    snapshot = ObjectSnapshot([param])
    param.set_data(param.data() + 1)
    param.grad_req = "null"
    param.grad_req = "write"
    snapshot.restore()
    assert param.data().asnumpy().tobytes() == before.tobytes()
    assert param.grad_req == "write"


def test_code_is_not_looked_into():
    class Schedule(Thing):
        def __call__(self, num_update):
            return 1

    net, schedule = nn.Dense(1, prefix="block_"), Schedule(calls=[])
    snapshot = ObjectSnapshot([Thing(net=net, schedule=schedule, module=np, function=len, kind=Thing)])
    schedule.calls.append(1)
    net.mark = 1
    snapshot.restore()
    assert schedule.calls == [1]
    assert net.mark == 1


def test_updaters_and_schedulers_of_mxnet_are_looked_into():
    optimizer = mx.optimizer.SGD(momentum=0.9, lr_scheduler=mx.lr_scheduler.FactorScheduler(1, 0.5, base_lr=1.0))
    updater = mx.optimizer.get_updater(optimizer)
    snapshot = ObjectSnapshot([updater])
    weight = mx.nd.ones(2)
    for _ in range(3):
        updater(0, weight, weight)
    assert optimizer.lr_scheduler.count > 0
    snapshot.restore()
    assert updater.states == {}
    assert optimizer._index_update_count == {}
    assert (optimizer.lr_scheduler.count, optimizer.lr_scheduler.base_lr, optimizer.num_update) == (0, 1.0, 0)
    assert snapshot.objects(mx.optimizer.Optimizer) == [optimizer]


def test_it_can_be_restored_again_and_again():
    thing = Thing(list=[1])
    snapshot = ObjectSnapshot([thing])
    for _ in range(3):
        thing.list.append(2)
        thing.list = [3]
        snapshot.restore()
        assert thing.list == [1]
