"""What an object holds is put back into the same objects, and code is left alone."""

import logging
import queue
import random
import threading
from array import array as array_of_numbers
from collections import Counter, OrderedDict, deque
from weakref import WeakSet

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from multitrainer import MultiLRTrainer, ParamGroup
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
    def function():
        pass

    net, init, kind = nn.Dense(1, prefix="block_"), mx.init.Xavier(), type("Kind", (), {})
    code = [net, init, kind, function]
    snapshot = ObjectSnapshot([Thing(code=code, module=np, method=net.forward, built_in=len)])
    for each in code:
        each.mark = 1
    snapshot.restore()
    assert [each.mark for each in code] == [1, 1, 1, 1]


def test_what_blocks_hold_is_not_edited():
    net = nn.HybridSequential(prefix="net_")
    net.add(nn.Dense(1, in_units=1, prefix="first_"))
    net.initialize()
    trainer = MultiLRTrainer([net, ParamGroup(net[0].params, 2)], "sgd")
    snapshot = ObjectSnapshot([trainer])
    net.add(nn.Dense(1, in_units=1, prefix="second_"))
    net[0].params.get("extra", shape=(1,))
    snapshot.restore()
    assert len(net) == 2
    assert "first_extra" in net[0].params


class Calls:
    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return self.count


class Slots:
    __slots__ = ("__private", "added", "number")

    def __init__(self):
        self.__private = self.number = 0

    def next(self):
        self.__private += 1
        self.number += 1
        self.added = [*getattr(self, "added", []), self.number]
        return self.__private, self.number, len(self.added)


class SlotsAndAttributes(Slots):
    def next(self):
        self.more = getattr(self, "more", 0) + 1
        return super().next(), self.more


class ListWithAttribute(list):
    def __iter__(self):
        return iter(())

    def __setitem__(self, key, value):
        raise AssertionError

    def next(self):
        self.append(len(self))
        self.calls = getattr(self, "calls", 0) + 1
        return self.calls, list.copy(self)


def appended(target):
    target.append(target[-1] + 1)
    return list(target)


def incremented(target, index=0):
    target[index] += 1
    return target[index]


def counted(target):
    target.update("a")
    return dict(target)


def reordered(target):
    target.move_to_end(next(iter(target)))
    target[max(target) + 1] = 0
    del target[next(iter(target))]
    return list(target.items()), list(reversed(list(target)))


def object_in_array(target):
    target[0].count += 1
    return target[0].count


def _rngs():
    return {
        "random": (random.Random(1), lambda rng: (rng.random(), rng.gauss(0, 1))),
        "SystemRandom": (random.SystemRandom(), lambda rng: None),
        "RandomState": (np.random.RandomState(1), lambda rng: (rng.rand(), rng.randn())),
        "Generator": (np.random.default_rng(1), lambda rng: (rng.random(), rng.integers(9, dtype="int32"))),
        "MT19937": (np.random.Generator(np.random.MT19937(1)), lambda rng: rng.random()),
        "BitGenerator": (np.random.PCG64(1), lambda rng: rng.random_raw()),
    }


def _objects():
    array = np.array([Calls()], dtype=object)
    return {
        **_rngs(),
        "deque": (deque([0], maxlen=3), appended),
        "bytearray": (bytearray(2), incremented),
        "array": (array_of_numbers("d", [1]), appended),
        "Counter": (Counter("ab"), counted),
        "OrderedDict": (OrderedDict.fromkeys([1, 2, 3]), reordered),
        "callable": (Calls(), Calls.__call__),
        "slots": (Slots(), Slots.next),
        "slots and attributes": (SlotsAndAttributes(), SlotsAndAttributes.next),
        "list with attribute": (ListWithAttribute([1]), ListWithAttribute.next),
        "array of objects": (array, object_in_array),
        "masked array": (np.ma.masked_array([1, 2], [False, True]), lambda target: (incremented(target), target.mask)),
    }


@pytest.mark.parametrize("name", _objects())
def test_kinds_of_objects_go_on_as_without_the_search(name):
    (target, use), (twin, _) = _objects()[name], _objects()[name]
    assert repr(use(target)) == repr(use(twin))
    snapshot = ObjectSnapshot([Thing(held=[target])])
    for _ in range(2):
        for _ in range(5):
            use(target)
        snapshot.restore()
    for _ in range(3):
        assert repr(use(target)) == repr(use(twin))


def test_a_weak_set_keeps_what_joined_it():
    first, second = Calls(), Calls()
    members = WeakSet([first])
    snapshot = ObjectSnapshot([Thing(members=members)])
    first()
    members.add(second)
    snapshot.restore()
    assert first.count == 0
    assert set(members) == {first, second}


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


def test_threads_queues_and_loggers_are_left_as_they_are():
    thing = Thing()
    thing.logger, thing.lines, thing.done = logging.getLogger("a test of snapshots"), queue.Queue(), threading.Event()
    snapshot = ObjectSnapshot([thing])
    handler = logging.NullHandler()
    thing.logger.addHandler(handler)
    thing.lines.put(1)
    thing.done.set()
    late = logging.getLogger("a later test of snapshots")
    snapshot.restore()
    assert thing.logger.handlers == [handler]
    assert thing.lines.get_nowait() == 1
    assert thing.done.is_set()
    assert logging.getLogger("a later test of snapshots") is late


def test_an_object_that_cannot_be_put_back_leaves_none_of_the_others():
    things = [Thing(), Thing(), Thing()]
    for thing in things:
        thing.values = np.zeros((2, 3))
    snapshot = ObjectSnapshot(things)
    for thing in things:
        thing.values[:] = 1
    things[1].values.shape = (3, 2)
    with pytest.raises(RuntimeError, match=r"1 objects that the trainer holds could not be put back.*broadcast"):
        snapshot.restore()
    assert [thing.values.sum() for thing in things] == [0, 6, 0]
