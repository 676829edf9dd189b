"""Escaped text is one line, can be printed, and differs wherever the text does."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitrainer_cli.inference.text import escape, write_line

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


def test_a_line_ends_in_a_newline(capsys):
    write_line("a ü")
    assert capsys.readouterr().out == "a ü\n"
