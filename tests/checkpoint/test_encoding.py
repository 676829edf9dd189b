"""Values become JSON nodes of format version 1, with their arrays under the paths to them."""

import collections
import functools
import json

import mxnet as mx
import numpy as np
import pytest

from multitrainer.checkpoint.encoding import Encoder, ObjectEncoder

FLOATS = np.arange(6, dtype="float32").reshape(2, 3)


@pytest.mark.parametrize(
    ("value", "node"),
    [
        *((value, value) for value in (None, True, 3, -(10**299), "text", 2.5)),
        (float("nan"), {"float": "nan"}),
        (float("-inf"), {"float": "-inf"}),
        (np.float32(0.5), {"scalar": ["float32", 0.5]}),
        (np.float64("inf"), {"scalar": ["float64", {"float": "inf"}]}),
        (np.bool_(True), {"scalar": ["bool", True]}),
        ([1, [2]], [1, [2]]),
        ((1, (None,)), {"tuple": [1, {"tuple": [None]}]}),
        ({"a": 1, 2: [3], None: 4}, {"dict": [["a", 1], [2, [3]], [None, 4]]}),
        (collections.OrderedDict(a=1), {"dict": [["a", 1]]}),
        (FLOATS, {"numpy": ["float32", [2, 3]]}),
        (mx.nd.array(FLOATS), {"array": ["float32", [2, 3]]}),
        (mx.nd.array(FLOATS).tostype("row_sparse"), {"row_sparse": ["float32", [2, 3], 2]}),
    ],
    ids=str,
)
def test_format_version_1(value, node):
    assert Encoder().encode(value, "x") == node


def test_arrays_have_the_path_to_them():
    encoder = Encoder()
    sparse = mx.nd.sparse.row_sparse_array((np.ones((1, 2)), [1]), shape=(3, 2))
    encoder.encode([FLOATS, {"a/b": mx.nd.ones(2), 1: (None, sparse)}], "x")
    found = {path: array.shape for path, array in encoder.arrays}
    assert found == {"x/0": (2, 3), "x/1/a%2Fb": (2,), "x/1/=1/1/data": (1, 2), "x/1/=1/1/indices": (1,)}


def test_arrays_are_in_the_byte_order_of_the_machine():
    encoder = Encoder()
    encoder.encode(np.array([1, 2], dtype=">i4"), "x")
    ((_, array),) = encoder.arrays
    assert array.dtype == np.dtype("int32")
    assert array.dtype.isnative
    assert array.tolist() == [1, 2]


def test_shared_arrays_lists_and_dicts_are_found():
    encoder, array, items, table = Encoder(), mx.nd.ones(2), [1], {"a": 1}
    encoder.encode([array, items, table], "x")
    encoder.encode({"array": array, "items": items, "table": table, "equal": [1]}, "y")
    groups = [["x/0", "y/array"], ["x/1", "y/items"], ["x/2", "y/table"]]
    assert encoder.shared.groups() == groups


def test_a_replica_adds_paths_and_no_arrays():
    encoder, first, second = Encoder(), [mx.nd.ones(2)], [mx.nd.ones(2)]
    encoder.encode(first, "state")
    encoder.add_replica(second, "state")
    encoder.encode(second[0], "attribute")
    assert [path for path, _ in encoder.arrays] == ["state/0", "attribute"]
    assert encoder.shared.groups() == [["state/0", "attribute"]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (object(), r"x is <object object at .*> of type object"),
        ([{1, 2}], r"x/0 is \{1, 2\} of type set"),
        (lambda: 0, "x is <function .* of type function"),
        (10**300, r"x is 10{59}\.\.\. of type int"),
        (10**5000, "of type int"),
        ({(1, 2): 3}, r"x is \{\(1, 2\): 3\} of type dict"),
        (np.array([None]), "of type ndarray"),
        (np.complex64(1), "of type complex64"),
    ],
    ids=["object", "set", "function", "long", "longer", "key", "dtype", "scalar"],
)
def test_what_cannot_be_encoded_is_named(value, reason):
    with pytest.raises(TypeError, match=reason):
        Encoder().encode(value, "x")


@pytest.mark.parametrize(("depth", "fits"), [(64, True), (65, False)])
def test_nesting_has_a_limit(depth, fits):
    value = functools.reduce(lambda inner, _: [inner], range(depth), 0)
    if fits:
        json.dumps(Encoder().encode(value, "x"))
    else:
        with pytest.raises(TypeError, match=r"x/0/.*\.\.\. is nested more than 64 deep"):
            Encoder().encode(value, "x")


class Counter:
    def __init__(self):
        self.count, self.seen = 3, [mx.nd.ones(1)]

    def __call__(self, num_update):
        return 1

    def rate(self, num_update):
        return 1

    @classmethod
    def fixed(cls, num_update):
        return 1


COUNTER = {"object": ["Counter", {"count": 3, "seen": [{"array": ["float32", [1]]}]}]}


class TestObjectEncoder:
    @pytest.mark.parametrize(
        ("value", "node"),
        [
            (Counter(), COUNTER),
            (Counter().rate, {"object": ["method", {"__self__": COUNTER}]}),
            (functools.partial(Counter()), {"object": ["partial", {"func": COUNTER}]}),
            (Counter.fixed, {"object": ["method", {}]}),
            (lambda num_update: 1, {"object": ["function", {}]}),
            ([Counter()], [COUNTER]),
            (3, 3),
        ],
        ids=["object", "method", "partial", "method of the class", "function", "in a list", "number"],
    )
    def test_callable_objects_by_class_and_attributes(self, value, node):
        assert ObjectEncoder(Encoder()).encode(value, "x") == node

    def test_adds_to_the_encoder_of_the_file(self):
        encoder, counter = Encoder(), Counter()
        encoder.encode(counter.seen, "y")
        ObjectEncoder(encoder).encode(counter.rate, "x")
        assert [path for path, _ in encoder.arrays] == ["y/0", "x/__self__/seen/0"]
        assert encoder.shared.groups() == [["y/0", "x/__self__/seen/0"], ["y", "x/__self__/seen"]]

    def test_an_object_that_is_not_callable_is_refused(self):
        with pytest.raises(TypeError, match="x is <object object at"):
            ObjectEncoder(Encoder()).encode(object(), "x")

    def test_a_setting_that_is_nan_is_refused(self):
        scheduler = mx.lr_scheduler.FactorScheduler(2, float("nan"))
        with pytest.raises(ValueError, match="factor of FactorScheduler is nan"):
            ObjectEncoder(Encoder()).encode(scheduler, "x")
