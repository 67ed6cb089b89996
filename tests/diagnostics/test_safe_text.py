"""P13, texts of users' values: whatever their code raises, there is a text, it has a bound, and UTF-8 can encode it."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

import pytest

from streamq.diagnostics.safe_text import MOST_NOTES, SHOWN, repr_of, str_of, traceback_of, type_name

RAISED = [ValueError, RecursionError, SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError]


class HostileError(Exception):
    """Every text of it raises what it was made with."""

    def __init__(self, raised):
        self.raised = raised

    def _raise(self, *_):
        raise self.raised("no text for you")

    __str__ = __repr__ = __format__ = _raise
    __notes__ = __cause__ = __context__ = __traceback__ = property(_raise)  # type: ignore[assignment]


class Meta(type):
    """A metaclass whose names raise."""

    def __getattribute__(cls, name):
        if name in ("__module__", "__qualname__", "__name__"):
            raise SystemExit(name)
        return super().__getattribute__(name)


def raised(error):
    """Return an exception as it is caught."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught._excinfo[1]


@pytest.mark.parametrize("kind", RAISED)
def test_a_text_that_raises_says_so(kind):
    """Also if it raises what no `except Exception` catches."""
    error = raised(HostileError(kind))
    assert str_of(error) == f"<no text: its __str__ raised {kind.__name__}>"
    assert repr_of(error) == f"<no text: its __repr__ raised {kind.__name__}>"
    assert "Hostile" in type_name(error)
    text = traceback_of(error, 8_000)
    assert "Hostile" in text
    assert kind.__name__ in text
    assert "in raised" in text  # where it was raised is still there


def test_a_class_that_hides_its_name_has_one():
    """The name that C knows."""

    class NamedError(Exception, metaclass=Meta):
        pass

    assert type_name(NamedError()) == "NamedError"


def test_a_text_has_a_bound():
    """What is cut off is counted."""
    assert str_of("x" * SHOWN) == "x" * SHOWN
    kept = SHOWN - 40
    assert str_of("x" * 10_000_000) == "x" * kept + f"... ({10_000_000 - kept} more characters)"
    assert len(str_of("x" * 10_000_000)) <= SHOWN
    assert len(traceback_of(raised(ValueError("x" * 1_000_000)), 500)) == 500


def test_a_text_is_a_text():
    """An object of a subclass of str would run code of the user later."""

    class Text(str):
        __slots__ = ()

        def __getitem__(self, _):
            raise SystemExit

        def encode(self, *_, **__):
            raise SystemExit

    class Shown:
        def __str__(self):
            return Text("x" * 5_000)

    assert type(str_of(Shown())) is str
    assert str_of(Shown(), 43).startswith("xxx...")


def test_lone_surrogates_are_escaped():
    """UTF-8 has none, and names of files may."""
    assert str_of("a\udcff") == "a\\udcff"
    assert traceback_of(ValueError("a\udcff"), 100).endswith("a\\udcff\n")


def test_causes_and_notes_are_in_the_traceback():
    """As Python prints them."""
    error = ValueError("outer")
    error.__cause__ = KeyError("inner")
    error.add_note("a note")
    text = traceback_of(raised(error), 8_000)
    assert "inner" in text
    assert "a note" in text


class Endless(Sequence):
    """Notes without an end."""

    def __getitem__(self, at):
        return f"note {at} " + "x" * 20_000

    def __len__(self):
        return 3


class NotedError(Exception):
    __notes__ = Endless()


@pytest.mark.parametrize("place", ["itself", "its cause", "its context", "a member"])
def test_notes_have_a_bound_in_number_and_in_length(place):
    """Notes that never end blocked the event loop for good."""
    noted = NotedError("what went wrong")
    error: BaseException = noted
    if place == "its cause":
        error = ValueError("outer")
        error.__cause__ = noted
    elif place == "its context":
        error = ValueError("outer")
        error.__context__ = noted
    elif place == "a member":
        error = ExceptionGroup("outer", [ValueError("beside"), noted])
    text = traceback_of(raised(error), 1_000_000)
    assert f"note {MOST_NOTES - 1} xxx" in text
    assert f"note {MOST_NOTES} " not in text
    assert "... (more notes)" in text
    assert len(text) < 1_000_000
    assert len(traceback_of(raised(error), 8_000)) == 8_000
    assert "what went wrong" in text


def test_a_few_notes_are_all_there():
    """As Python shows them: also what is no sequence, by its repr."""
    error = ValueError("x")
    error.add_note("the first\nof two lines")
    error.add_note("the second")
    assert traceback_of(raised(error), 8_000) == "".join(traceback.format_exception(error))
    error.__notes__ = {"no": "sequence"}  # type: ignore[assignment]
    assert traceback_of(raised(error), 8_000).endswith("ValueError: x\n{'no': 'sequence'}\n")
