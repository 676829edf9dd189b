"""Escaped text is one line, can be printed, and differs wherever the text does."""

from __future__ import annotations

import io
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitrainer_cli.output import discard_output, escape, reader_has_gone, unencodable_escaped

# Bytes 0x80 and above that are not in UTF-8 are lone surrogates in a file name.
TEXTS = st.text(st.characters(blacklist_categories=()))


@given(TEXTS)
def test_it_can_be_undone(text):
    escaped = escape(text)
    assert escaped.isprintable()
    assert "\t" not in escaped
    ascii_only = "".join(each if each.isascii() else each.encode("unicode_escape").decode() for each in escaped)
    assert ascii_only.encode().decode("unicode_escape") == text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a b", "a b"),
        ("ü", "ü"),
        ("\t\n", "\\t\\n"),
        ("\\", "\\\\"),
        (os.fsdecode(b"\x85"), "\\udc85"),
        ("\x85", "\\x85"),
    ],
)
def test_it_reads_as_in_python(text, escaped):
    assert escape(text) == escaped


def test_what_cannot_be_encoded_is_printed_as_an_escape_and_the_output_is_as_before(monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", output)
    with unencodable_escaped():
        print("a ü")
    assert output.buffer.getvalue() == b"a \\xfc\n"
    assert output.errors == "strict"


def test_an_output_that_is_no_file_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with unencodable_escaped():
        print("a ü")
    assert sys.stdout.getvalue() == "a ü\n"


def test_a_pipe_without_a_reader_is_noticed(monkeypatch):
    reading, writing = os.pipe()
    with open(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        print("a")
        os.close(reading)
        assert reader_has_gone()
        assert discard_output() == 141
        assert not reader_has_gone()
