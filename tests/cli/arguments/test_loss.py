from __future__ import annotations

import argparse

import pytest

from multitrainer_cli.arguments.loss import add_loss_arguments, parse_class_weights
from multitrainer_cli.errors import UserError


def parse(*options):
    parser = argparse.ArgumentParser()
    add_loss_arguments(parser)
    return parser.parse_args(options)


@pytest.mark.parametrize(
    ("option", "value"), [("--label-smoothing", "0"), ("--label-smoothing", "0.99"), ("--mixup", "0"), ("--mixup", "8")]
)
def test_numbers_within_the_bounds_are_accepted(option, value):
    assert getattr(parse(option, value), option[2:].replace("-", "_")) == float(value)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        *[("--label-smoothing", value, "a number of at least 0 and below 1") for value in ("1", "-0.1", "nan", "inf")],
        *[("--mixup", value, "0, or a number from 0.001 to 1000") for value in ("-1", "nan", "inf", "5e-324")],
        *[("--mixup-off-epoch", value, "a number above 0") for value in ("0", "-1")],
    ],
)
def test_other_numbers_are_refused(option, value, expected, capsys):
    with pytest.raises(SystemExit):
        parse(f"{option}={value}")
    assert f"expected {expected}, got {value}" in capsys.readouterr().err


def test_class_weights_are_a_number_for_each_class_or_balanced():
    assert parse_class_weights([]) == {}
    assert parse_class_weights(["cat=2", "a=b=0.5", "c,d=0"]) == {"cat": 2.0, "a=b": 0.5, "c,d": 0.0}
    assert parse_class_weights(["balanced"]) is None
    assert parse_class_weights(["balanced=2"]) == {"balanced": 2.0}


@pytest.mark.parametrize(
    ("texts", "error"),
    [
        (["cat"], "expected balanced, or CLASS=W"),
        (["=2"], "expected balanced, or CLASS=W"),
        (["cat=much"], "expected balanced, or CLASS=W"),
        (["Balanced"], "expected balanced, or CLASS=W"),
        (["cat=-1"], "cat=-1: expected a finite number >= 0"),
        (["cat=nan"], "expected a finite number >= 0"),
        (["cat=inf"], "expected a finite number >= 0"),
        (["cat=1", "dog=1", "cat=2"], "cat=2: cat is given more than once"),
        (["cat=1", "balanced"], "balanced cannot be combined with cat=1"),
        (["balanced", "balanced"], "balanced cannot be combined with balanced"),
    ],
)
def test_class_weights_that_mean_nothing_are_refused(texts, error):
    with pytest.raises(UserError, match=error):
        parse_class_weights(texts)
