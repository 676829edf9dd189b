"""Every form of target and multiplier is recognized, described and collected; anything else is refused by name."""

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import Parameter, ParameterDict, nn

from multitrainer.groups.targets import (
    Description,
    blocks_of,
    check_multiplier,
    closest_names,
    collect,
    describe,
    is_parameter_mapping,
    is_target,
    known_name,
)
from support import mlp

NET = mlp()
DENSE = NET[0]
WEIGHT = DENSE.weight


def halved(num_update):
    return 0.5


class TestMultiplier:
    @pytest.mark.parametrize("value", [0, 0.0, 3, 0.25, np.float32(0.25), np.int64(2), 1e300])
    def test_a_finite_number_of_at_least_0_becomes_a_float(self, value):
        checked = check_multiplier(value, "it")
        assert checked == value
        assert type(checked) is float

    @pytest.mark.parametrize("value", [halved, mx.lr_scheduler.FactorScheduler(2, base_lr=1)])
    def test_a_schedule_is_returned_as_it_is(self, value):
        assert check_multiplier(value, "it") is value

    @pytest.mark.parametrize("value", [-1, -1e-9, float("nan"), float("inf"), np.float32("inf")])
    def test_any_other_number_is_a_value_error(self, value):
        with pytest.raises(ValueError, match=r"^lr_mult of it must be a finite number >= 0, got "):
            check_multiplier(value, "lr_mult of it")
        with pytest.raises(ValueError, match=r"^entry 'a{b}': lr_mult must be a finite number >= 0, got "):
            check_multiplier(value, Description("entry {}", "a{b}"), "{}: lr_mult")

    @pytest.mark.parametrize("value", [True, "0.1", None, [1], 1j, mx.nd.ones(1), DENSE, mx.lr_scheduler.PolyScheduler])
    def test_anything_else_is_a_type_error_that_names_its_type(self, value):
        with pytest.raises(TypeError, match=rf"^it must be a number >= 0 or a schedule .*type {type(value).__name__}$"):
            check_multiplier(value, "it")


class TestNames:
    KNOWN = ("conv_weight", "conv_bias", "dense_weight", "dense_bias", "gamma", "beta")

    def test_a_known_name_is_returned(self):
        assert known_name("gamma", self.KNOWN, "here") == "gamma"

    def test_an_unknown_name_is_an_error_with_the_three_closest(self):
        with pytest.raises(
            ValueError, match=r"^here: this trainer has no parameter 'conv_weigth'; the closest are "
        ) as it:
            known_name("conv_weigth", self.KNOWN, "here")
        assert str(it.value).endswith("'conv_weight', 'dense_weight', 'conv_bias'")

    def test_the_error_names_the_holder(self):
        with pytest.raises(ValueError, match=r"here: this module has no parameter 3; the closest are 'a'$"):
            known_name(3, {"a": 1}, "here", "this module")

    def test_the_closest_come_first_and_are_limited(self):
        assert closest_names("dense_weihgt", self.KNOWN, 1) == ["dense_weight"]
        assert closest_names("dense_weihgt", self.KNOWN)[0] == "dense_weight"
        assert len(closest_names("dense_weihgt", self.KNOWN)) == 3

    def test_a_name_like_no_other_gets_the_first_in_the_alphabet(self):
        assert closest_names("xyz", self.KNOWN, 2) == ["beta", "conv_bias"]
        assert closest_names("xyz", self.KNOWN) == ["beta", "conv_bias", "conv_weight"]


TARGETS = {
    "Block": (DENSE, "Dense 'net_dense0'"),
    "ParameterDict": (DENSE.collect_params(), "ParameterDict 'net_dense0_' of 2"),
    "dict": (dict(DENSE.collect_params().items()), "dict of 2 Parameters"),
    "Parameter": (WEIGHT, "Parameter 'net_dense0_weight'"),
    "list": ([WEIGHT, DENSE.bias], "[Parameter 'net_dense0_weight', Parameter 'net_dense0_bias']"),
    "tuple in a list": ([(WEIGHT,), DENSE.bias], "[(Parameter 'net_dense0_weight'), Parameter 'net_dense0_bias']"),
    "a parameter twice": ([DENSE, WEIGHT], "[Dense 'net_dense0', Parameter 'net_dense0_weight']"),
}


