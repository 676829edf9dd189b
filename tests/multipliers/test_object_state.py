"""Attributes of optimizers and schedules are copied, compared and checked."""

import collections

import mxnet as mx
import numpy as np
import pytest

from multitrainer.multipliers import object_state
from support import CONTEXTS

Pair = collections.namedtuple("Pair", "one other")


def sparse(rows, value=1.0, shape=(6, 2)):
    data = np.full((len(rows), 2), value, "float32")
    return mx.nd.sparse.row_sparse_array((data, np.array(rows, "int64")), shape=shape)


class TestAttributesOf:
    def test_all_in_dict_but_for_the_record_of_rewinding(self):
        scheduler = mx.lr_scheduler.PolyScheduler(9)
        expected = dict(vars(scheduler))
        vars(scheduler)[object_state.REWIND_RECORD] = {}
        assert object_state.attributes_of(scheduler) == expected

    @pytest.mark.parametrize("slots", ["count", ("__dict__", "count")], ids=str)
    def test_a_slot_in_use_is_refused(self, slots):
        base = type("Base", (), {"__slots__": slots})
        slotted = type("Slotted", (base,), {})()
        assert object_state.attributes_of(slotted) == {}
        slotted.count = 3
        with pytest.raises(TypeError, match="Slotted keeps 'count' in __slots__"):
            object_state.attributes_of(slotted)

    def test_an_object_without_a_dict_is_refused(self):
        with pytest.raises(TypeError):
            object_state.attributes_of(3)


class TestSettings:
    def test_arguments_of_every_constructor(self):
        settings = object_state.settings_of(mx.optimizer.Adam)
        assert {"beta1", "epsilon", "learning_rate", "wd", "lr"} <= settings
        assert "num_update" not in settings

    @pytest.mark.parametrize("name", ["lr", "wd", "beta1"])
    @pytest.mark.parametrize("value", [float("nan"), np.float32("nan")])
    def test_nan_is_refused(self, name, value):
        with pytest.raises(ValueError, match=f"{name} of Adam is nan"):
            object_state.check_settings(mx.optimizer.Adam, {name: value})

    def test_infinity_is_refused_for_rates_only(self):
        for name in ("lr", "wd"):
            with pytest.raises(ValueError, match=f"{name} of Adam is -?inf"):
                object_state.check_settings(mx.optimizer.Adam, {name: -float("inf")})
        object_state.check_settings(mx.optimizer.Adam, {"epsilon": float("inf"), "best": float("nan"), "lr": 0.1})


class TestCopyArrays:
    def test_containers_and_arrays_are_new_and_equal(self):
        value = {"a": [mx.nd.ones(2), np.ones(3)], "b": Pair(1, [2]), "c": collections.defaultdict(int, x=1)}
        result = object_state.copy_arrays(value)
        assert object_state.identical(result, value)
        assert result is not value
        assert result["c"]["missing"] == 0
        for one, other in [(result["a"], value["a"]), *zip(result["a"], value["a"]), (result["b"][1], value["b"][1])]:
            assert one is not other
        value["a"][0][:] = 7
        value["a"][1][:] = 7
        assert (result["a"][0].asnumpy() == 1).all()
        assert (result["a"][1] == 1).all()

    def test_other_objects_are_not_copied(self):
        scheduler = mx.lr_scheduler.PolyScheduler(9)
        assert object_state.copy_arrays([scheduler])[0] is scheduler

    def test_one_object_stays_one_across_calls_with_one_memo(self):
        array, memo = mx.nd.ones(2), {}
        first = object_state.copy_arrays([array, (array,), {"a": array}], memo=memo)
        second = object_state.copy_arrays(array, memo=memo)
        assert first[0] is first[1][0] is first[2]["a"] is second
        assert object_state.copy_arrays(array) is not second

    def test_arrays_move_to_a_context(self):
        value = [mx.nd.ones(2, ctx=CONTEXTS[0])]
        assert object_state.copy_arrays(value, CONTEXTS[1])[0].context == CONTEXTS[1]
        assert object_state.copy_arrays([mx.nd.ones(2, ctx=CONTEXTS[1])])[0].context == CONTEXTS[1]


class TestIdentical:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: float("nan"),
            lambda: np.array([np.nan, -0.0]),
            lambda: mx.nd.array([1, 2]),
            lambda: sparse([1, 4]),
            lambda: {"a": [1, (2, None)]},
            lambda: Pair(1, 2),
        ],
    )
    def test_equal_values(self, make):
        assert object_state.identical(make(), make())

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (1, 1.0),
            (1, True),
            (np.array([0.0]), np.array([-0.0])),
            (np.ones(2), np.ones(2, "float32")),
            (np.ones((1, 2)), np.ones((2, 1))),
            (np.ones(2), mx.nd.ones(2, dtype="float64")),
            (mx.nd.array([1, 2]), mx.nd.array([1, 3])),
            (sparse([1, 4]), sparse([1, 3])),
            (sparse([1, 4]), sparse([1, 4], 2)),
            (sparse([1, 4]), sparse([1, 4], shape=(7, 2))),
            ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
            ({"a": 1}, {"a": 2}),
            ({"a": 1}, {"a": 1, "b": 1}),
            ([1], [1, 2]),
            ([1, 2], [1, 3]),
            ((1, 2), Pair(1, 2)),
            (1.0, float("nan")),
            (float("nan"), 1.0),
            ("a", "b"),
        ],
        ids=str,
    )
    def test_values_that_differ(self, one, other):
        assert not object_state.identical(one, other)


@pytest.mark.parametrize(
    ("template", "value", "expected"),
    [
        (Pair(0, 0), (1, 2), Pair(1, 2)),
        (collections.OrderedDict(z=0), {"a": 1}, collections.OrderedDict(a=1)),
        ((0,), (1, 2), (1, 2)),
        ({}, {"a": 1}, {"a": 1}),
        (Pair(0, 0), [1, 2], [1, 2]),
        (collections.OrderedDict(), [1], [1]),
        (None, (1, 2), (1, 2)),
        (None, {"a": 1}, {"a": 1}),
        ([1], (1,), (1,)),
    ],
    ids=str,
)
def test_a_dict_or_tuple_of_the_class_of_another(template, value, expected):
    before = repr(template)
    result = object_state.with_type_of(template, value)
    assert (type(result), result) == (type(expected), expected)
    assert repr(template) == before


class TestCheckIterations:
    FACTOR = mx.lr_scheduler.FactorScheduler(1)

    @pytest.mark.parametrize(
        ("step", "count", "num_update", "fits"),
        [
            (1, 0, 4_000_000, True),
            (1, 0, 4_000_001, False),
            (1, 1, 4_000_001, True),
            (10, 0, 40_000_000, True),
            (10, 0, 40_000_001, False),
            (0.5, 0, 10, False),
            (0, 0, 10, False),
            (-1, 0, 10, False),
            (None, 0, 10, False),
            (1, None, 10, False),
            (1, 2**53, 2**53 + 1, False),
            (1, 2**53 - 1, 2**53, True),
            (2**53, 0, 10, False),
        ],
    )
    def test_of_a_factor_scheduler(self, step, count, num_update, fits):
        attributes = {"step": step, "count": count}
        if fits:
            object_state.check_iterations(self.FACTOR, attributes, num_update)
        else:
            with pytest.raises(ValueError, match=r"FactorScheduler with step=.* needs more than 4,000,000 iterations"):
                object_state.check_iterations(self.FACTOR, attributes, num_update)

    def test_other_schedules_have_no_such_loop(self):
        object_state.check_iterations(lambda num_update: 1, {}, 10**18)
