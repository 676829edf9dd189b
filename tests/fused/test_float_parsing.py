"""Floats are parsed as MXNet's operators parse them, or refused."""

import contextlib

import mxnet as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multitrainer.fused.float_parsing import parse_all, parse_field, parse_tuple_element


def field_of_an_operator(value):
    weight = mx.nd.zeros(1)
    mx.nd.sgd_update(weight, -mx.nd.ones(1), out=weight, lr=value, wd=0)
    return weight.asscalar()


def element_of_a_tuple(value):
    weight = mx.nd.zeros(1)
    mx.nd.multi_sgd_update(weight, -mx.nd.ones(1), out=weight, num_weights=1, lrs=[value], wds=[0])
    return weight.asscalar()


numbers = st.one_of(
    st.floats(1e-30, 1e30),
    st.floats(1e-6, 1),
    st.integers(0, 10**6).map(lambda n: n / 10**6),
    st.integers(0, 1000),
    st.floats(2.0**-20, 1, width=32).map(np.float32),
    st.floats(2.0**-20, 1, width=32).map(lambda n: n * (1 + 2.0**-24)),  # about half-way to the next float32
)


@settings(max_examples=200, deadline=None)
@given(numbers)
def test_numbers_are_parsed_as_mxnet_parses_them(value):
    assert parse_field(str(value)) == field_of_an_operator(value)
    with contextlib.suppress(ValueError):
        assert parse_tuple_element(repr(value)) == element_of_a_tuple(value)


@pytest.mark.parametrize("text", ["nan", "inf", "1e-40", "1e40", "True", "1,5", "", "0x1", "[1.0]"])
def test_text_with_special_rules_is_refused(text):
    for parse in (parse_field, parse_tuple_element):
        with pytest.raises(ValueError, match="number"):
            parse(text)


def test_a_number_half_way_between_two_float32_is_refused():
    with pytest.raises(ValueError, match="half-way"):
        parse_tuple_element(repr(1 + 2.0**-24))


def test_an_exponent_with_special_rules_is_refused():
    with pytest.raises(ValueError, match="exponent"):
        parse_field("0.000001e40")


def test_a_number_may_have_many_digits_and_either_sign():
    for text in ("0.12345678901234567890123456789", "-0.5", "-12345678.9e-7", "7e8"):
        assert parse_field(text) == field_of_an_operator(text)


def test_all_values_are_parsed_in_their_order():
    values = [0.1, 2e-13, 0.1, 3]
    assert parse_all(parse_field, values) == [parse_field(repr(value)) for value in values]