class TestTargets:
    @pytest.mark.parametrize("form", TARGETS)
    def test_every_form_is_recognized_described_and_collected(self, form):
        target, text = TARGETS[form]
        assert is_target(target)
        assert describe(target) == text
        expected = [WEIGHT] if form == "Parameter" else [WEIGHT, DENSE.bias]
        assert collect(target, "here") == {param.name: param for param in expected}

    def test_statistics_are_collected_too(self):
        assert list(collect(NET, "here")) == list(NET.collect_params())
        assert "net_batchnorm0_running_mean" in collect([NET[1]], "here")

    @pytest.mark.parametrize(
        "value", [3, "net", None, {}, {"a": 1}, {"a": WEIGHT, "b": 1}, [DENSE, 3], [[WEIGHT, "x"]]]
    )
    def test_anything_else_is_not_a_target(self, value):
        assert not is_target(value)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("net", r"here: 'net' is not a target \(names are for set_lr_mult; .*\); expected a Block, a Par"),
            (0.1, r"here: 0.1 is not a target \(write a multiplier beside its target: .*\); expected a Block, a"),
            (None, "here: None is not a target; expected a Block, a ParameterDict, a dict of name to Parameter, a Par"),
            ([WEIGHT, [None]], "here: None is not a target"),
        ],
    )
    def test_collecting_anything_else_is_an_error_with_a_hint(self, value, message):
        with pytest.raises(TypeError, match=message):
            collect(value, "here")

    @pytest.mark.parametrize("target", [[DENSE, mlp()[0]], {"one": WEIGHT, "other": mlp()[0].weight}])
    def test_two_parameters_of_one_name_are_an_error(self, target):
        with pytest.raises(ValueError, match="here: two different Parameters are called 'net_dense0_weight'; give"):
            collect(target, "here")

    def test_two_parameters_of_one_name_in_a_block_are_an_error(self):
        twins = nn.Sequential(prefix="")
        twins.add(nn.Dense(1, prefix="a_"), nn.Dense(1, prefix="a_"))
        with pytest.raises(ValueError, match=r"here: .*give the Blocks different prefix="):
            collect(twins, "here")

    def test_a_parameter_mapping_holds_parameters_alone(self):
        assert is_parameter_mapping({"a": WEIGHT})
        for value in ({}, {"a": WEIGHT, "b": 1}, [WEIGHT], WEIGHT):
            assert not is_parameter_mapping(value)

    def test_blocks_are_found_in_nested_lists(self):
        target = [DENSE, (NET[1], [WEIGHT, NET[2]]), DENSE.collect_params()]
        assert list(blocks_of(target)) == [DENSE, NET[1], NET[2]]
        assert list(blocks_of(NET)) == [NET]
        assert list(blocks_of(WEIGHT)) == []


class TestDescribe:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.1, "0.1"),
            (True, "True"),
            ([1, 2], "[1, 2]"),
            ([DENSE] * 3, "[Dense 'net_dense0', Dense 'net_dense0', Dense 'net_dense0']"),
            ((DENSE,) * 4, "(Dense 'net_dense0', Dense 'net_dense0', Dense 'net_dense0', ...)"),
            (ParameterDict("net_"), "ParameterDict 'net_' of 0"),
            ({"a": Parameter("a", shape=(1,))}, "dict of 1 Parameters"),
            ("x" * 58, repr("x" * 58)),
            ("x" * 59, "'" + "x" * 56 + "..."),
        ],
    )
    def test_text_is_short(self, value, text):
        assert describe(value) == text

    def test_text_is_one_line(self):
        assert describe(np.eye(2)) == "array([[1., 0.], [0., 1.]])"


class TestDescription:
    def test_pieces_are_described_when_the_text_is_read(self):
        layer = nn.Dense(1, in_units=1, prefix="fc_")
        description = Description("entry {} ({}: {})", 3, [layer], "a{b}")
        layer._name = "renamed"
        assert f"{description}!" == "entry 3 ([Dense 'renamed']: 'a{b}')!"
