from __future__ import annotations

import argparse
import os
import pathlib

import mxnet as mx
import pytest

from multitrainer.cli import options
from multitrainer.cli.errors import UserError

INFINITE = ("inf", "-inf", "nan")


@pytest.mark.parametrize(
    ("read", "accepted", "refused", "expected"),
    [
        ("positive_int", {"1": 1, "7": 7}, ("0", "-1"), "a number above 0"),
        ("positive_float", {"1e-9": 1e-9, "2": 2.0}, ("0", "-1", *INFINITE), "a number above 0"),
        ("non_negative_int", {"0": 0, "2147483647": 2**31 - 1}, ("-1", "2147483648"), "a whole number of at least 0"),
        ("non_negative_float", {"0": 0.0, "0.5": 0.5}, ("-0.1", *INFINITE), "a number of at least 0"),
        ("fraction", {"1": 1.0, "0.01": 0.01}, ("0", "1.01", *INFINITE), "a number above 0 and at most 1"),
    ],
)
def test_a_number_must_be_within_its_bounds(read, accepted, refused, expected):
    read = getattr(options, read)
    for text, value in accepted.items():
        assert read(text) == value
        assert type(read(text)) is type(value)
    for text in refused:
        with pytest.raises(argparse.ArgumentTypeError, match=f"^expected {expected}, got {text}$"):
            read(text)
    with pytest.raises(ValueError, match="many"):
        read("many")


def test_argparse_names_the_kind_of_number():
    assert [options.positive_int.__name__, options.fraction.__name__] == ["int", "float"]


class TestContexts:
    def test_are_the_named_devices_in_their_order(self):
        assert options.parse_contexts("cpu") == [mx.cpu()]
        assert options.parse_contexts("cpu(1), cpu(0)") == [mx.cpu(1), mx.cpu(0)]

    @pytest.mark.skipif(mx.context.num_gpus() > 0, reason="the default is a GPU")
    def test_are_the_cpu_without_a_gpu(self):
        assert options.parse_contexts(None, local_rank=3) == [mx.cpu()]

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("tpu", r"expected cpu, gpu\(0\) or gpu\(0\),gpu\(1\), not 'tpu'"),
            ("cpu,", "not ''"),
            ("cpu(x)", r"not 'cpu\(x\)'"),
            ("cpu,cpu(0)", "a device is named twice"),
            (f"gpu({mx.context.num_gpus()})", r"there is no gpu\(\d+\); use --ctx cpu"),
        ],
    )
    def test_that_do_not_exist_are_refused(self, text, error):
        with pytest.raises(UserError, match=error):
            options.parse_contexts(text)


class TestOptimizer:
    def test_is_sgd_with_momentum_by_default(self):
        assert options.parse_optimizer(None, None, None) == ("sgd", {"wd": 1e-4, "momentum": 0.9})

    def test_takes_the_given_rate_and_weight_decay(self):
        assert options.parse_optimizer("Adam", 0.5, 0) == ("adam", {"wd": 0, "learning_rate": 0.5})

    def test_adamw_has_a_weight_decay_of_its_own(self):
        assert options.parse_optimizer("adamw", None, None) == ("adamw", {"wd": 0.01})
        assert options.parse_optimizer("AdamW", 0.5, 0.1) == ("adamw", {"wd": 0.1, "learning_rate": 0.5})

    @pytest.mark.parametrize(
        ("name", "momentum"), [("nag", 0.9), ("sgd", 0.9), ("dcasgd", None), ("signum", None), ("adam", None)]
    )
    def test_has_momentum_if_its_own_is_0_and_works(self, name, momentum):
        assert options.parse_optimizer(name, None, None).settings.get("momentum") == momentum

    @pytest.mark.parametrize("name", ["sdg", "groupadagrad", "test"])
    def test_that_is_unknown_or_unusable_is_refused(self, name):
        with pytest.raises(UserError, match=f"--optimizer {name}: MXNet has no such optimizer; closest: "):
            options.parse_optimizer(name, None, None)


def test_a_multiplier_follows_its_path():
    assert options.parse_multiplier("features.0=0.5") == ("features.0", 0.5)
    assert options.parse_multiplier(" fc =1e-3") == ("fc", 1e-3)
    for text in ("features", "features=", "features=fast", "=0.5", " =0.5", "0.5"):
        with pytest.raises(UserError, match=f"--lr-mult {text}: expected PATH=MULT"):
            options.parse_multiplier(text)


def test_bounds_are_two_numbers():
    assert options.parse_bounds("0.01:1") == (0.01, 1.0)
    for text in ("0.01", "0.01:", ":1", "a:b", "1:2:3"):
        with pytest.raises(UserError, match=f"--discriminative {text}: expected LO:HI"):
            options.parse_bounds(text)


class TestUnfreezing:
    def test_is_read_with_a_part_after_the_one_that_contains_it(self):
        texts = ["a.b.c=2", "a=10", " a.b =3", "4"]
        assert options.parse_unfreezing(texts, 10) == [(None, [4]), ("a", [10]), ("a.b", [3]), ("a.b.c", [2])]
        assert options.parse_unfreezing(["2,4,4,9"], 10) == [(None, [2, 4, 4, 9])]
        assert options.parse_unfreezing([], 10) == []

    @pytest.mark.parametrize(
        ("texts", "error"),
        [
            (["soon"], "--unfreeze-at soon: expected EPOCH, PATH=EPOCH or EPOCH,EPOCH,..."),
            (["a="], "expected EPOCH, PATH=EPOCH"),
            (["=2"], "expected PATH=EPOCH, such as"),
            ([" =2"], "expected PATH=EPOCH, such as"),
            (["a=2,3"], "expected PATH=EPOCH, such as"),
            (["1"], "expected epochs from 2 to 10"),
            (["a=11"], "expected epochs from 2 to 10"),
            (["4,3"], "in ascending order"),
            (["a=2", "a=3"], "a is given more than once"),
            (["2", "3"], "an EPOCH without PATH is given more than once"),
        ],
    )
    def test_that_makes_no_sense_is_refused(self, texts, error):
        with pytest.raises(UserError, match=error):
            options.parse_unfreezing(texts, 10)


def test_a_path_must_be_in_utf8():
    assert options.utf8_path("düne/ß") == pathlib.Path("düne/ß")
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a name in UTF-8, got 'd\\udce9'; rename it"):
        options.utf8_path(os.fsdecode(b"d\xe9"))


def test_a_record_keeps_what_follows_the_name_of_an_option():
    assert options.recorded_text("lr", 0.1) == "0.1"
    assert options.recorded_text("lr_mult", ["a=1", "b=2"]) == "a=1 --lr-mult b=2"
    assert options.recorded_text("model", None) == "None"
