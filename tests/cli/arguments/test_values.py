from __future__ import annotations

import argparse
import os
import pathlib

import pytest

from multitrainer_cli.arguments import values
from multitrainer_cli.errors import UserError

INFINITE = ("inf", "-inf", "nan")


@pytest.mark.parametrize(
    ("read", "accepted", "refused", "expected"),
    [
        ("positive_int", {"1": 1, "7": 7}, ("0", "-1"), "a number above 0"),
        ("epoch_count", {"1": 1, "1000000": 10**6}, ("0", "1000001", "9" * 20), "a whole number from 1 to 1000000"),
        ("positive_float", {"1e-9": 1e-9, "2": 2.0}, ("0", "-1", *INFINITE), "a number above 0"),
        (
            "learning_rate",
            {"1e-20": 1e-20, "1e20": 1e20},
            ("0", "-1", "9e-21", "1.1e20", *INFINITE),
            "a number from 1e-20 to 1e20",
        ),
        ("weight_decay", {"0": 0.0, "0.1": 0.1}, ("-1", "1e39", *INFINITE), "0, or a number from 1e-20 to 1e20"),
        (
            "non_negative_int",
            {"0": 0, "2147483647": 2**31 - 1},
            ("-1", "2147483648"),
            "a whole number from 0 to 2147483647",
        ),
        ("non_negative_float", {"0": 0.0, "0.5": 0.5}, ("-0.1", *INFINITE), "a number of at least 0"),
        ("fraction", {"1": 1.0, "0.01": 0.01}, ("0", "1.01", *INFINITE), "a number above 0 and at most 1"),
    ],
)
def test_a_number_must_be_within_its_bounds(read, accepted, refused, expected):
    read = getattr(values, read)
    for text, value in accepted.items():
        assert read(text) == value
        assert type(read(text)) is type(value)
    for text in refused:
        with pytest.raises(argparse.ArgumentTypeError, match=f"^expected {expected}, got {text}$"):
            read(text)
    with pytest.raises(ValueError, match="many"):
        read("many")


def test_argparse_names_the_kind_of_number():
    assert [values.positive_int.__name__, values.fraction.__name__] == ["int", "float"]


def test_a_multiplier_follows_its_path():
    assert values.parse_multiplier("features.0=0.5") == ("features.0", 0.5)
    assert values.parse_multiplier(" fc =1e-3") == ("fc", 1e-3)
    for text in ("features", "features=", "features=fast", "=0.5", " =0.5", "0.5"):
        with pytest.raises(UserError, match=f"--lr-mult {text}: expected PATH=MULT"):
            values.parse_multiplier(text)


def test_bounds_are_two_numbers():
    assert values.parse_bounds("0.01:1") == (0.01, 1.0)
    for text in ("0.01", "0.01:", ":1", "a:b", "1:2:3"):
        with pytest.raises(UserError, match=f"--discriminative {text}: expected LO:HI"):
            values.parse_bounds(text)


class TestUnfreezing:
    def test_is_read_with_a_part_after_the_one_that_contains_it(self):
        texts = ["a.b.c=2", "a=10", " a.b =3", "4"]
        assert values.parse_unfreezing(texts, 10) == [(None, [4]), ("a", [10]), ("a.b", [3]), ("a.b.c", [2])]
        assert values.parse_unfreezing(["2,4,4,9"], 10) == [(None, [2, 4, 4, 9])]
        assert values.parse_unfreezing([], 10) == []

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
            values.parse_unfreezing(texts, 10)


def test_nothing_can_be_unfrozen_in_a_run_of_one_epoch():
    with pytest.raises(UserError, match="--unfreeze-at 2: the run has one epoch"):
        values.parse_unfreezing(["2"], 1)


def test_an_empty_name_is_refused():
    assert values.name("resnet18_v1b") == "resnet18_v1b"
    for read in (values.name, values.utf8_path):
        for text in ("", "  "):
            with pytest.raises(argparse.ArgumentTypeError, match="expected a name, got an empty one"):
                read(text)


def test_a_path_must_be_in_utf8():
    assert values.utf8_path("düne/ß") == pathlib.Path("düne/ß")
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a name in UTF-8, got 'd\\udce9'; rename it"):
        values.utf8_path(os.fsdecode(b"d\xe9"))


def test_a_folder_to_make_leads_through_no_missing_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert values.out_folder("missing/../b") == tmp_path / "b"
    for kept in ("b", "missing/b", "there/../b", "../b"):
        assert values.out_folder(kept) == pathlib.Path(kept)
