"""Text from outside as it is printed: one line, no control over the terminal (P13)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.wire.printable import json_line, printable, printable_lines

HOSTILE = [
    "\x1b]0;PWNED\x07", "\x9b31m", "a\nb", "a\rb", "\u202egnp.exe", "\u2028", "\x85", "\0", "\ud800", "\u200b",
    "\x7f", "\U000e0041",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_not_printable_is_its_escape(text):
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode()
    assert "\\" in shown


@given(st.text(st.characters()))
def test_any_text_is_one_printable_line(text):
    """Printable text stays as it is."""
    shown = printable(text)
    assert shown.isprintable()
    assert (shown == text) == text.isprintable()


def test_a_long_text_is_cut_and_says_so():
    assert printable("x" * 50, 10) == "xxxxxxxxxx... (40 more characters)"


def test_lines_are_ours_and_no_text_begins_one():
    text = "one\n2026-01-01 ERROR forged\x1b[2J\r\u2028two\n"
    forged = r"  2026-01-01 ERROR forged\x1b[2J\r\u2028two"
    assert printable_lines(text, indent="  ").splitlines() == ["  one", forged]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(values)
def test_any_value_is_one_line_of_json(value):
    """Also bytes, huge integers and lone surrogates. No character in it is obeyed by a terminal."""
    line = json_line(value)
    assert line.isprintable()
    json.loads(line)


@pytest.mark.parametrize("text", [one for one in HOSTILE if one != "\ud800"])
def test_json_means_the_same(text):
    line = json_line({text: [text]})
    assert json.loads(line) == {text: [text]}
    assert line.isprintable()
