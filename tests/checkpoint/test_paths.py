"""Paths are unique and safe member names; what was one object when it was saved becomes one object again."""

import mxnet as mx
import numpy as np
import pytest

from multitrainer.checkpoint import paths


@pytest.mark.parametrize(
    ("name", "expected"),
    [("dense0_weight", "dense0_weight"), ("a/b", "a%2Fb"), ("a.npy", "a%2Enpy"), ("a%", "a%25"), ("@x", "%40x")],
)
def test_a_component_has_no_separator_and_no_suffix(name, expected):
    assert paths.component(name) == expected


def test_keys_of_different_types_give_different_components():
    keys = [1, "1", None, "None", True, "=1"]
    components = [paths.key_component(key) for key in keys]
    assert components == ["=1", "1", "=None", "None", "=True", "%3D1"]


def test_attributes_of_the_optimizer_and_their_parts():
    assert paths.optimizer_path("wd") == "@optimizer/wd"
    assert paths.optimizer_path("mean", "a/b") == "@optimizer/mean/a%2Fb"


class TestSharedPaths:
    def test_an_object_with_two_paths_is_a_group(self):
        shared, array, alone = paths.SharedPaths(), np.ones(2), np.ones(2)
        for path, value in [("a", array), ("b", alone), ("c", array), ("a", array)]:
            shared.add(path, value)
        assert shared.groups() == [["a", "c"]]

    def test_no_path_is_in_two_groups(self):
        """The replicas of a state on other contexts have the paths of the first."""
        shared, one, other = paths.SharedPaths(), [1], [1]
        for value in (one, other):
            shared.add("state", value)
            shared.add("attribute", value)
        assert shared.groups() == [["state", "attribute"]]

    def test_an_id_that_is_used_again_is_another_object(self):
        shared = paths.SharedPaths()
        for i in range(100):
            shared.add(str(i), [i])  # without a reference, the next list would have the same id
        assert shared.groups() == []


class TestSharedValues:
    def resolved(self, one, other, groups=(["a", "b"],)):
        shared = paths.SharedValues()
        shared.set_groups(groups)
        return shared.resolve("a", one), shared.resolve("b", other)

    @pytest.mark.parametrize("make", [lambda: mx.nd.ones(2), lambda: np.ones(2), lambda: [1], lambda: {1: 2}])
    def test_equal_values_of_one_group_become_one_object(self, make):
        one, other = self.resolved(make(), make())
        assert one is other

    def test_the_first_value_is_the_object(self):
        first = [1]
        assert self.resolved(first, [1])[1] is first

    def test_values_that_differ_stay_apart(self):
        one, other = self.resolved([1], [2])
        assert (one, other) == ([1], [2])

    def test_values_without_a_group_stay_apart(self):
        one, other = self.resolved([1], [1], groups=())
        assert one is not other
        one, other = self.resolved([1], [1], groups=(["a", "c"], ["b", "d"]))
        assert one is not other

    def test_values_that_cannot_change_are_not_replaced(self):
        other = (1, [2])
        assert self.resolved((1, [2]), other)[1] is other
